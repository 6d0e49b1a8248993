"""Opening a release: checked against its manifest, mapped instead of read, nothing unpickled.

What is read is checked against the config's model, name by name, before memory for it is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmscale.checkpoint.run_folder import check_vocabulary
from mmscale.checkpoint.tensor_file import StoredTensor, TensorFile, map_tensors, read_tensor_files
from mmscale.config import Config
from mmscale.config_file import config_from_tree
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError
from mmscale.json_file import read_object
from mmscale.model.empty import build_empty
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import fill_rows
from mmscale.predict.predictor import Predictor
from mmscale.release.layout import (
    CONFIG,
    FORMAT,
    INDEX,
    ONE_FILE,
    SHARD,
    TOKENIZER,
    VERSION,
    WEIGHT_TYPES,
)
from mmscale.release.release_manifest import check_contents, check_covered, read_manifest

_NO_RELEASE, _COPY_AGAIN = "give a folder made by mmscale export", "copy the release again, whole"


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release whose headers were read and compared with its config; its weights were not
    touched.
    """

    folder: Path
    facts: dict[str, Any]  # step, fingerprint, parameters
    config: Config
    tokenizer: Tokenizer
    files: list[TensorFile]
    dtype: torch.dtype  # of every tensor
    model: FusionTransformer  # on the meta device


def read_release(folder: Path, verify: bool = True) -> Release:
    """Everything about a release but its weights.

    If it has a manifest, everything that is read must be in it, and with ``verify`` every file it
    lists is hashed first; without, only the small ones are, and of the others the sizes are
    compared.

    Raises:
        UserError: the folder is no release; a file is missing, damaged or changed; a tensor is
            missing, unknown, of another shape, or of a type that releases do not have.
    """
    _check_files(folder, verify)
    facts, config, tokenizer = _read_small(folder)
    tensors: dict[str, StoredTensor] = {}
    listed = _weight_files(folder)
    files = read_tensor_files([*listed], _COPY_AGAIN)
    for file in files:
        names = listed[file.path]
        if names is not None and names != file.tensors.keys():
            name = min(names ^ file.tensors.keys())
            raise UserError(f"{file.path}: {name} and {INDEX} do not agree; {_COPY_AGAIN}")
        tensors |= file.tensors
    # A forged config must not make us build a model of a billion layers to compare with.
    if config.model.layers > len(tensors):
        raise UserError(
            f"{folder / CONFIG}: model.layers={config.model.layers}, but there are {len(tensors)} "
            "tensors"
        )
    if len(config.model.classes) > len(tensors):
        raise UserError(
            f"{folder / CONFIG}: model.classes has {len(config.model.classes)} heads, "
            f"but there are {len(tensors)} tensors"
        )
    try:
        model = build_empty(config)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None
    dtype = _compare(folder, model, tensors)
    return Release(
        folder=folder,
        facts=facts,
        config=config,
        tokenizer=tokenizer,
        files=files,
        dtype=dtype,
        model=model,
    )


def read_small_files(folder: Path) -> tuple[Config, Tokenizer]:
    """Config and tokenizer, for those who need no weights. Raises `UserError` as `read_release`."""
    _check_files(folder, verify=False)
    _, config, tokenizer = _read_small(folder)
    return config, tokenizer


def load_release(
    folder: Path, device: str = "cpu", dtype: torch.dtype | None = None, verify: bool = True
) -> tuple[Predictor, dict[str, Any]]:
    """(predictor with the release's weights, the facts of its config.json without the config).

    On the CPU, in the type they are stored in (``dtype`` None), the weights are mapped: pages of
    the files are read when they are first used. Otherwise each is copied once, to ``device`` and in
    ``dtype``.

    Raises:
        UserError: as `read_release`, or ``device`` cannot be used.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).split("\n")[0]
        raise UserError(
            f"device {device!r}: cannot be used ({reason}); use cpu, or cuda where there is a GPU"
        ) from None
    release = read_release(folder, verify)
    weights = {}
    for file in release.files:
        for name, tensor in map_tensors(file, _COPY_AGAIN).items():
            weights[name] = tensor.to(device=device, dtype=dtype or release.dtype)
    release.model.load_state_dict(weights, assign=True)
    return Predictor(release.model, release.tokenizer, release.config), release.facts


@torch.no_grad()
def fill_from_release(model: nn.Module, release: Release, new: str = "") -> None:
    """Copy the release's weights into ``model``, whole or sharded; of each tensor only this rank's
    rows are read.

    Tensors whose names begin with ``new``, if it is not empty, may be missing.

    Raises:
        UserError: another tensor of the model is missing, or one is of another shape.
    """
    held = {
        name: tensor
        for file in release.files
        for name, tensor in map_tensors(file, _COPY_AGAIN).items()
    }
    for name, parameter in model.named_parameters():
        if name not in held:
            if new and name.startswith(new):
                continue
            raise UserError(
                f"{release.folder}: has no tensor {name}, which this model needs; set model.* as "
                "its"
            )
        ours, theirs = tuple(parameter.shape), tuple(held[name].shape)
        if ours != theirs:
            raise UserError(
                f"{release.folder}: {name} has shape {list(theirs)}, not {list(ours)}; set model.* "
                "as its"
            )
        fill_rows(parameter, held[name])


def is_release(folder: Path) -> bool:
    """Does the folder's config.json say it is a release (of any version)?"""
    try:
        return read_object(folder / CONFIG, "").get("format") == FORMAT
    except UserError:
        return False


