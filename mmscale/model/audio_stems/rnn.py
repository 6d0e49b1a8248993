"""``model.audio_stem: rnn``: the convolutions of ``conv``, then a recurrent layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmscale.config import MediaConfig, ModelConfig
from mmscale.model.audio_stems.conv import ConvStem
from mmscale.model.blocks import RMSNorm
from mmscale.model.operators import Operators
from mmscale.model.stem import AudioStem
from mmscale.registry import AUDIO_STEMS


class RnnStem(AudioStem):
    """`ConvStem`, then a bidirectional GRU (Cho et al., 2014) over its tokens, added to them."""

    operators = Operators()
    # The GRU and the projection behind it read the model's width; the convolutions' projection
    # reads channels.
    width_rules: ClassVar[Mapping[str, str]] = {
        "conv.": "input",
        "input_weight": "hidden",
        "state_weight": "hidden",
        "input_bias": "input",
        "state_bias": "input",
        "project.": "hidden",
        "norm.": "input",
    }

    def __init__(self, config: ModelConfig, media: MediaConfig) -> None:
        super().__init__()
        self.conv = ConvStem(config, media)
        self.frames_per_token = media.frames_per_token
        self.units = config.width // 2
        # torch.gru is called with these directly: nn.GRU keeps its own list of weights, which goes
        # stale when a strategy swaps parameters for sharded or bf16 ones.
        for suffix in ("", "_reverse"):
            self.register_parameter(
                f"input_weight{suffix}", nn.Parameter(torch.empty(3 * self.units, config.width))
            )
            self.register_parameter(
                f"state_weight{suffix}", nn.Parameter(torch.empty(3 * self.units, self.units))
            )
            self.register_parameter(
                f"input_bias{suffix}", nn.Parameter(torch.empty(3 * self.units))
            )
            self.register_parameter(
                f"state_bias{suffix}", nn.Parameter(torch.empty(3 * self.units))
            )
        self.project = nn.Linear(2 * self.units, config.width, bias=False)
        self.norm = RMSNorm(config.width, config.norm_eps)

    def encode(self, audio_NFM: Tensor, frames_N: Tensor) -> Tensor:
        x = self.conv.encode(audio_NFM, frames_N)
        tokens = (frames_N + self.frames_per_token - 1) // self.frames_per_token
        packed = self.operators.pack(
            x, tokens.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        weights = [
            getattr(self, f"{kind}{suffix}")
            for suffix in ("", "_reverse")
            for kind in ("input_weight", "state_weight", "input_bias", "state_bias")
        ]
        state = x.new_zeros(2, len(tokens), self.units)
        # A GPU keeps what the backward pass needs only in training mode.
        kept = torch.is_grad_enabled()
        out, _ = self.operators.gru(
            packed.data, packed.batch_sizes, state, weights, True, 1, 0.0, kept, True
        )
        packed = packed._replace(data=out)
        padded, _ = self.operators.unpack(packed, batch_first=True, total_length=x.shape[1])
        return self.norm(x + self.project(padded))

    @staticmethod
    def flops(config: ModelConfig, media: MediaConfig) -> float:
        units = config.width // 2
        gates = 2 * (2.0 * 3 * units * (config.width + units))  # of both directions
        return ConvStem.flops(config, media) + (gates + 2.0 * 2 * units * config.width)


AUDIO_STEMS.register("rnn", RnnStem)
