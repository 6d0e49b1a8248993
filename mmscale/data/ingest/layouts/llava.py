"""LLaVA's instructions: conversations of human and gpt, with image and ``<image>`` in the text."""

from __future__ import annotations

from pathlib import Path

from mmscale.data.account import Account
from mmscale.data.ingest.conversation import SHAREGPT
from mmscale.data.ingest.conversation_tables import (
    ENDINGS,
    conversation_splits,
    has_media,
    is_conversation,
)
from mmscale.data.ingest.file_splits import fits
from mmscale.data.ingest.layout import LayoutOptions, Split
from mmscale.registry import LAYOUTS


class Llava:
    """Rows without a picture are conversations too. Paths are relative to the file, or in
    ``root``.
    """

    name = "llava"
    summary = "LLaVA: JSON with id, image, conversations (from, value) and <image> in the text"

    def matches(self, source: Path) -> bool:
        return fits(
            source,
            ENDINGS,
            lambda table: is_conversation(table, SHAREGPT) and has_media(table, SHAREGPT),
        )

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        return conversation_splits(source, SHAREGPT, options, account)


LAYOUTS.register("llava", Llava())
