"""Which fields are labels, how their values are spread, and where they contradict each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

MOST_VALUES = 200
"""A field with more values is no label."""
LEAST_REPEATS = 3
"""Nor is one whose values appear less often than this on average."""
IMBALANCE = 10.0
"""The most frequent label may be so many times as frequent as the rarest."""
FEW = 10
"""A label with fewer examples is hardly learned."""


@dataclass(frozen=True)
class Label:
    """A field with few distinct values.

    Attributes:
        field: as configs name it: ``cls``, ``text``, ``json.<path>``.
        counts: value → samples of each set, [sets]; the most frequent value first.
    """

    field: str
    counts: dict[str, list[int]]


def find_labels(table: pandas.DataFrame, names: list[str]) -> list[Label]:
    """The table's fields that are labels, ``cls`` first, ``text`` last."""
    paths = [name for name in table.columns if name.startswith("json.")]
    labels = []
    for field in ["cls", *paths, "text"]:
        values = _filled(table[field])
        distinct = values.nunique()
        if 2 <= distinct <= MOST_VALUES and len(values) >= LEAST_REPEATS * distinct:
            labels.append(Label(field, _count(table, field, names)))
    return labels


def free_texts(table: pandas.DataFrame, labels: list[Label]) -> list[str]:
    """The fields whose values are texts of their own: ``text`` and string-like ``json.<path>``, not
    labels.
    """
    taken = {label.field for label in labels}
    fields = []
    for field in ["text", *(name for name in table.columns if name.startswith("json."))]:
        values = _filled(table[field])
        if (
            field not in taken
            and values.nunique() > 1
            and values.str.contains(r"[^\W\d_]{2}").mean() > 0.5
        ):
            fields.append(field)
    return fields


def contradictions(table: pandas.DataFrame, same: str, field: str) -> list[list[int]]:
    """Groups of rows that ``same`` calls equal and whose ``field`` differs."""
    grouped = table[table[same].notna() & table[field].notna()]
    differing = grouped.groupby(same)[field].transform("nunique") > 1
    return [rows.index.tolist() for _, rows in grouped[differing].groupby(same)]


def _filled(values: pandas.Series) -> pandas.Series:
    return values[values.notna() & (values != "")]


def _count(table: pandas.DataFrame, field: str, names: list[str]) -> dict[str, list[int]]:
    values = _filled(table[field])
    totals = values.value_counts()
    by_set = {name: values[table["set"] == name].value_counts() for name in names}
    # By count, then by name, 2 before 10: pandas leaves the order of equals open.
    ranked = sorted(
        totals.index, key=lambda value: (-int(totals[value]), value.isdecimal() * len(value), value)
    )
    return {value: [int(by_set[name].get(value, 0)) for name in names] for value in ranked}
