"""Pretrained towers from local folders: what a run's config must know of them, and their weights.

Only local folders, only safetensors, no code of the folder's: nothing is unpickled, fetched or
executed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.json_file import read_object
from mmscale.model.initialise import fill
from mmscale.model.towers import WHISPER_FRAMES_A_POSITION, import_transformers, read_architecture

_AGAIN = "download the model again"
# CLIP's statistics, where a folder does not give its own.
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def resolve_towers(config: Config) -> None:
    """Set ``model.image_tower_config`` and ``model.audio_tower_config`` from the folders, where
    they are not set yet.

    Raises:
        UserError: no such folder, not a tower this stem can use, or ``media`` does not fit it;
            the message gives the lines to set.
    """
    model = config.model
    if model.image_stem == "pretrained" and not model.image_tower_config:
        model.image_tower_config = json.dumps(
            _image_facts(config, _folder("image_tower", model.image_tower))
        )
    if model.audio_stem == "pretrained" and not model.audio_tower_config:
        model.audio_tower_config = json.dumps(
            _audio_facts(config, _folder("audio_tower", model.audio_tower))
        )


def load_towers(model: nn.Module, config: Config) -> None:
    """Copy the towers' weights into a model that was just initialised, whole or sharded.

    Raises:
        UserError: the weights cannot be read, are pickled, or do not fit.
    """
    for stem in ("image", "audio"):
        if getattr(config.model, f"{stem}_stem") != "pretrained":
            continue
        folder = _folder(f"{stem}_tower", getattr(config.model, f"{stem}_tower"))
        source = _load(folder, vision=stem == "image")
        prefix = f"{stem}_stem.tower."
        weights = dict(source.named_parameters())
        for name, parameter in model.named_parameters():
            if not name.startswith(prefix):
                continue
            weight = weights.get(name.removeprefix(prefix))
            if weight is None or weight.shape != parameter.shape:
                raise UserError(
                    f"{folder}: has no weight {name.removeprefix(prefix)} of the shape its config "
                    "says"
                )
            fill(parameter, weight.detach().float())


def _folder(key: str, value: str) -> Path:
    folder = Path(value)
    if not value or not (folder / "config.json").is_file():
        raise UserError(
            f"model.{key}: {value or 'empty'}: no local folder with a config.json; download the "
            "model first (hf download NAME --local-dir FOLDER) and name the folder"
        )
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"model.{key}: {folder}: has no safetensors; other weight files are pickles and are "
            "not opened"
        )
    return folder


def _image_facts(config: Config, folder: Path) -> dict[str, Any]:
    tree, media = read_object(folder / "config.json", _AGAIN, _AGAIN), config.media
    tree = tree.get("vision_config", tree) | {"model_type": _vision_type(tree)}
    try:
        architecture = read_architecture(tree)
        patch, size = int(architecture.patch_size), int(architecture.image_size)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"{folder}: not a vision transformer that transformers knows ({error})"
        ) from None
    if (
        media.image_patch != patch
        or media.max_image_tokens
        or media.image_height % patch
        or media.image_width % patch
    ):
        raise UserError(
            f"media: does not fit the tower {folder}; set media.image_patch={patch} "
            f"media.image_height={size} media.image_width={size} media.max_image_tokens=0"
        )
    facts: dict[str, Any] = {
        "config": architecture.to_diff_dict() | {"model_type": tree["model_type"]}
    }
    processor = folder / "preprocessor_config.json"
    preprocessing = read_object(processor, _AGAIN, _AGAIN) if processor.exists() else {}
    mean, std = preprocessing.get("image_mean", _MEAN), preprocessing.get("image_std", _STD)
    return facts | {"mean": mean, "std": std}


def _vision_type(tree: dict[str, Any]) -> str:
    """The model type of the vision half, where a config holds a text half too."""
    own = tree.get("vision_config", tree).get("model_type") or tree.get("model_type", "")
    halves = {
        "clip": "clip_vision_model",
        "siglip": "siglip_vision_model",
        "siglip2": "siglip2_vision_model",
    }
    return halves.get(own, own) if "vision_config" in tree else str(own)


def _audio_facts(config: Config, folder: Path) -> dict[str, Any]:
    tree, media = read_object(folder / "config.json", _AGAIN, _AGAIN), config.media
    if tree.get("model_type") != "whisper":
        raise UserError(
            f"{folder}: its model_type is {tree.get('model_type')!r}; the audio tower is Whisper's "
            "encoder"
        )
    architecture = read_architecture(tree)
    seconds = (
        WHISPER_FRAMES_A_POSITION
        * architecture.max_source_positions
        * media.mel_hop
        / media.sample_rate
    )
    wanted = {
        "sample_rate": 16_000,
        "mel_window": 400,
        "mel_hop": 160,
        "mel_bins": int(architecture.num_mel_bins),
    }
    if any(getattr(media, name) != value for name, value in wanted.items()):
        lines = " ".join(f"media.{name}={value}" for name, value in wanted.items())
        raise UserError(f"media: does not fit the tower {folder}; set {lines}")
    if media.frames_per_token < WHISPER_FRAMES_A_POSITION or media.max_audio_s > seconds:
        raise UserError(
            f"media: does not fit the tower {folder}; set media.frames_per_token to 2 or more and "
            f"media.max_audio_s to {seconds:g} or less"
        )
    return {"config": architecture.to_diff_dict() | {"model_type": "whisper"}}


def _load(folder: Path, vision: bool) -> nn.Module:
    """The vision half, or the encoder, of the model in ``folder``, float32 on the CPU."""
    transformers = import_transformers()
    try:
        # What the folder lacks, such as a pooler that nothing reads, is drawn: alike on every rank
        # and in every run.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = transformers.AutoModel.from_pretrained(
                folder,
                config=read_architecture(read_object(folder / "config.json", _AGAIN, _AGAIN)),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: its weights cannot be read ({reason}); download the model again"
        ) from None
    if not vision:
        encoder: nn.Module = model.get_encoder()
        return encoder
    half: nn.Module = getattr(model, "vision_model", model)  # of a model of pictures and texts
    return half
