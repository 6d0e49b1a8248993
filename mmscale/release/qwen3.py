"""The text path as a Qwen3 checkpoint: start a run from one, or write a run as one.

Blocks, final norm and tied embedding of `FusionTransformer` are those of Qwen3 (Qwen team, 2025)
under other names.

Vocabulary: the run's tokenizer is Qwen3's with this project's special tokens in front
(`Tokenizer.from_foreign`), so row ``SHIFT + i`` of the embedding is Qwen3's row i; <|end|> begins
as its end-of-text token. What is written back has the run's vocabulary and tokenizer.json.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from mmscale.checkpoint.run_folder import open_run, saved_names
from mmscale.checkpoint.run_state import read_state
from mmscale.checkpoint.stored_weights import StoredWeights, Weights
from mmscale.config import ModelConfig
from mmscale.data.special_tokens import END, SPECIAL_TOKENS
from mmscale.data.tokenizer import Tokenizer
from mmscale.durable import make_folder, replace_folder
from mmscale.errors import UserError
from mmscale.json_file import read_object, write_object
from mmscale.model.empty import build_empty
from mmscale.model.initialise import fill
from mmscale.release.layout import WEIGHT_TYPES
from mmscale.release.small_files import write_tokenizer_config
from mmscale.release.weight_writer import write_weights

SHIFT = len(SPECIAL_TOKENS)
_BLOCK = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q_proj.weight": "self_attn.q_proj.weight",
    "attention.k_proj.weight": "self_attn.k_proj.weight",
    "attention.v_proj.weight": "self_attn.v_proj.weight",
    "attention.o_proj.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.gate_proj.weight": "mlp.gate_proj.weight",
    "feed_forward.up_proj.weight": "mlp.up_proj.weight",
    "feed_forward.down_proj.weight": "mlp.down_proj.weight",
}
# Our key, and Qwen3's in config.json.
_SIZES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}


def qwen3_name(name: str) -> str | None:
    """Qwen3's name of a parameter of `FusionTransformer`; None if it has none (stems, heads)."""
    if name == "embedding.weight":
        return "model.embed_tokens.weight"
    if name == "norm.weight":
        return "model.norm.weight"
    kind, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    return (
        f"model.layers.{number}.{_BLOCK[inner]}" if kind == "blocks" and inner in _BLOCK else None
    )


def qwen3_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer with this project's special tokens in front. Raises `UserError` if it
    cannot be used.
    """
    return Tokenizer.from_foreign(folder / "tokenizer.json")


def check_qwen3(folder: Path, model: ModelConfig) -> None:
    """Raise `UserError` naming the keys to set if ``model`` is not of the folder's sizes."""
    tree = read_object(folder / "config.json", "name a local folder with a Qwen3 model")
    if tree.get("model_type") != "qwen3":
        raise UserError(
            f"model.init_from: {folder} holds a {tree.get('model_type')!r}; only qwen3 is read"
        )
    wanted = {ours: tree.get(theirs) for ours, theirs in _SIZES.items()}
    theta = (tree.get("rope_parameters") or {}).get("rope_theta", tree.get("rope_theta"))
    wanted["rope_theta"] = theta
    wrong = [
        name for name, value in wanted.items() if value is None or getattr(model, name) != value
    ]
    if wrong:
        lines = " ".join(f"model.{name}={wanted[name]}" for name in wrong)
        raise UserError(f"model.init_from: {folder} is of other sizes; set {lines}")
    if not tree.get("tie_word_embeddings", True):
        raise UserError(
            f"model.init_from: {folder} has an output layer of its own; only tied embeddings are "
            "read"
        )
    scaling = (tree.get("rope_parameters") or tree.get("rope_scaling") or {}).get(
        "rope_type", "default"
    )
    if scaling != "default" or model.fusion != "transformer" or model.untied or model.base_width:
        raise UserError(
            f"model.init_from: {folder}: scaled rotary positions, model.fusion=rnn, model.untied "
            "and model.base_width are not those of a Qwen3 text path"
        )


