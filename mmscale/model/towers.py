"""Pretrained encoders of the `transformers` library as stems: a vision tower for pictures,
Whisper's encoder for sound.

A tower's architecture travels in the config as JSON (``model.image_tower_config``), so that a run
or a release can build it without the folder its weights came from. Shape suffixes as in
`mmscale.model.stems`; E width of the tower.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mmscale.config import MediaConfig, ModelConfig
from mmscale.errors import UserError
from mmscale.model.audio_stem import AudioStem
from mmscale.model.blocks import RMSNorm
from mmscale.model.foreign_config import drop_all_fetches

WHISPER_FRAMES_A_POSITION = 2  # its second convolution has stride 2
_MOST, _MOST_WEIGHTS = 1 << 20, 10_000  # far above any tower's, and soon reached
_MEL_RANGE = 2.0  # log-mel values lie within 2 of a clip's largest: what silence is padded with


def import_transformers() -> Any:
    """The library. Raises `UserError` where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UserError(
            "model.image_stem=pretrained and model.audio_stem=pretrained need the transformers "
            "library; "
            "pip install 'mmscale[pretrained]'"
        ) from None
    return transformers


def read_architecture(tree: dict[str, Any]) -> Any:
    """A config of the library from that of a tower, which may come from anyone.

    Raises `ValueError`, or whatever the library raises, if it is none.
    """
    if "timm" in str(tree.get("model_type")):
        raise ValueError("models of timm are looked up by a name, which may be one of the Hub's")
    tree = drop_all_fetches(tree)
    _check_numbers(tree)
    return import_transformers().AutoConfig.for_model(**tree)


def _check_numbers(value: Any) -> None:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_numbers(inner)
    elif isinstance(value, int) and abs(value) > _MOST:
        raise ValueError(f"a number above {_MOST:,}")


@contextlib.contextmanager
def _few_weights() -> Iterator[None]:
    """A number of layers has as many names as there are models, so weights are counted as they are
    made.
    """
    made = 0

    def count(*ignored: Any) -> None:
        nonlocal made
        made += 1
        if made > _MOST_WEIGHTS:
            raise ValueError(f"more than {_MOST_WEIGHTS:,} weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _read_facts(text: str, key: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        raise UserError(
            f"model.{key}: is no tower's architecture; leave it empty and name the tower's folder"
        )
    return facts


def _build(
    tree: dict[str, Any], key: str, make: Callable[[Any], nn.Module], sizes: Sequence[str]
) -> tuple[Any, nn.Module]:
    """(architecture, tower without its weights). Raises `UserError` if the library cannot, or
    ``sizes`` are none.
    """
    try:
        with _few_weights():
            architecture = read_architecture(tree)
            tower = make(architecture)
    except UserError:
        raise
    except Exception as error:  # of any kind: the library checks little of what a config says
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"model.{key}: transformers cannot build this tower ({reason}); name the folder of "
            "another"
        ) from None
    for name in sizes:
        if type(getattr(architecture, name, None)) is not int or getattr(architecture, name) < 1:
            raise UserError(f"model.{key}: its {name} is no size; name the folder of another tower")
    return architecture, tower


def _read_channels(facts: dict[str, Any], name: str, key: str) -> list[float]:
    found = facts.get(name)
    if not (
        isinstance(found, list)
        and len(found) in (1, 3)
        and all(type(one) in (int, float) and abs(one) < _MOST for one in found)
    ):
        raise UserError(
            f"model.{key}: its {name} is not a number for each channel; name the folder of another "
            "tower"
        )
    return found


class _Tower(nn.Module):
    """A tower with what every one needs: buffers made anew, gradients only where it is trained."""

    def __init__(self, tower: nn.Module, trained: bool) -> None:
        super().__init__()
        self.tower, self._trained = tower, trained
        self._numbered: list[tuple[nn.Module, int]] = []
        for module in tower.modules():
            for name in list(module._buffers):
                buffer = module._buffers.pop(name)
                # The one kind of buffer these towers have; a model without buffers can be built
                # without memory.
                if name != "position_ids" or buffer is None:
                    raise UserError(
                        f"model: its tower keeps {name} beside its weights, which is not "
                        "supported; "
                        "use one such as SigLIP, CLIP or DINOv2"
                    )
                self._numbered.append((module, buffer.shape[-1]))
        if not trained:
            tower.requires_grad_(False)

    def train(self, mode: bool = True) -> _Tower:
        super().train(mode)
        self.tower.train(mode and self._trained)
        return self

    def run(self, *inputs: Tensor, **settings: Any) -> Tensor:
        """The tower's last hidden states."""
        for module, count in self._numbered:
            module.position_ids = torch.arange(count, device=inputs[0].device)[None]
        # An attack asks for the inputs' gradients, also through a tower that is not trained.
        with (
            contextlib.nullcontext()
            if self._trained or inputs[0].requires_grad
            else torch.no_grad()
        ):
            out: Tensor = self.tower(*inputs, **settings).last_hidden_state
        return out


class PretrainedImageStem(_Tower):
    """Any vision transformer of `transformers` (CLIP, SigLIP, DINOv2, …), then norm and projection.

    uint8 [N, 3, H, W] → [N, T, D]; H and W are the same for all pictures. Tokens before the patches
    (class, registers) are left out. Position embeddings are interpolated where the pictures are not
    of the tower's own size.
    """

    def __init__(self, config: ModelConfig, media: MediaConfig) -> None:
        key = "image_tower_config"
        facts = _read_facts(config.image_tower_config, key)
        make = import_transformers().AutoModel.from_config
        architecture, tower = _build(
            facts["config"], key, make, ("hidden_size", "image_size", "patch_size")
        )
        super().__init__(tower, config.image_tower_trained)
        self._mean, self._std = (_read_channels(facts, name, key) for name in ("mean", "std"))
        self._own_size = architecture.image_size == media.image_height == media.image_width
        self._tokens = (media.image_height // media.image_patch) * (
            media.image_width // media.image_patch
        )
        self.tower_norm = RMSNorm(architecture.hidden_size, config.norm_eps)
        self.project = nn.Linear(architecture.hidden_size, config.width, bias=False)
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, image_N3HW: Tensor, size_N2: Tensor | None = None) -> Tensor:
        dtype = self.project.weight.dtype
        mean, std = (
            image_N3HW.new_tensor(x, dtype=torch.float32)[:, None, None]
            for x in (self._mean, self._std)
        )
        pixels = ((image_N3HW.float() / 255.0 - mean) / std).to(dtype)
        settings = {} if self._own_size else {"interpolate_pos_encoding": True}
        hidden_NTE = self.run(pixels, **settings)[:, -self._tokens :]
        return self.norm(self.project(self.tower_norm(hidden_NTE)))


class PretrainedAudioStem(_Tower, AudioStem):
    """Whisper's encoder, the mean over the positions of each token, then norm and projection.

    The encoder reads a whole window, 30 s, of
    which what lies past a clip's end is silence, as in Whisper's own training.
    """

    def __init__(self, config: ModelConfig, media: MediaConfig) -> None:
        key = "audio_tower_config"
        tree = _read_facts(config.audio_tower_config, key)["config"]
        import_transformers()
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        architecture, tower = _build(tree, key, WhisperEncoder, ("d_model", "max_source_positions"))
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
