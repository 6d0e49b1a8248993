"""Byte-level BPE: trained on the run's own text, stored in the run and in the release.

Byte-level means any text round-trips and there is no unknown token. The `tokenizers` library does
the work.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmscale.data.special_tokens import SPECIAL_TOKENS
from mmscale.durable import write_durably
from mmscale.errors import UserError
from mmscale.json_file import read_object

# What a tokenizer.json may ask for: a stranger's may hang, exhaust the memory or end the process
# when it is used.
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD"}
# Qwen2's to Qwen3's pattern, and Llama 3's; a stranger's might take for ever on some text.
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = (_QWEN, _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"))


class Tokenizer:
    """Text ↔ token ids. Special tokens are never read from text: ``"<|end|>"`` in data is seven
    characters.
    """

    def __init__(self, inner: tokenizers.Tokenizer, source: str) -> None:
        for number, token in enumerate(SPECIAL_TOKENS):
            if inner.token_to_id(token) != number:
                raise UserError(
                    f"{source}: special token {token} must have id {number}; train one with this "
                    "project"
                )
        inner.encode_special_tokens = True
        self._inner, self._size = inner, max(inner.get_vocab().values()) + 1
        self.digest = hashlib.sha256(inner.to_str().encode()).hexdigest()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary of at most ``vocab_size`` tokens (256 bytes and the special tokens
        included).
        """
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner, "trained tokenizer")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read ``tokenizer.json``. Raises `UserError` naming the file if it is missing or no
        tokenizer.
        """
        return cls(_build(_read(path), path), str(path))

    @classmethod
    def from_foreign(cls, path: str | Path) -> Tokenizer:
        """A byte-level BPE ``tokenizer.json`` of the `tokenizers` library, such as Qwen3's, made
        one of this project's.

        The project's special tokens come first; the id of every other token grows by their number.
        What the foreign tokenizer adds around a text is left out. Raises `UserError` if it is
        missing or of another kind.
        """
        tree = _read(path)
        try:
            model = tree["model"]
            shift = len(SPECIAL_TOKENS)
            added = [token | {"id": token["id"] + shift} for token in tree.get("added_tokens", [])]
            clash = {*SPECIAL_TOKENS} & {*model["vocab"], *(token["content"] for token in added)}
            model["vocab"] = dict(zip(SPECIAL_TOKENS, range(shift), strict=True)) | {
                token: number + shift for token, number in model["vocab"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a tokenizer.json ({error!r})") from None
        if clash:
            raise UserError(
                f"{path}: already has a token {min(clash)}; it cannot be given this project's "
                "meaning"
            )
        plain = {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        own = [
            {"id": number, "content": token} | plain for number, token in enumerate(SPECIAL_TOKENS)
        ]
        tree |= {"model": model, "added_tokens": own + added}
        return cls(_build(tree, path), str(path))

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json``."""
        write_durably(Path(path), self._inner.to_str())

    def __len__(self) -> int:
        """The largest id and one: how many rows of an embedding can be asked for."""
        return self._size

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def lengths(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text."""
        return [
            len(encoding.ids)
            for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; special tokens are left out, broken UTF-8 becomes U+FFFD."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def __getstate__(self) -> str:
        return str(self._inner.to_str())

    def __setstate__(self, state: str) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state), "tokenizer")  # type: ignore[misc]


def _read(path: str | Path) -> dict[str, Any]:
    if not os.path.exists(path):
        raise UserError(f"{path}: no such tokenizer file")
    again = "it is not a tokenizer.json: copy it again, or train one"
    return read_object(Path(path), again, again)


def _build(tree: dict[str, Any], path: str | Path) -> tokenizers.Tokenizer:
    """The library's tokenizer, from parts that cannot do harm; what it does around a text is left
    out.

    Raises:
        UserError: it has other parts, or the library cannot build it.
    """
    model = tree.get("model")
    if (
        not isinstance(model, dict)
        or model.get("type") != "BPE"
        or _kind(tree.get("decoder")) != "ByteLevel"
    ):
        raise UserError(
            f"{path}: not a byte-level BPE tokenizer; train one, or use one such as Qwen3's"
        )
    parts = {key: model.get(key) for key in ("dropout", "unk_token", *_AFFIXES) if model.get(key)}
    if tree.get("normalizer") is not None and _kind(tree["normalizer"]) not in _NORMALIZERS:
        parts["normalizer"] = tree["normalizer"]
    if not _splits_plainly(tree.get("pre_tokenizer")):
        parts["pre_tokenizer"] = tree.get("pre_tokenizer")
    if parts:
        name, part = next(iter(parts.items()))
        raise UserError(
            f"{path}: its {name} is {str(part)[:60]!r}, which is not used here; train one, or use "
            "one such as Qwen3's"
        )
    plain = tree | {"truncation": None, "padding": None, "post_processor": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(plain))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # The library raises bare Exception for malformed files, or panics.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: not a tokenizer.json ({reason}); copy it again, or train one"
        ) from None


def _kind(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else None


def _splits_plainly(part: Any) -> bool:
    """ByteLevel, perhaps behind a split by a known pattern."""
    steps = part.get("pretokenizers") if _kind(part) == "Sequence" else [part]
    if not isinstance(steps, list) or not steps or _kind(steps[-1]) != "ByteLevel":
        return False
    return all(
        _kind(step) == "Split"
        and step.get("behavior") == "Isolated"
        and step.get("pattern") in [{"Regex": pattern} for pattern in _PATTERNS]
        for step in steps[:-1]
    )
