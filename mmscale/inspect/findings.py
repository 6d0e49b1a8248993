"""From the table to what a person should know first, in plain words, each with its remedy and
examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import TYPE_CHECKING

from mmscale.data.index.shard_notes import BROKEN
from mmscale.inspect.checks import CHECKS, Severity
from mmscale.inspect.duplicates import Overlap, repeats
from mmscale.inspect.labels import FEW, IMBALANCE, Label, contradictions
from mmscale.inspect.named_set import NamedSet
from mmscale.inspect.text import printable

if TYPE_CHECKING:
    import pandas

EXAMPLES = 5
"""Examples of a finding that are kept; of groups, so many groups of at most GROUP samples."""
GROUP = 4
PROBLEMS = 20
"""Lines of an index's own problems that are kept."""

# Characters of a label that a title quotes.
_LONGEST_VALUE = 40

_ORDER: dict[Severity, int] = {"serious": 0, "check": 1, "note": 2}
_NOUNS = {
    "image": ("picture", "pictures"),
    "audio": ("clip", "clips"),
    "text": ("text", "texts"),
    "label": ("label", "labels"),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to know.

    Attributes:
        code: what kind of finding it is, for programs.
        severity: ``serious``, ``check`` or ``note``.
        count: samples (or labels) concerned.
        title: one plain sentence.
        remedy: what to do.
        examples: rows of the table, in groups that belong together.
        detail: column of the table that says more of each example.
        lines: examples that are not samples.
    """

    code: str
    severity: Severity
    count: int
    title: str
    remedy: str
    examples: list[list[int]] = field(default_factory=list)
    detail: str = ""
    lines: list[str] = field(default_factory=list)


def find(
    table: pandas.DataFrame, sets: list[NamedSet], labels: list[Label], overlaps: list[Overlap]
) -> list[Finding]:
    """Everything worth knowing, the gravest first. ``table`` has its groups and checks added."""
    names = [named_set.name for named_set in sets]
    label_fields = [label.field for label in labels]
    modalities = compared(labels)
    findings = [
        *_across(table, overlaps),
        *_single(table, names),
        *_left_out(sets),
        *_accounts(sets),
        *_contradicting(table, label_fields, modalities),
        *_within(table, names, modalities),
        *_label_faults(labels, names),
        *_lacking(table, names),
        *_rates(table, names),
        *_subsets(sets),
    ]
    return sorted(findings, key=lambda finding: _ORDER[finding.severity])


def compared(labels: list[Label]) -> list[str]:
    """The modalities whose repetitions mean something: not texts that are labels."""
    return [m for m in ("image", "audio", "text") if m not in {label.field for label in labels}]


def count_of(number: int, modality: str) -> str:
    """Such as ``1 picture`` and ``2,000 pictures``."""
    return f"{number:,} {_NOUNS[modality][number != 1]}"


def _across(table: pandas.DataFrame, overlaps: list[Overlap]) -> Iterator[Finding]:
    for overlap in overlaps:
        count, modality = len(overlap.samples), overlap.modality
        many = count != 1
        if not overlap.near:
            says = f"{('is', 'are')[many]} also in {overlap.whole}"
        elif modality == "image":
            says = f"{('looks', 'look')[many]} like one in {overlap.whole}"
        else:
            verb = ("differs", "differ")[many]
            says = f"{verb} from one in {overlap.whole} in case, spaces or punctuation only"
        # A caption may rightly stand with two pictures; a text that is all there is may not.
        grave = modality != "text" or bool(
            table[["image_bytes", "audio_bytes"]].isna().all(axis=None)
        )
        pairs = zip(overlap.samples.tolist(), overlap.matches.tolist(), strict=True)
        yield Finding(
            code=f"overlap_{modality}_{'alike' if overlap.near else 'same'}",
            severity=("check" if overlap.near else "serious") if grave else "note",
            count=count,
            title=f"{count_of(count, modality)} of {overlap.part} {says}",
            remedy=f"Take them out of one of the two; a score on {overlap.part} would partly "
            "measure memory."
            if grave
            else "Their media may differ; look at some, and take them out of "
            f"{overlap.part} if not.",
            examples=[list(pair) for pair in islice(pairs, EXAMPLES)],
        )


def _single(table: pandas.DataFrame, names: list[str]) -> Iterator[Finding]:
    for check in CHECKS:
        for name in names:
            rows = table.index[table[check.name] & (table["set"] == name)].tolist()
            if rows:
                noun = _NOUNS[check.modality][len(rows) != 1]
                says = check.singular if len(rows) == 1 else check.plural
                yield Finding(
                    code=check.name,
                    severity=check.severity,
                    count=len(rows),
                    title=f"{len(rows):,} {noun} of {name} {says}",
                    remedy=check.remedy,
                    examples=[[row] for row in rows[:EXAMPLES]],
                    detail=check.detail,
                )


def _left_out(sets: list[NamedSet]) -> Iterator[Finding]:
    for named_set in sets:
        count = named_set.problem_count
        members = "member" if count == 1 else "members"
        if count:
            yield Finding(
                code="index_problems",
                severity="serious",
                count=count,
                title=f"{count:,} {members} of {named_set.name} could not be used when it was "
                "indexed",
                remedy="Their samples are in no figure of this page and in no training; repair "
                "them, then run `mmscale data index` again.",
                lines=list(named_set.problems(PROBLEMS)),
            )


def _accounts(sets: list[NamedSet]) -> Iterator[Finding]:
    """What the index pass noted; members that cannot be used are `_left_out`'s."""
    for named_set in sets:
        for what, remedy, count, examples in named_set.account().as_json():
            if what != BROKEN.what:
                yield Finding(
                    code="index_notes",
                    severity="check",
                    count=count,
                    title=f"The index of {named_set.name} notes {count:,} {what}",
                    remedy=f"{remedy[0].upper()}{remedy[1:]}.",
                    lines=examples,
                )


def _contradicting(
    table: pandas.DataFrame, label_fields: list[str], modalities: list[str]
) -> Iterator[Finding]:
    for modality in modalities:
        for label in label_fields:
            groups = contradictions(table, f"{modality}_same", label)
            if groups:
                verb = "appears" if len(groups) == 1 else "appear"
                yield Finding(
                    code=f"contradiction_{modality}",
                    severity="check",
                    count=len(groups),
                    title=f"{count_of(len(groups), modality)} {verb} with different values of "
                    f"{printable(label)}",
                    remedy="Decide which value is right; the same input with two answers cannot be "
                    "learned.",
                    examples=[group[:GROUP] for group in groups[:EXAMPLES]],
                    detail=label,
                )


def _within(table: pandas.DataFrame, names: list[str], modalities: list[str]) -> Iterator[Finding]:
    for modality in modalities:
        for name in names:
            same = repeats(table, f"{modality}_same", name)
            if same:
                extra = sum(len(group) - 1 for group in same)
                yield Finding(
                    code=f"repeated_{modality}",
                    severity="check" if modality != "text" else "note",
                    count=extra,
                    title=f"{count_of(extra, modality)} of {name} "
                    f"{('repeats', 'repeat')[extra != 1]} another of {name}",
                    remedy="Keep one of each, unless the repetition is meant; repeats weigh more "
                    "in training.",
                    examples=[group[:GROUP].tolist() for group in same[:EXAMPLES]],
                )
        if f"{modality}_alike" in table:
            yield from _within_alike(table, names, modality)


def _within_alike(table: pandas.DataFrame, names: list[str], modality: str) -> Iterator[Finding]:
    says = "look alike" if modality == "image" else "differ in case, spaces or punctuation only"
    for name in names:
        groups = [
            group
            for group in repeats(table, f"{modality}_alike", name)
            if table.loc[group, f"{modality}_hash"].nunique() > 1
        ]
        if groups:
            count = sum(map(len, groups))
            kinds = "1 group" if len(groups) == 1 else f"{len(groups):,} groups"
            yield Finding(
                code=f"alike_{modality}",
                severity="note",
                count=count,
                title=f"{count_of(count, modality)} of {name}, in {kinds}, {says}",
                remedy="Look at some; keep one of each group if they are the same thing twice.",
                examples=[group[:GROUP].tolist() for group in groups[:EXAMPLES]],
            )


def _label_faults(labels: list[Label], names: list[str]) -> Iterator[Finding]:
    for label in labels:
        for whole, part in combinations(range(len(names)), 2):
            yield from _unseen(label, names, part, whole)
        for place, name in enumerate(names):
            yield from _imbalance(label, place, name)


def _unseen(label: Label, names: list[str], part: int, whole: int) -> Iterator[Finding]:
    there = [value for value, counts in label.counts.items() if counts[part]]
    unseen = [value for value in there if not label.counts[value][whole]]
    if not any(counts[whole] for counts in label.counts.values()):
        return  # it has no such field
    if unseen and len(unseen) == len(there):
        yield Finding(
            code="label_disjoint",
            severity="note",
            count=len(unseen),
            title=f"No value of {printable(label.field)} in {names[part]} appears in "
            f"{names[whole]}",
            remedy="Right if the data was split by it, as by speaker or writer; wrong if it is "
            "what is to be learned.",
            lines=unseen[:PROBLEMS],
        )
    elif unseen:
        values, verb = ("value", "appears") if len(unseen) == 1 else ("values", "appear")
        yield Finding(
            code="label_unseen",
            severity="serious" if label.field == "cls" else "check",
            count=len(unseen),
            title=f"{len(unseen):,} {values} of {printable(label.field)} in {names[part]} never "
            f"{verb} in {names[whole]}",
            remedy=f"Bring examples into {names[whole]}, or leave these out of {names[part]}.",
            lines=unseen[:PROBLEMS],
        )


def _imbalance(label: Label, place: int, name: str) -> Iterator[Finding]:
    counts = {value: by_set[place] for value, by_set in label.counts.items() if by_set[place]}
    if len(counts) < 2:
        return
    most, least = max(counts, key=lambda v: counts[v]), min(counts, key=lambda v: counts[v])
    ratio = counts[most] / counts[least]
    says = f"“{_short(most)}” is {ratio:,.0f} times as frequent as “{_short(least)}”"
    few = [f"{value}: {number:,}" for value, number in counts.items() if number < FEW]
    if ratio > IMBALANCE:
        yield Finding(
            code="label_imbalance",
            severity="check",
            count=len(counts),
            title=f"{printable(label.field)} is unbalanced in {name}: {says}",
            remedy="Gather more of the rare ones, or weigh them up; judge by macro-F1 rather than "
            "by accuracy.",
            lines=few[:PROBLEMS],
        )


def _lacking(table: pandas.DataFrame, names: list[str]) -> Iterator[Finding]:
    columns = {"image": "image_bytes", "audio": "audio_bytes", "text": "text_characters"}
    for modality, column in columns.items():
        for name in names:
            there = table.loc[table["set"] == name, column].notna()
            lacking = there.index[~there].tolist()
            if lacking and there.any():
                yield Finding(
                    code=f"lacking_{modality}",
                    severity="check",
                    count=len(lacking),
                    title=f"{len(lacking):,} {'sample' if len(lacking) == 1 else 'samples'} of "
                    f"{name} {'has' if len(lacking) == 1 else 'have'} no {_NOUNS[modality][0]}; "
                    "the others have one",
                    remedy="Complete them if they should have one; tasks that need it pass over "
                    "them.",
                    examples=[[row] for row in lacking[:EXAMPLES]],
                )
            elif not there.any() and table[column].notna().any():
                yield Finding(
                    code=f"lacking_{modality}",
                    severity="check",
                    count=len(lacking),
                    title=f"{name} has no {_NOUNS[modality][1]}, the other data has",
                    remedy="Check that the same fields were packed into each.",
                )


def _rates(table: pandas.DataFrame, names: list[str]) -> Iterator[Finding]:
    rates = sorted({int(rate) for rate in table["audio_rate"].dropna()})
    if len(rates) > 1:
        yield Finding(
            code="audio_rates",
            severity="note",
            count=int(table["audio_rate"].notna().sum()),
            title=f"Sound comes at {len(rates)} sample rates: "
            f"{_enumerate(f'{rate:,} Hz' for rate in rates[:6])}",
            remedy="All is resampled for training; a model may still hear which rate a clip had, "
            "so see that no label goes with one.",
        )


def _subsets(sets: Iterable[NamedSet]) -> Iterator[Finding]:
    for named_set in sets:
        if named_set.is_subset:
            yield Finding(
                code="subset",
                severity="note",
                count=len(named_set.looked_at),
                title=f"Only {len(named_set.looked_at):,} of the {len(named_set.dataset):,} "
                f"samples of {named_set.name} were looked at",
                remedy="Amounts are of all; everything else is of the drawn samples, and finds "
                "too few duplicates. Run without --sample to look at all.",
            )


def _short(value: str) -> str:
    """A value of the data, fit to be printed to a terminal."""
    return printable(value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 1]}…")


def _enumerate(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