def _check_files(folder: Path, verify: bool) -> None:
    """Raise `UserError` if it is no release, or a file is not what the manifest says."""
    if not is_release(folder):
        read_object(folder / CONFIG, _NO_RELEASE, _COPY_AGAIN)  # reports what is wrong with it
        raise UserError(f"{folder / CONFIG}: not an mmscale release; {_NO_RELEASE}")
    listed = read_manifest(folder)
    if listed is not None:
        check_covered(folder, listed)
        small = [name for name in listed if not name.endswith(".safetensors")]
        check_contents(folder, listed, None if verify else small)


def _read_small(folder: Path) -> tuple[dict[str, Any], Config, Tokenizer]:
    facts, config = _read_config(folder)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    check_vocabulary(config, tokenizer, folder / CONFIG)
    return facts, config, tokenizer


def _read_config(folder: Path) -> tuple[dict[str, Any], Config]:
    path = folder / CONFIG
    tree = read_object(path, _NO_RELEASE, _COPY_AGAIN)
    if tree.get("version") != VERSION:
        raise UserError(
            f"{path}: release version {tree.get('version')!r}, this program reads {VERSION}; "
            "upgrade mmscale"
        )
    expected: dict[str, type] = {"config": dict, "step": int, "fingerprint": str, "parameters": int}
    for name, kind in expected.items():
        if type(tree.get(name)) is not kind:
            raise UserError(
                f"{path}: {name} is missing or no {kind.__name__}; export the release again"
            )
    facts = {name: tree[name] for name in ("step", "fingerprint", "parameters")}
    return facts, config_from_tree(tree["config"], str(path))


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Weight files, each with the tensors the index says it holds (None: there is no index)."""
    index = folder / INDEX
    if not index.exists():
        if not (folder / ONE_FILE).is_file():
            raise UserError(f"{folder / ONE_FILE}: missing; {_COPY_AGAIN}")
        return {folder / ONE_FILE: None}
    weight_map = read_object(index, _NO_RELEASE, _COPY_AGAIN).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: weight_map is missing; {_COPY_AGAIN}")
    files: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not SHARD.fullmatch(file):
            raise UserError(
                f"{index}: {str(file)[:60]!r} is no name of a weight file; {_COPY_AGAIN}"
            )
        members = files.setdefault(folder / file, set())
        assert members is not None
        members.add(name)
    if (folder / ONE_FILE).exists():
        raise UserError(
            f"{folder / ONE_FILE}: stands beside {INDEX}, the weights of two releases; "
            "copy the one you want into an empty folder"
        )
    return files


def _compare(folder: Path, model: nn.Module, tensors: dict[str, StoredTensor]) -> torch.dtype:
    """The type of all tensors. Raises `UserError` where they are not the model's."""
    expected = dict(model.named_parameters())
    dtypes = {tensor.dtype for tensor in tensors.values()}
    for name, parameter in expected.items():
        if name not in tensors:
            raise UserError(
                f"{folder}: tensor {name} is missing; copy the release again, or export it anew"
            )
        if tensors[name].shape != tuple(parameter.shape):
            raise UserError(
                f"{folder}: tensor {name} has shape {list(tensors[name].shape)}, "
                f"config.json's model needs {list(parameter.shape)}; export it anew"
            )
    extra = sorted(tensors.keys() - expected.keys())
    if extra:
        raise UserError(
            f"{folder}: tensor {extra[0][:60]} is not one of config.json's model; export it anew"
        )
    if len(dtypes) != 1 or not dtypes <= set(WEIGHT_TYPES.values()):
        types = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UserError(
            f"{folder}: its tensors are of types {types}; a release holds one of "
            f"{', '.join(WEIGHT_TYPES)}; export it anew"
        )
    return dtypes.pop()
