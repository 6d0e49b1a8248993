"""``model.audio_stem: conv``: convolutions that halve the frames until a token is one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmscale.config import MediaConfig, ModelConfig
from mmscale.model.blocks import RMSNorm
from mmscale.model.stem import AudioStem
from mmscale.registry import AUDIO_STEMS


class ConvStem(AudioStem):
    """Strided convolutions over time and frequency (as before conformers: Gulati et al., 2020)."""

    width_rules: ClassVar[Mapping[str, str]] = {
        "convs.": "input",
        "project.": "input",
        "norm.": "input",
    }

    def __init__(self, config: ModelConfig, media: MediaConfig) -> None:
        super().__init__()
        halvings = media.frames_per_token.bit_length() - 1
        channels = [1] + [config.stem_width << min(n, 1) for n in range(max(1, halvings))]
        strides = [(2, 2)] * halvings or [(1, 2)]
        self.strides = [stride[0] for stride in strides]
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[n], channels[n + 1], 3, stride=stride, padding=1)
            for n, stride in enumerate(strides)
        )
        bands = media.mel_bins
        for _ in strides:
            bands = -(-bands // 2)
        self.project = nn.Linear(channels[-1] * bands, config.width, bias=False)
        self.norm = RMSNorm(config.width, config.norm_eps)

    def encode(self, audio_NFM: Tensor, frames_N: Tensor) -> Tensor:
        x = audio_NFM.to(self.project.weight.dtype)[:, None]
        for conv, stride in zip(self.convs, self.strides, strict=True):
            x = F.silu(conv(x))
            frames_N = (frames_N + stride - 1) // stride
            # What lies past a clip's end stays zero, as the convolution's own padding would be.
            inside = torch.arange(x.shape[2], device=x.device) < frames_N[:, None]
            x = x.mul_(inside[:, None, :, None].to(x.dtype))  # silu keeps its input, not its result
        return self.norm(self.project(x.transpose(1, 2).flatten(2)))

    @staticmethod
    def flops(config: ModelConfig, media: MediaConfig) -> float:
        frames, bands, channels, cost = media.frames_per_token, media.mel_bins, 1, 0.0
        while frames > 1 or channels == 1:
            frames, bands = max(1, frames // 2), -(-bands // 2)
            wider = config.stem_width if channels == 1 else 2 * config.stem_width
            cost += 2.0 * 9 * channels * wider * frames * bands
            channels = wider
        return cost + 2.0 * channels * bands * config.width


AUDIO_STEMS.register("conv", ConvStem)
