"""Stems: how a picture or a spectrogram becomes vectors of the model's width.

Every stem gives a fixed number of tokens per item, computed from each item alone: what else is in
the batch, and how far a clip is padded, changes nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmscale.config import MediaConfig, ModelConfig
from mmscale.model.audio_stem import AudioStem
from mmscale.model.blocks import RMSNorm
from mmscale.model.towers import PretrainedAudioStem, PretrainedImageStem


class ChannelNorm(nn.Module):
    """RMSNorm over the channels at each place of a [N, C, …] map; never across places, so padding
    cannot leak.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def _pixels(image_N3HW: Tensor, dtype: torch.dtype) -> Tensor:
    return (image_N3HW.to(dtype) - 127.5) / 127.5


def _inside(size_N2: Tensor, x: Tensor, stride: int) -> Tensor:
    """1 where a map [N, C, h, w] of pictures of ``size_N2`` pixels is real, 0 where it is padding:
    [N, 1, h, w].
    """
    rows = torch.arange(x.shape[2], device=x.device) * stride < size_N2[:, :1]
    columns = torch.arange(x.shape[3], device=x.device) * stride < size_N2[:, 1:]
    return (rows[:, None, :, None] & columns[:, None, None, :]).to(x.dtype)


class PatchStem(nn.Module):
    """Linear projection of square patches (ViT: Dosovitskiy et al., 2020).

    uint8 [N, 3, H, W] → [N, T, D]; ``size_N2`` int64, the real heights and widths where pictures
    are padded.
    """

    def __init__(self, config: ModelConfig, media: MediaConfig) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, config.width, media.image_patch, stride=media.image_patch)
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, image_N3HW: Tensor, size_N2: Tensor | None = None) -> Tensor:
        x = self.project(_pixels(image_N3HW, self.project.weight.dtype))
        return self.norm(x.flatten(2).transpose(1, 2))


class CnnStem(nn.Module):
    """Strided 3x3 convolutions down to one vector a patch (early convolutions: Xiao et al., 2021).

    Shapes as `PatchStem`'s. What lies outside a padded picture stays zero, as the convolutions' own
    padding.
    """

    def __init__(self, config: ModelConfig, media: MediaConfig) -> None:
        super().__init__()
        halvings = media.image_patch.bit_length() - 1
        channels = [min(config.stem_width << n, 8 * config.stem_width) for n in range(halvings + 1)]
        self.first = nn.Conv2d(3, channels[0], 3, padding=1)
        self.norms = nn.ModuleList(ChannelNorm(c, config.norm_eps) for c in channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[n], channels[n + 1], 3, stride=2, padding=1) for n in range(halvings)
        )
        self.project = nn.Conv2d(channels[-1], config.width, 1)
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, image_N3HW: Tensor, size_N2: Tensor | None = None) -> Tensor:
        def blank(x: Tensor, stride: int) -> Tensor:
            return x if size_N2 is None else x * _inside(size_N2, x, stride)

        x = self.first(blank(_pixels(image_N3HW, self.first.weight.dtype), 1))
        for halving, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=False)):
            x = conv(blank(F.silu(norm(x)), 1 << halving))
        x = self.project(F.silu(self.norms[-1](x)))
        return self.norm(x.flatten(2).transpose(1, 2))


class ConvStem(AudioStem):
    """Strided convolutions over time and frequency (as before conformers: Gulati et al., 2020)."""

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


class RnnStem(AudioStem):
    """`ConvStem`, then a bidirectional GRU (Cho et al., 2014) over its tokens, added to them."""

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
        packed = nn.utils.rnn.pack_padded_sequence(
            x, tokens.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        weights = [
            getattr(self, f"{kind}{suffix}")
            for suffix in ("", "_reverse")
            for kind in ("input_weight", "state_weight", "input_bias", "state_bias")
        ]
        state = x.new_zeros(2, len(tokens), self.units)
        kept = (
            torch.is_grad_enabled()
        )  # a GPU keeps what the backward pass needs only when told that it trains
        out, _ = torch.gru(
            packed.data, packed.batch_sizes, state, weights, True, 1, 0.0, kept, True
        )
        packed = packed._replace(data=out)
        padded, _ = nn.utils.rnn.pad_packed_sequence(
            packed, batch_first=True, total_length=x.shape[1]
        )
        return self.norm(x + self.project(padded))


IMAGE_STEMS: dict[str, type[nn.Module]] = {
    "patch": PatchStem,
    "cnn": CnnStem,
    "pretrained": PretrainedImageStem,
}
AUDIO_STEMS: dict[str, type[nn.Module]] = {
    "conv": ConvStem,
    "rnn": RnnStem,
    "pretrained": PretrainedAudioStem,
}
