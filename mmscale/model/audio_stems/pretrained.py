"""``model.audio_stem: pretrained``: Whisper's encoder (Radford et al., 2022), of the `transformers`
library.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmscale.config import MediaConfig, ModelConfig
from mmscale.model.blocks import RMSNorm
from mmscale.model.stem import AudioStem
from mmscale.model.towers import (
    WHISPER_FRAMES_A_POSITION,
    Tower,
    build_tower,
    import_transformers,
    read_facts,
    transformer_flops,
)
from mmscale.registry import AUDIO_STEMS

_KEY = "audio_tower_config"
_MEL_RANGE = 2.0  # log-mel values lie within 2 of a clip's largest: what silence is padded with
_WINDOW = 1500  # positions of a whole window


class PretrainedAudioStem(Tower, AudioStem):
    """Whisper's encoder, the mean over the positions of each token, then norm and projection.

    The encoder reads a whole window, 30 s, of which what lies past a clip's end is silence, as in
    Whisper's own training.
    """

    def __init__(self, config: ModelConfig, media: MediaConfig) -> None:
        tree = read_facts(config.audio_tower_config, _KEY)["config"]
        import_transformers()
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        architecture, tower = build_tower(
            tree, _KEY, WhisperEncoder, ("d_model", "max_source_positions")
        )
        super().__init__(tower, config.audio_tower_trained)
        self._frames = WHISPER_FRAMES_A_POSITION * architecture.max_source_positions
        self._pooled = media.frames_per_token // WHISPER_FRAMES_A_POSITION
        self.tower_norm = RMSNorm(architecture.d_model, config.norm_eps)
        self.project = nn.Linear(architecture.d_model, config.width, bias=False)
        self.norm = RMSNorm(config.width, config.norm_eps)

    def encode(self, audio_NFM: Tensor, frames_N: Tensor) -> Tensor:
        length = audio_NFM.shape[1]
        real_NF = torch.arange(length, device=audio_NFM.device) < frames_N[:, None]
        loudest_N = audio_NFM.masked_fill(~real_NF[..., None], -torch.inf).amax((1, 2))
        silence = (loudest_N - _MEL_RANGE)[:, None, None]
        window = silence.expand(-1, self._frames, audio_NFM.shape[2]).clone()
        kept = min(length, self._frames)
        window[:, :kept] = torch.where(real_NF[..., None], audio_NFM, silence)[:, :kept]
        hidden = self.run(window.transpose(1, 2).to(self.project.weight.dtype))
        # Positions that hold any real frame, averaged by tokens; tokens without one are never used.
        positions = -(-length // WHISPER_FRAMES_A_POSITION)
        real = (
            torch.arange(positions, device=hidden.device) * WHISPER_FRAMES_A_POSITION
            < frames_N[:, None]
        )
        hidden = hidden[:, :positions] * real[..., None].to(hidden.dtype)
        sums = hidden.unflatten(1, (-1, self._pooled)).sum(2)
        counts = real.unflatten(1, (-1, self._pooled)).sum(2).clamp(min=1)[..., None]
        return self.norm(self.project(self.tower_norm(sums / counts.to(sums.dtype))))

    @staticmethod
    def flops(config: ModelConfig, media: MediaConfig) -> float:
        tower = read_facts(config.audio_tower_config, _KEY)["config"]
        width, hidden = tower.get("d_model", 0), tower.get("encoder_ffn_dim", 0)
        position = transformer_flops(
            width=width,
            layers=tower.get("encoder_layers", 0),
            hidden=hidden or tower.get("mlp_ratio", 4) * width,
            positions=_WINDOW,
        )
        # A clip costs a whole window, which its few tokens do not show.
        return position * media.frames_per_token / WHISPER_FRAMES_A_POSITION


AUDIO_STEMS.register("pretrained", PretrainedAudioStem)
