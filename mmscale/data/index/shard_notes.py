"""What of a shard was left out, or reads otherwise than it may be meant: its part of the account of
an index pass.
"""

from __future__ import annotations

import re

from mmscale.data.account import Account, Notice
from mmscale.data.index.probe import kind_of
from mmscale.data.index.sample_keys import is_metadata
from mmscale.data.index.tar_headers import NO_END

UNREAD = Notice(
    "members with endings that nothing reads",
    "rename them if they are pictures, sound, texts, classes or JSON (docs/formats.md)",
)
UNNAMED = Notice(
    "hidden members, and members without an ending",
    "they belong to no sample; name them KEY.ENDING if they should",
)
APART = Notice(
    "samples with a dot in their key, which webdataset would read as fields of fewer samples",
    "--key-dots first reads them so",
)
BROKEN = Notice(
    "samples left out because a member cannot be used",
    "index/problems.jsonl says why; repair the members and index again",
)
NO_CLASS = Notice(
    'classes that look like a missing value ("", "nan", "None")',
    "leave the class away where a sample has none",
)
NUMBER_CLASS = Notice(
    "classes that look like numbers",
    "if the numbers stand for names, write the names: a model answers with what stands there",
)
MARKED_CLASS = Notice(
    "classes that begin with a byte-order mark (\\ufeff)",
    "save the source as UTF-8 without one (Python: encoding='utf-8-sig' reads it away)",
)

_BOM = "\ufeff".encode()
_NUMBER = re.compile(rb"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
_NONE = re.compile(rb"(?:|nan|none|null|n/a|<na>)", re.IGNORECASE)
_LONGEST_CLASS = 64
# The usual names of a class in a sample's JSON. Numbers are numbers there.
_JSON_CLASS = re.compile(
    rb'"(?:label|labels|class|cls|category|target)"\s*:\s*(?:'
    rb'(?P<none>NaN|"(?:nan|none|null|n/a|<na>)?")|(?P<marked>"(?:\\ufeff|\xef\xbb\xbf)))',
    re.IGNORECASE,
)


class ShardNotes:
    """Collects the notices of one shard."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._account = Account()
        self._unread: dict[str, tuple[str, int]] = {}

    def left_out(self, name: str) -> None:
        """Note a file that belongs to no sample."""
        if not is_metadata(name):
            self._note(UNNAMED, name)

    def forgiven(self, notice: Notice, what: str) -> None:
        """Note what an index pass goes on after."""
        self._account.note(notice, what if notice is NO_END else f"{self._shard}: {what}")

    def member(self, name: str, field: str, text: bytes | None) -> None:
        """Note what is odd in a member; ``text``: its payload, if it is a text."""
        kind = kind_of(field)
        if kind is None:
            ending = field.rpartition(".")[2]
            first, count = self._unread.get(ending, (name, 0))
            self._unread[ending] = first, count + 1
        elif text is not None and kind == "cls":
            self._class(name, text)
        elif text is not None and kind == "json" and (found := _JSON_CLASS.search(text)):
            self._note(NO_CLASS if found["none"] else MARKED_CLASS, name)

    def apart(self, key: str) -> None:
        """Note a sample whose key is not webdataset's."""
        self._note(APART, key)

    def broken(self, key: str, reason: str) -> None:
        """Note a sample that is left out."""
        self._note(BROKEN, f"{key}: {reason}")

    def finish(self) -> Account:
        """Everything that was noted."""
        for first, count in self._unread.values():
            self._account.note(UNREAD, f"{self._shard}: {first}", count)
        return self._account

    def _class(self, name: str, text: bytes) -> None:
        shown = text.strip()
        if shown.startswith(_BOM):
            self._note(MARKED_CLASS, name)
        elif _NONE.fullmatch(shown):
            self._note(NO_CLASS, name)
        elif len(shown) <= _LONGEST_CLASS and _NUMBER.fullmatch(shown):
            self._note(NUMBER_CLASS, f"{name}: {shown.decode()}")

    def _note(self, notice: Notice, what: str) -> None:
        self._account.note(notice, f"{self._shard}: {what}")