def load_qwen3(model: nn.Module, config: ModelConfig) -> None:
    """Copy the text path of ``config.init_from`` into a model that was just initialised, whole or
    sharded.

    Raises:
        UserError: not a Qwen3 folder of these sizes, or its weights cannot be read. Pickled weights
            are not opened.
    """
    folder = Path(config.init_from)
    check_qwen3(folder, config)
    files = _files_by_name(folder)
    end = _end_of_text(folder)
    for name, parameter in model.named_parameters():
        theirs = qwen3_name(name)
        if theirs is None:
            continue
        if theirs not in files:
            raise UserError(f"{folder}: tensor {theirs} is missing; download the model again")
        with safe_open(files[theirs], framework="pt") as weights:
            tensor = weights.get_tensor(theirs).float()
        if name == "embedding.weight":
            rows = torch.zeros(parameter.shape)
            # A vector among the others, for the tokens Qwen3 does not know.
            rows[:SHIFT] = tensor.mean(0)
            rows[SHIFT : SHIFT + len(tensor)] = tensor[: len(rows) - SHIFT]
            if end is not None and end < len(tensor):
                rows[END] = tensor[end]
            tensor = rows
        if tensor.shape != parameter.shape:
            raise UserError(
                f"{folder}: {theirs} has shape {list(tensor.shape)}, not {list(parameter.shape)}"
            )
        fill(parameter, tensor)


def export_qwen3(
    run_dir: Path,
    out: Path,
    checkpoint: Path | None = None,
    *,
    ema: bool = False,
    dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
) -> dict[str, Any]:
    """Write the text path of a run's newest whole checkpoint, or the given one, as a Qwen3 folder.

    As with a release, memory does not grow with the model, and the folder is there whole or not at
    all. Returns ``out``, ``step``, ``parameters``.

    Raises:
        UserError: no run, no checkpoint, ``out`` is not empty, weights are not finite, or what
            `check_form` refuses.
    """
    config, tokenizer, checkpoint = open_run(run_dir, checkpoint)
    check_form(config.model)
    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not an empty folder; choose another")
    model = build_empty(config)
    names = saved_names(model, config, ema)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if qwen3_name(name)}
    hidden = out.parent / f".{out.name}.partial"
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        make_folder(hidden)
        source = StoredWeights(checkpoint)
        try:
            write_qwen3(
                config=config.model,
                source=source,
                names=names,
                shapes=shapes,
                tokenizer=tokenizer,
                folder=hidden,
                dtype=dtype,
                max_shard_bytes=max_shard_bytes,
            )
        except UserError as error:
            raise UserError(f"{checkpoint}: {error}") from None
        replace_folder(hidden, out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error}); free space or choose another folder"
        ) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    return {"out": str(out), "step": read_state(checkpoint).step, "parameters": parameters}


def check_form(config: ModelConfig) -> None:
    """Raise `UserError` if the model has what Qwen3 has not: recurrent fusion, untied
    weights, muP.
    """
    if config.fusion != "transformer" or config.untied or config.base_width:
        raise UserError(
            "--as qwen3: model.fusion=rnn, model.untied and model.base_width have no counterpart "
            "in Qwen3; export without --as"
        )


def write_qwen3(
    *,
    config: ModelConfig,
    source: Weights,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    tokenizer: Tokenizer,
    folder: Path,
    dtype: str,
    max_shard_bytes: int,
) -> None:
    """Write a folder that `transformers` opens; see `write_weights`. ``names`` and ``shapes`` go by
    our names.
    """
    tree: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    tree |= {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": True,
        "vocab_size": config.vocab_size,
        "eos_token_id": END,
        "dtype": dtype,
    }
    write_object(folder / "config.json", tree)
    write_object(folder / "generation_config.json", {"eos_token_id": END, "pad_token_id": 0})
    tokenizer.save(folder / "tokenizer.json")
    write_tokenizer_config(folder)
    theirs = {str(qwen3_name(name)): name for name in shapes}
    write_weights(
        source,
        {new: names[name] for new, name in theirs.items()},
        {new: shapes[name] for new, name in theirs.items()},
        folder,
        dtype=WEIGHT_TYPES[dtype],
        max_bytes=max_shard_bytes,
    )


def _files_by_name(folder: Path) -> dict[str, Path]:
    """The file of every tensor."""
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as weights:
                files |= dict.fromkeys(weights.keys(), path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged ({error}); download the model again") from None
    if not files:
        raise UserError(
            f"model.init_from: {folder}: has no safetensors; other weight files are pickles"
        )
    return files


def _end_of_text(folder: Path) -> int | None:
    token = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id")
    return token[0] if isinstance(token, list) and token else token
