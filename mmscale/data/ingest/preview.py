"""What a pack would make of a source, without writing anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmscale.config import MediaConfig
from mmscale.data.account import Account
from mmscale.data.ingest.open_layout import SourceOptions
from mmscale.data.ingest.sources import OpenSource, open_source
from mmscale.data.ingest.table_row import TableMedia

_SAMPLES = 3
_SHOWN_CHARACTERS = 100


@dataclass(frozen=True)
class Preview:
    """An opened source, and what of it would not be packed."""

    source: Path
    opened: OpenSource
    account: Account

    def lines(self) -> Iterator[str]:
        """For people: each set, its first samples, then what becomes of each column and file."""
        yield f"{self.source}: layout {self.opened.layout}"
        for name, source in self.opened.sets.items():
            samples = source.portions[-1].stop
            yield f"{f'set {name}' if name else 'one set'}: {samples:,} samples, such as"
            for row in source.first(_SAMPLES):
                yield f"  {row.key}"
                yield from (f"    {field}: {_shown(value)}" for field, value in row.fields.items())
        uses = self.uses()
        width = max(map(len, uses), default=0)
        yield "what becomes of each column and file"
        yield from (f"  {column:{width}}  → {words}" for column, words in uses.items())
        left = self.account.lines()
        yield "what is left out, or may surprise" if left else "nothing is left out"
        yield from (f"  {line}" for line in left)

    def uses(self) -> dict[str, str]:
        """What becomes of each column or kind of file, of all sets."""
        return {
            column: words
            for source in self.opened.sets.values()
            for column, words in source.uses().items()
        }

    def facts(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "layout": self.opened.layout,
            "sets": {
                name: {
                    "samples": source.portions[-1].stop,
                    "first": [
                        {"key": row.key, "fields": {f: _shown(v) for f, v in row.fields.items()}}
                        for row in source.first(_SAMPLES)
                    ],
                }
                for name, source in self.opened.sets.items()
            },
            "uses": self.uses(),
            "left_out": self.account.lines(),
        }


def preview(
    source: Path, out: Path, options: SourceOptions, media: MediaConfig, strict: bool = False
) -> Preview:
    """Look through ``source`` as `pack` does. Raises what it raises before it writes."""
    account = Account()
    opened = open_source(source, options, media, out, account)
    if strict:
        account.tell(strict)
    return Preview(source, opened, account)


def _shown(value: TableMedia | bytes) -> str:
    if isinstance(value, TableMedia):
        return f"{value.name} ({value.size:,} bytes)"
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return f"{len(value):,} bytes"
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"
