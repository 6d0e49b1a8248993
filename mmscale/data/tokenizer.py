"""Byte-level BPE: trained on the run's own text, stored in the run and in the release.

Byte-level means any text round-trips and there is no unknown token. The `tokenizers` library does the work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmscale.durable import write_durably
from mmscale.errors import UserError

# Order is the id: never reorder, only append.
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|answer|>", "<|embed|>", "<|mask|>")
PAD, END, ANSWER, EMBED, MASK = range(len(SPECIAL_TOKENS))


class Tokenizer:
    """Text ↔ token ids. Special tokens are never read from text: ``"<|end|>"`` in data is seven characters."""

    def __init__(self, inner: tokenizers.Tokenizer, source: str) -> None:
        for number, token in enumerate(SPECIAL_TOKENS):
            if inner.token_to_id(token) != number:
                raise UserError(
                    f"{source}: special token {token} must have id {number}; train one with this project"
                )
        inner.encode_special_tokens = True
        self._inner = inner
        self.digest = hashlib.sha256(inner.to_str().encode()).hexdigest()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary of at most ``vocab_size`` tokens (256 bytes and the special tokens included)."""
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
        """Read ``tokenizer.json``. Raises `UserError` naming the file if it is missing or no tokenizer."""
        try:
            text = Path(path).read_text(encoding="utf-8")
            inner = tokenizers.Tokenizer.from_str(text)
        except FileNotFoundError:
            raise UserError(f"{path}: no such tokenizer file") from None
        except Exception as error:  # the library raises bare Exception for malformed files
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: not a tokenizer.json ({reason}); copy it again, or train one") from None
        return cls(inner, str(path))

    @classmethod
    def from_foreign(cls, path: str | Path) -> Tokenizer:
        """A byte-level BPE ``tokenizer.json`` of the `tokenizers` library, such as Qwen3's, made one of this project's.

        The project's special tokens come first; the id of every other token grows by their number. What the foreign
        tokenizer adds around a text is left out. Raises `UserError` if it is missing or of another kind.
        """
        try:
            tree = json.loads(Path(path).read_text(encoding="utf-8"))
            model = tree["model"]
            if model.get("type") != "BPE" or (tree.get("decoder") or {}).get("type") != "ByteLevel":
                raise UserError(
                    f"{path}: not a byte-level BPE tokenizer; train one, or use one such as Qwen3's"
                )
            shift = len(SPECIAL_TOKENS)
            added = [one | {"id": one["id"] + shift} for one in tree.get("added_tokens", [])]
            clash = {*SPECIAL_TOKENS} & {*model["vocab"], *(one["content"] for one in added)}
            model["vocab"] = dict(zip(SPECIAL_TOKENS, range(shift), strict=True)) | {
                token: number + shift for token, number in model["vocab"].items()
            }
        except FileNotFoundError:
            raise UserError(f"{path}: no such tokenizer file") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: not a tokenizer.json ({error!r})") from None
        if clash:
            raise UserError(
                f"{path}: already has a token {min(clash)}; it cannot be given this project's meaning"
            )
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        own = [{"id": number, "content": token} | plain for number, token in enumerate(SPECIAL_TOKENS)]
        tree |= {"model": model, "added_tokens": own + added, "post_processor": None}
        return cls(tokenizers.Tokenizer.from_str(json.dumps(tree)), str(path))

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json``."""
        write_durably(Path(path), self._inner.to_str())

    def __len__(self) -> int:
        return int(self._inner.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def lengths(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text."""
        return [len(one.ids) for one in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; special tokens are left out, broken UTF-8 becomes U+FFFD."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def __getstate__(self) -> str:
        return str(self._inner.to_str())

    def __setstate__(self, state: str) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state), "tokenizer")  # type: ignore[misc]
