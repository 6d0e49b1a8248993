"""Releases: a checkpoint's weights as plain safetensors, with all that is needed to use them.

    OUT/config.json, preprocessor_config.json, generation_config.json, tokenizer.json
                          see `small_files`
    OUT/model.safetensors, or model-00001-of-0000N.safetensors with model.safetensors.index.json
    OUT/README.md         the model card
    OUT/manifest.json     size and SHA-256 of every other file, see `release_manifest`
    OUT/model.sig         signature over all of it, where a key was given, see `signature`

Weights stand under the names of `FusionTransformer.named_parameters`, in one type. `open_release`
reads it back.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmscale.checkpoint.run_folder import open_run, saved_names
from mmscale.checkpoint.run_state import RunState, read_state
from mmscale.checkpoint.stored_weights import MeanOfWeights, StoredWeights, Weights
from mmscale.config import Config
from mmscale.config_file import to_tree
from mmscale.data.tokenizer import Tokenizer
from mmscale.durable import make_folder, replace_folder, restore_folder
from mmscale.errors import UserError
from mmscale.model.empty import build_empty
from mmscale.release import release_manifest, signature
from mmscale.release.card import CardFacts, model_card
from mmscale.release.layout import (
    CARD,
    CONFIG,
    GENERATION,
    INDEX,
    ONE_FILE,
    PREPROCESSOR,
    SHARD,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHT_TYPES,
)
from mmscale.release.open_release import is_release
from mmscale.release.small_files import write_small_files
from mmscale.release.weight_writer import write_weights

_KNOWN = {
    CONFIG,
    GENERATION,
    INDEX,
    ONE_FILE,
    PREPROCESSOR,
    TOKENIZER,
    TOKENIZER_CONFIG,
    release_manifest.NAME,
    signature.NAME,
    CARD,
}


@dataclass(frozen=True)
class ExportOptions:
    """How a release is made.

    Args:
        dtype: type of the weights in it: float32, bfloat16 or float16.
        max_shard_bytes: tensor bytes of one file; a larger tensor has a file of its own.
        ema: the moving averages of the weights.
        merge: further runs of the same model and tokenizer; the weights are the mean of all.
        private_key: PEM file that signs the release.
    """

    dtype: str = "float32"
    max_shard_bytes: int = 5_000_000_000
    ema: bool = False
    merge: Sequence[Path] = ()
    private_key: Path | None = None


_PLAIN = ExportOptions()


def export(
    run_dir: Path, out: Path, checkpoint: Path | None = None, options: ExportOptions = _PLAIN
) -> dict[str, Any]:
    """Write the run's newest complete checkpoint, or the given one, as a release.

    Memory does not grow with the model: weights are read, cast, written and hashed some rows at a
    time. The release appears under ``out`` flushed and whole or not at all; an earlier release
    there is replaced, and stays until then.

    Returns:
        ``out``, ``checkpoint``, ``step``, ``parameters``, ``bytes``, ``signed`` and the list
        ``files``.

    Raises:
        UserError: no run, no checkpoint, weights that are not finite, runs that cannot be merged, a
            key that cannot sign, or ``out`` holds something else.
    """
    if options.dtype not in WEIGHT_TYPES:
        raise UserError(f"--dtype {options.dtype}: not one of {', '.join(WEIGHT_TYPES)}")
    if options.private_key is not None:
        signature.check_private_key(options.private_key)
    config, tokenizer, checkpoint = open_run(run_dir, checkpoint)
    out = Path(os.path.abspath(out))
    try:
        restore_folder(out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be put back ({error}); rename .{out.name}.old beside it"
        ) from None
    _check_replaceable(out)
    model = build_empty(config)
    names = saved_names(model, config, options.ema)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    state = read_state(checkpoint)
    source, merged = _sources(run_dir, checkpoint, config, tokenizer, options.merge)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    facts: dict[str, Any] = {
        "step": state.step,
        "fingerprint": state.fingerprint,
        "parameters": parameters,
    }
    # The folder has its final name while it is signed: the signature holds it.
    hidden = out.parent / f".{out.name}.partial"
    partial = hidden / out.name
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        make_folder(partial)
        try:
            written = write_weights(
                source,
                names,
                shapes,
                partial,
                dtype=WEIGHT_TYPES[options.dtype],
                max_bytes=options.max_shard_bytes,
            )
        except UserError as error:
            raise UserError(f"{checkpoint}: {error}") from None
        write_small_files(partial, config, tokenizer, facts, options.dtype)
        card_facts = CardFacts(
            run_dir=run_dir,
            name=out.name,
            parameters=parameters,
            dtype=options.dtype,
            averaged=options.ema,
            merged=merged,
            signed=options.private_key is not None,
            sizes=_sizes(partial),
        )
        (partial / CARD).write_text(model_card(config, state, card_facts), encoding="utf-8")
        release_manifest.write_manifest(partial, written.digests)
        if options.private_key is not None:
            signature.sign(partial, options.private_key)
        files = _sizes(partial)
        replace_folder(partial, out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error}); free space or choose another folder"
        ) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return {
        "out": str(out),
        "checkpoint": str(checkpoint),
        "step": state.step,
        "parameters": parameters,
        "bytes": sum(files.values()),
        "signed": options.private_key is not None,
        "files": list(files),
    }


def _sources(
    run_dir: Path, checkpoint: Path, config: Config, tokenizer: Tokenizer, merge: Sequence[Path]
) -> tuple[Weights, list[tuple[str, RunState]]]:
    """The weights to write, and of every run whose weights they are the mean of, its name and
    state.
    """
    sources = [StoredWeights(checkpoint)]
    merged = [(str(run_dir), read_state(checkpoint))] if merge else []
    for run in merge:
        its_config, its_tokenizer, its_checkpoint = open_run(run)
        for part in ("model", "media"):
            ours, theirs = to_tree(getattr(config, part)), to_tree(getattr(its_config, part))
            wrong = [name for name in ours if ours[name] != theirs[name]]
            if wrong:
                raise UserError(
                    f"--merge {run}: its {part}.{wrong[0]} is another; merge runs of one model"
                )
        if its_tokenizer.digest != tokenizer.digest:
            raise UserError(
                f"--merge {run}: its tokenizer is another; merge runs that share tokenizer.json"
            )
        sources.append(StoredWeights(its_checkpoint))
        merged.append((str(run), read_state(its_checkpoint)))
    return (MeanOfWeights(sources) if merge else sources[0]), merged


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; choose another folder for the release")
    held = sorted(path.name for path in out.iterdir())
    if not held:
        return
    foreign = [name for name in held if name not in _KNOWN and not SHARD.fullmatch(name)]
    if foreign or not is_release(out):
        what = foreign[0] if foreign else held[0]
        raise UserError(
            f"{out}: is not empty and no earlier release alone (it holds {what}); choose another "
            "folder"
        )
