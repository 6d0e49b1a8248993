"""ShareGPT: conversations of text with from and value, with system, tools and calls of them."""

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


class ShareGpt:
    """As LLaVA's, without media."""

    name = "sharegpt"
    summary = "ShareGPT: JSON with conversations (from, value), system, tools"

    def matches(self, source: Path) -> bool:
        return fits(
            source,
            ENDINGS,
            lambda table: is_conversation(table, SHAREGPT) and not has_media(table, SHAREGPT),
        )

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        return conversation_splits(source, SHAREGPT, options, account)


LAYOUTS.register("sharegpt", ShareGpt())
