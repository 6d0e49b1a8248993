"""Pictures, sounds and texts to the inputs of `MmscaleModel`, by the very functions that training
uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from mmscale.config import Config
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.data.special_tokens import ANSWER, EMBED
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError
from mmscale.hub.folder import release_folder
from mmscale.plugins import import_plugins
from mmscale.predict.query import Part, PartReader, Text, count_tokens, lay_query
from mmscale.predict.question import choose_prompt, read_question
from mmscale.release.open_release import read_small_files


class MmscaleProcessor(ProcessorMixin):
    """Makes a batch: one row for each question, or for each thing to embed.

    Args:
        run: the config of the run that the release comes from.
    """

    def __init__(self, run: Config, tokenizer: Tokenizer) -> None:
        self.run, self.tokenizer, self.chat_template = run, tokenizer, None
        self._reader = PartReader(run.media, tokenizer)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # fewer keywords
        cls, pretrained_model_name_or_path: str | PathLike[str], **keywords: Any
    ) -> MmscaleProcessor:
        """From a release folder, or one on the Hub. Raises `UserError` if it is none, or is damaged
        or changed. Keywords: those of the Hub, and ``plugins``, modules to import first.
        """
        import_plugins(keywords.pop("plugins", ()))
        return cls(*read_small_files(release_folder(pretrained_model_name_or_path, keywords)))

    def save_pretrained(self, *arguments: Any, **keywords: Any) -> None:
        """Not supported: raises `UserError`."""
        raise UserError(
            "save_pretrained: a release is written by mmscale export, from its run; copy the "
            "folder instead"
        )

    def __call__(
        self,
        text: Any = None,
        images: Any = None,
        audio: Any = None,
        prompt: str | None = None,
        embed: bool = False,
        **ignored: Any,
    ) -> BatchFeature:
        """The inputs of `MmscaleModel`: for `generate`, or with ``embed`` for the embeddings of its
        forward pass.

        ``text``, ``images`` and ``audio`` are single values or equally long lists, as
        `mmscale.load` takes them. ``prompt`` is that of the training task; left out, the one that
        was trained with such inputs.

        Raises:
            UserError: nothing was given, lists of different lengths, or something that cannot be
                used.
        """
        ignored.pop("return_tensors", None)  # they are always torch's
        if ignored:
            raise UserError(
                f"processor: {min(ignored)!r} means nothing here; give text, images, audio, "
                "prompt, embed"
            )
        segments = [
            self._segment(image, sound, words, prompt, embed)
            for image, sound, words in _rows(images, audio, text)
        ]
        lengths = [count_tokens(segment, self.run.media) for segment in segments]
        if max(lengths) > self.run.data.seq_len:
            raise UserError(
                f"data.seq_len={self.run.data.seq_len}: a question takes {max(lengths)} tokens; "
                "shorten it"
            )
        builder = BatchBuilder(len(segments), max(lengths), self.run.media)
        last = []
        for segment in segments:
            builder.open_sequence()
            last.append(lay_query(builder, segment))
        batch = builder.finish()
        tensors = batch.tensors()
        if embed:
            tensors["contrastive.at_T"] = torch.tensor(last)
        chunks = torch.tensor(batch.audio_chunks, dtype=torch.int64).reshape(-1, 3)
        return BatchFeature(
            {**tensors, "audio_chunks": chunks, "images_padded": torch.tensor(batch.images_padded)}
        )

    def decode(self, ids: Any, **ignored: Any) -> str:
        """The text of one answer's ids."""
        return self.tokenizer.decode(ids.tolist() if hasattr(ids, "tolist") else ids)

    def batch_decode(self, ids: Any, **ignored: Any) -> list[str]:
        """The texts of `MmscaleModel.generate`'s rows."""
        return [self.decode(row) for row in ids]

    def _segment(
        self, image: Any, audio: Any, text: Any, prompt: str | None, embed: bool
    ) -> list[Part]:
        parts, trained = read_question(self._reader, self.run, image, audio, text)
        words = [] if embed else self.tokenizer.encode(choose_prompt(prompt, trained))
        return [*parts, Text(np.array([*words, EMBED if embed else ANSWER], np.int64))]


def _rows(*columns: Any) -> list[tuple[Any, ...]]:
    """One (image, audio, text) for each row; single values are one row."""
    # A pair of an array and a rate is one sound, not a list of two.
    listed = [
        None if column is None else list(column) if isinstance(column, list) else [column]
        for column in columns
    ]
    lengths = {len(column) for column in listed if column is not None}
    if len(lengths) != 1 or lengths == {0}:
        raise UserError("processor: give text, images or audio, and lists of one length")
    (count,) = lengths
    full: list[Sequence[Any]] = [
        column if column is not None else [None] * count for column in listed
    ]
    return list(zip(*full, strict=True))
