"""A table: CSV and TSV, JSON lines, a JSON array, Parquet."""

from __future__ import annotations

from pathlib import Path

from mmscale.data.account import Account
from mmscale.data.ingest.csv_source import TABLES
from mmscale.data.ingest.layout import LayoutOptions, Split, SplitParquet
from mmscale.data.ingest.parquet_source import parquet_files, parquet_splits
from mmscale.data.ingest.split_names import divide, split_in
from mmscale.data.ingest.table_rows import by_split_column, read_table, renamed
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

ENDINGS = (*TABLES, ".parquet")


class Table:
    """A file of rows, or a folder of Parquet files; a column ``split`` makes splits."""

    name = "table"
    summary = "a table: .csv, .tsv, .jsonl, .json (an array), .parquet, or a folder of .parquet"

    def matches(self, source: Path) -> bool:
        if source.is_dir():
            return bool(parquet_files(source))
        return source.suffix.lower() in ENDINGS

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        if tables := parquet_files(source):
            splits = divide(((path, split_in(path.stem)) for path in tables), account)
            if splits.keys() != {""}:
                return {name: SplitParquet(source, files) for name, files in splits.items()}
            return parquet_splits(SplitParquet(source, tables))
        if source.suffix.lower() not in TABLES:
            raise UserError(
                f"{source}: not a kind of source that is read; use a folder or a file that ends in "
                f"{', '.join(ENDINGS)}"
            )
        uses: dict[str, str] = {}
        rows = renamed(read_table(source, options, account), options, account, source, uses)
        return {**by_split_column(rows, source.parent, uses)}


LAYOUTS.register("table", Table())
