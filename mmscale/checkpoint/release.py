"""Releases: a checkpoint's weights as plain safetensors, with all that is needed to use them.

    OUT/config.json       format, resolved config, step, fingerprint of the data plan, number of parameters
    OUT/tokenizer.json    the run's tokenizer
    OUT/model.safetensors, or model-00001-of-0000N.safetensors with model.safetensors.index.json
    OUT/README.md         the model card

Weights are fp32 under the names of `FusionTransformer.named_parameters`. Nothing is pickled; what is read is
checked against the config's model, name by name, before memory for it is claimed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmscale.checkpoint.card import model_card
from mmscale.checkpoint.json_file import read_object, write_object
from mmscale.checkpoint.run_folder import build_empty, check_vocabulary, open_run, saved_names
from mmscale.checkpoint.store import load_tensors, read_state
from mmscale.config import Config
from mmscale.config_file import config_from_tree, to_tree
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError
from mmscale.predict.predictor import Predictor

FORMAT, VERSION = "mmscale-release", 1
_CONFIG, _TOKENIZER, _CARD = "config.json", "tokenizer.json", "README.md"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_SIGNATURE = (".sig", ".pem")
_FLOAT32_BYTES = 4
_NO_RELEASE, _COPY_AGAIN = "give a folder made by mmscale export", "copy the release again, whole"


def export(
    run_dir: Path,
    out: Path,
    checkpoint: Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
    ema: bool = False,
) -> dict[str, Any]:
    """Write the run's newest complete checkpoint, or the given one, as a release; with ``ema``, its averaged weights.

    Weights are read and written a file at a time, so memory is bounded by ``max_shard_bytes`` (or the
    largest tensor). The release appears under ``out`` whole or not at all; an earlier release there is
    replaced.

    Returns:
        ``out``, ``checkpoint``, ``step``, ``parameters``, ``bytes`` and the list ``files``.

    Raises:
        UserError: no run, no checkpoint, weights that are not finite, or ``out`` holds something else.
    """
    config, tokenizer, checkpoint = open_run(run_dir, checkpoint)
    out = Path(os.path.abspath(out))
    _check_replaceable(out)
    model = build_empty(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    state = read_state(checkpoint)
    parameters = sum(_elements(shape) for shape in shapes.values())
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "config": to_tree(config),
        "step": state.step,
        "fingerprint": state.fingerprint,
        "parameters": parameters,
    }
    partial = out.parent / f".{out.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_weights(checkpoint, saved_names(model, config, ema), shapes, partial, max_shard_bytes)
        tokenizer.save(partial / _TOKENIZER)
        write_object(partial / _CONFIG, facts)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        card = model_card(run_dir, out.name, config, state, parameters, sizes)
        (partial / _CARD).write_text(card, encoding="utf-8")
        files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        _move_into_place(partial, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); free space or choose another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "out": str(out),
        "checkpoint": str(checkpoint),
        "step": state.step,
        "parameters": parameters,
        "bytes": sum(files.values()),
        "files": list(files),
    }


def load_release(folder: Path, device: str = "cpu") -> tuple[Predictor, dict[str, Any]]:
    """(predictor with the release's weights, the facts of its config.json without the config).

    Raises:
        UserError: the folder is no release; a file is missing or damaged; a tensor is missing, unknown, of
            another shape or not fp32; ``device`` cannot be used.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).split("\n")[0]
        raise UserError(
            f"device {device!r}: cannot be used ({reason}); use cpu, or cuda where there is a GPU"
        ) from None
    facts, config = _read_config(folder)
    tokenizer = Tokenizer.load(folder / _TOKENIZER)
    check_vocabulary(config, tokenizer, folder / _CONFIG)
    files = _weight_files(folder)
    found: dict[str, tuple[int, ...]] = {}
    for path, names in files.items():
        found |= _read_shapes(path, names)
    # A forged config must not make us build a model of a billion layers to compare with.
    if config.model.layers > len(found):
        raise UserError(
            f"{folder / _CONFIG}: model.layers={config.model.layers}, but there are {len(found)} tensors"
        )
    model = build_empty(config)
    _compare(folder, {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}, found)
    model = model.to_empty(device=device)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for path in files:
            with safe_open(path, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  a safe_open is no mapping
                    parameters[name].copy_(weights.get_tensor(name))
    return Predictor(model, tokenizer, config), facts


def is_release(folder: Path) -> bool:
    """Does the folder's config.json say it is a release (of any version)?"""
    try:
        tree = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and tree.get("format") == FORMAT


def _write_weights(
    checkpoint: Path, saved: dict[str, str], shapes: dict[str, tuple[int, ...]], folder: Path, max_bytes: int
) -> None:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = _elements(shape) * _FLOAT32_BYTES
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [_WEIGHTS]
    for file, members in zip(names, shards, strict=True):
        tensors = {name: torch.empty(shapes[name]) for name in members}
        load_tensors(checkpoint, {saved[name]: tensor for name, tensor in tensors.items()})
        _check_finite(checkpoint, tensors)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        # safetensors writes private files; a release is as open as its folder.
        (folder / file).chmod(folder.stat().st_mode & 0o666)
    if len(shards) > 1:
        total = sum(_elements(shape) for shape in shapes.values()) * _FLOAT32_BYTES
        weight_map = {name: file for file, members in zip(names, shards, strict=True) for name in members}
        write_object(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _check_finite(checkpoint: Path, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{checkpoint}: {name} holds values that are not finite; export an earlier checkpoint"
            )


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; choose another folder for the release")
    held = sorted(path.name for path in out.iterdir())
    if not held:
        return
    foreign = [name for name in held if not _belongs_to_release(name)]
    if foreign or not is_release(out):
        what = foreign[0] if foreign else held[0]
        raise UserError(
            f"{out}: is not empty and no earlier release alone (it holds {what}); choose another folder"
        )


def _belongs_to_release(name: str) -> bool:
    known = (_CONFIG, _TOKENIZER, _CARD, _WEIGHTS, _INDEX)
    return name in known or _SHARD.fullmatch(name) is not None or name.endswith(_SIGNATURE)


def _move_into_place(partial: Path, out: Path) -> None:
    if not out.exists():
        os.rename(partial, out)
        return
    old = out.parent / f".{out.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    os.rename(out, old)
    os.rename(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def _read_config(folder: Path) -> tuple[dict[str, Any], Config]:
    path = folder / _CONFIG
    tree = read_object(path, _NO_RELEASE, _COPY_AGAIN)
    if tree.get("format") != FORMAT:
        raise UserError(f"{path}: not an mmscale release; give a folder made by mmscale export")
    if tree.get("version") != VERSION:
        raise UserError(
            f"{path}: release version {tree.get('version')!r}, this program reads {VERSION}; upgrade mmscale"
        )
    expected: dict[str, type] = {"config": dict, "step": int, "fingerprint": str, "parameters": int}
    for name, kind in expected.items():
        if type(tree.get(name)) is not kind:
            raise UserError(f"{path}: {name} is missing or no {kind.__name__}; export the release again")
    return {name: tree[name] for name in ("step", "fingerprint", "parameters")}, config_from_tree(
        tree["config"], str(path)
    )


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Weight files, each with the tensors the index says it holds (None: there is no index)."""
    index = folder / _INDEX
    if not index.exists():
        if not (folder / _WEIGHTS).is_file():
            raise UserError(f"{folder / _WEIGHTS}: missing; copy the release again, whole")
        return {folder / _WEIGHTS: None}
    weight_map = read_object(index, _NO_RELEASE, _COPY_AGAIN).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: weight_map is missing; copy the release again, whole")
    files: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise UserError(f"{index}: {file!r} is no name of a weight file; copy the release again, whole")
        members = files.setdefault(folder / file, set())
        assert members is not None
        members.add(name)
    return files


def _read_shapes(path: Path, expected: set[str] | None) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a weight file, from its header alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    if not path.is_file():
        raise UserError(f"{path}: missing; copy the release again, whole")
    try:
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  a safe_open is no mapping
                part = weights.get_slice(name)
                if part.get_dtype() != "F32":
                    raise UserError(
                        f"{path}: {name} is {part.get_dtype()}, a release holds F32; export it again"
                    )
                shapes[name] = tuple(part.get_shape())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); copy the release again, whole") from None
    if expected is not None and expected != set(shapes):
        name = min(expected ^ set(shapes))
        raise UserError(f"{path}: {name} and {_INDEX} do not agree; copy the release again, whole")
    return shapes


def _compare(folder: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{folder}: tensor {name} is missing; copy the release again, or export it anew")
        if found[name] != shape:
            raise UserError(
                f"{folder}: tensor {name} has shape {list(found[name])}, "
                f"config.json's model needs {list(shape)}; export it anew"
            )
    extra = sorted(found.keys() - expected.keys())
    if extra:
        raise UserError(f"{folder}: tensor {extra[0]} is not one of config.json's model; export it anew")


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
