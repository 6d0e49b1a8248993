"""A release as a `transformers` model. Shape suffixes: B sequences, L positions, D width, E
embedding width.
"""

from __future__ import annotations

import dataclasses
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from mmscale.batch import Batch
from mmscale.data.special_tokens import END, PAD, SPECIAL_TOKENS
from mmscale.errors import UserError
from mmscale.hub.config import MmscaleConfig
from mmscale.hub.folder import release_folder
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.plugins import import_plugins
from mmscale.predict.decoding import Decoding
from mmscale.predict.generate import Generator
from mmscale.registry import OBJECTIVES
from mmscale.release.layout import WEIGHT_TYPES
from mmscale.release.open_release import load_release

# What callers may say and what changes nothing here: weights are always mapped, checked and from
# safetensors.
_NO_MATTER = {
    "trust_remote_code",
    "low_cpu_mem_usage",
    "use_safetensors",
    "adapter_kwargs",
    "attn_implementation",
    "_from_auto",
    "_commit_hash",
}


class MmscaleModel(PreTrainedModel):
    """`FusionTransformer` behind the interface of `transformers`; inputs come from
    `MmscaleProcessor`.
    """

    config_class = MmscaleConfig
    base_model_prefix = "fusion"
    main_input_name = "tokens_BL"

    def __init__(
        self, config: MmscaleConfig, fusion: FusionTransformer | None = None, tokens: int = 0
    ) -> None:
        super().__init__(config)
        run = config.run_config()
        if fusion is None:
            fusion = FusionTransformer(run.model, run.media)
            initialise(fusion, run.model, run.seed)
        self.fusion, self._seq_len = fusion.eval(), run.data.seq_len
        self._tokens = tokens or run.model.vocab_size  # rows beyond the tokenizer's are no text

    @classmethod
    def from_pretrained(  # type: ignore[override]  # fewer keywords, and the others are refused
        cls, pretrained_model_name_or_path: str | PathLike[str], *inputs: Any, **keywords: Any
    ) -> MmscaleModel:
        """Open a release folder, or one on the Hub, as `mmscale.load` does: hashes checked, weights
        mapped.

        Keywords: ``dtype`` (default: as stored), ``device_map`` (one device), those of the Hub,
            ``verify`` and ``plugins``, modules to import first.

        Raises:
            UserError: no release, a damaged or changed one, or a keyword that means nothing here.
        """
        folder = release_folder(pretrained_model_name_or_path, keywords)
        config = keywords.pop("config", None)
        dtype = _dtype(keywords.pop("dtype", keywords.pop("torch_dtype", None)))
        device = _device(keywords.pop("device_map", None))
        verify = keywords.pop("verify", True)
        import_plugins(keywords.pop("plugins", ()))
        with_info = keywords.pop("output_loading_info", False)
        unknown = [name for name in keywords if name not in _NO_MATTER]
        if unknown or inputs:
            raise UserError(
                f"from_pretrained: {[*unknown, *inputs][0]!r} means nothing for an mmscale "
                "release; leave it out"
            )
        predictor, _ = load_release(folder, device, dtype, verify)
        if not isinstance(config, MmscaleConfig):
            config = MmscaleConfig.from_pretrained(folder)
        model = cls(config, predictor.model, len(predictor.tokenizer))
        model.eval()
        nothing: dict[str, list[str]] = {
            "missing_keys": [],
            "unexpected_keys": [],
            "mismatched_keys": [],
            "error_msgs": [],
        }
        return (model, nothing) if with_info else model  # type: ignore[return-value]

    def save_pretrained(self, *arguments: Any, **keywords: Any) -> None:
        """Not supported: raises `UserError`."""
        raise UserError(
            "save_pretrained: a release is written by mmscale export, from its run; copy the "
            "folder instead"
        )

    def forward(self, **inputs: Any) -> BaseModelOutputWithPooling:
        """``last_hidden_state`` [B, L, D]; ``pooler_output`` float32 [B, E], unit embeddings, if
        inputs ask for any.
        """
        batch = to_batch(inputs)
        hidden_BLD = self.fusion.hidden(batch)
        pooled = None
        at_T = batch.objectives["contrastive"]["at_T"]
        if len(at_T):
            embedded = self.fusion.embed_head(hidden_BLD.flatten(0, 1)[at_T])
            pooled = torch.nn.functional.normalize(embedded.float(), dim=-1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_BLD, pooler_output=pooled)

    @torch.inference_mode()
    def generate(
        self,
        *,
        max_new_tokens: int = 64,
        num_beams: int = 1,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        **inputs: Any,
    ) -> Tensor:
        """Answers' token ids, int64 [B, longest], <|end|> left out, padded with <|pad|>; see
        `Decoding`.

        Raises:
            UserError: a setting that cannot be.
        """
        batch = to_batch(inputs)
        decoding = Decoding(
            max_new_tokens=max_new_tokens,
            beams=num_beams,
            temperature=temperature if do_sample else 0.0,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        decoding.check()
        lengths = (batch.segment_BL > 0).sum(1)
        rooms = (self._seq_len - lengths + 1).clamp(max=max_new_tokens).tolist()
        allowed_V = torch.zeros(
            self.fusion.config.vocab_size, dtype=torch.bool, device=lengths.device
        )
        allowed_V[len(SPECIAL_TOKENS) : self._tokens] = True
        allowed_V[END] = True
        ranked = Generator(self.fusion, allowed_V, END, decoding, None).answer(
            batch, list(range(len(rooms))), rooms
        )
        answers = [hypotheses[0].ids for hypotheses in ranked]
        out = torch.full((len(answers), max(len(ids) for ids in answers)), PAD, dtype=torch.int64)
        for row, ids in zip(out, answers, strict=True):
            row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return out.to(lengths.device)


def to_batch(inputs: dict[str, Any]) -> Batch:
    """The processor's inputs as the model's batch. Raises `UserError` if they are others."""
    plain = {"audio_chunks", "images_padded"}
    known = {item.name for item in dataclasses.fields(Batch)} | _block_names()
    unknown = inputs.keys() - known
    missing = {"tokens_BL", "segment_BL", *plain} - inputs.keys()
    if unknown or missing:
        raise UserError(
            f"inputs: {min(unknown | missing)!r} is unknown or missing; make them with the "
            "processor"
        )
    tensors = {name: value for name, value in inputs.items() if name not in plain}
    chunks = [tuple(chunk) for chunk in inputs["audio_chunks"].tolist()]
    return Batch.of(
        tensors, {"audio_chunks": chunks, "images_padded": bool(inputs["images_padded"])}
    )


def _block_names() -> set[str]:
    """Of every tensor in the block of an objective, as `Batch.tensors` has them."""
    return {
        f"{objective}.{name}"
        for objective, kind in OBJECTIVES.all().items()
        for name in kind.block([])
    }


def _dtype(value: Any) -> torch.dtype | None:
    if value is None or value == "auto":
        return None
    dtype = WEIGHT_TYPES.get(value) if isinstance(value, str) else value
    if dtype not in WEIGHT_TYPES.values():
        raise UserError(f"dtype={value!r}: not one of auto, {', '.join(WEIGHT_TYPES)}")
    return dtype


def _device(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {""}:
        value = value[""]
    if value is None:
        return "cpu"
    if value == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(value, int):
        return f"cuda:{value}"
    if isinstance(value, str | torch.device):
        return str(value)
    raise UserError(f"device_map={value!r}: the model lies on one device; name it, such as cuda")
