"""OpenAI's messages: role and content, which is a text or a list of parts with types."""

from __future__ import annotations

from pathlib import Path

from mmscale.data.account import Account
from mmscale.data.ingest.conversation import OPENAI
from mmscale.data.ingest.conversation_tables import ENDINGS, conversation_splits, is_conversation
from mmscale.data.ingest.file_splits import fits
from mmscale.data.ingest.layout import LayoutOptions, Split
from mmscale.registry import LAYOUTS


class OpenAiMessages:
    """Where a row has a column of images, ``<image>`` in a text and ``{"type": "image"}`` stand for
    them; else ``<image>`` is text.
    """

    name = "messages"
    summary = "OpenAI: JSON lines with messages (role, content) and tools"

    def matches(self, source: Path) -> bool:
        return fits(source, ENDINGS, lambda table: is_conversation(table, OPENAI))

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        return conversation_splits(source, OPENAI, options, account)


LAYOUTS.register("messages", OpenAiMessages())
