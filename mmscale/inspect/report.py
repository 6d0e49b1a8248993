"""Gathers everything a report shows, from opened sets to finished figures; `page` only lays it
out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from mmscale.inspect.charts import Histogram, histogram
from mmscale.inspect.checks import CHECKS, QualityCheck
from mmscale.inspect.duplicates import Overlap, overlaps, pairs, repeats
from mmscale.inspect.exhibits import ClipExhibit, Thumbnail, clip, thumbnail
from mmscale.inspect.findings import Finding, compared, find
from mmscale.inspect.labels import Label, find_labels, free_texts
from mmscale.inspect.named_set import Amount, NamedSet, count
from mmscale.inspect.text import script_of
from mmscale.prf import Permutation, derive_key

if TYPE_CHECKING:
    import pandas

# Of all sets together, so that the page stays a few megabytes.
THUMBNAILS, CLIPS, TEXTS = 70, 12, 24

# Columns that show whether there is anything of a modality.
_COLUMNS = {
    "image": ["image_bytes"],
    "audio": ["audio_bytes"],
    "text": ["text_characters"],
    "label": ["cls", "cls_fault", "json_fault"],
}


@dataclass(frozen=True)
class Exhibit:
    """A sample as the page shows it. ``says``: its label or text, or what is the matter."""

    set: str
    shard: str  # other shards may have a sample of the same key
    key: str
    says: str
    thumbnail: Thumbnail | None = None
    clip: ClipExhibit | None = None


@dataclass(frozen=True)
class FindingWithExamples:
    """A finding with its examples made visible."""

    finding: Finding
    examples: list[list[Exhibit]]


@dataclass(frozen=True, kw_only=True)
class QualityReport:
    """What the page says.

    Attributes:
        checks: those that apply to the data; ``check_counts`` their samples, by check and set.
        repeated: samples too many, by kind of duplicate (``image_same``, ``text_alike``, …) and
            set.
        pairs: every two sets; ``shared`` samples of the first that are in the second, by kind and
            pair.
        scripts: texts by field, script and set.
    """

    sets: list[NamedSet]
    amounts: list[Amount]
    findings: list[FindingWithExamples]
    checks: list[QualityCheck]
    check_counts: dict[str, list[int]]
    repeated: dict[str, list[int]]
    pairs: list[tuple[str, str]]
    shared: dict[str, list[int]]
    labels: list[Label]
    scripts: dict[str, dict[str, list[int]]]
    text_charts: list[Histogram]
    image_charts: list[Histogram]
    audio_charts: list[Histogram]
    pictures: list[tuple[NamedSet, list[Exhibit]]]
    clips: list[tuple[NamedSet, list[Exhibit]]]
    texts: list[tuple[NamedSet, list[Exhibit]]]

    @property
    def fields(self) -> list[str]:
        """Exact names of all fields, sorted."""
        return sorted({field for amount in self.amounts for field in amount.fields})

    def as_json(self) -> dict[str, Any]:
        """Everything but the exhibits, for programs."""
        names = [named_set.name for named_set in self.sets]
        return {
            "sets": [
                {
                    "name": named_set.name,
                    "source": named_set.source,
                    "digests": named_set.dataset.digests,
                }
                | asdict(amount)
                | {"looked_at": len(named_set.looked_at), "problems": named_set.problem_count}
                for named_set, amount in zip(self.sets, self.amounts, strict=True)
            ],
            "warnings": [_finding_json(shown) for shown in self.findings],
            "checks": {
                name: dict(zip(names, counts, strict=True))
                for name, counts in self.check_counts.items()
            },
            "repeated": {
                kind: dict(zip(names, counts, strict=True))
                for kind, counts in self.repeated.items()
            },
            "shared": {
                kind: [
                    {"part": part, "whole": whole, "samples": samples}
                    for (part, whole), samples in zip(self.pairs, counts, strict=True)
                ]
                for kind, counts in self.shared.items()
            },
            "labels": {
                label.field: {
                    v: dict(zip(names, counts, strict=True)) for v, counts in label.counts.items()
                }
                for label in self.labels
            },
            "scripts": {
                field: {
                    script: dict(zip(names, counts, strict=True))
                    for script, counts in by_script.items()
                }
                for field, by_script in self.scripts.items()
            },
        }


def build_report(
    sets: list[NamedSet], table: pandas.DataFrame, seed: int, progress: bool
) -> QualityReport:
    """Draw every conclusion from ``table``, to which groups and checks must have been added."""
    names = [named_set.name for named_set in sets]
    labels = find_labels(table, names)
    modalities = compared(labels)
    exhibitor = _Exhibitor(sets, table, labels, seed)
    across = [overlap for modality in modalities for overlap in overlaps(table, names, modality)]
    conclusions = find(table, sets, labels, across)
    with tqdm(desc="draw", unit="sample", disable=not progress) as bar:
        exhibitor.bar = bar
        findings = [
            FindingWithExamples(finding, exhibitor.examples(finding)) for finding in conclusions
        ]
        pictures = exhibitor.gallery("image", "image_hash", THUMBNAILS)
        clips = exhibitor.gallery("audio", "audio_hash", CLIPS)
        texts = exhibitor.gallery("text", "text_hash", TEXTS) if "text" in modalities else []
    checks = [check for check in CHECKS if table[_COLUMNS[check.modality]].notna().any(axis=None)]
    kinds = [
        kind
        for modality in modalities
        if table[f"{modality}_hash"].notna().any()
        for kind in (f"{modality}_same", f"{modality}_alike")
        if kind in table
    ]
    texts_of = {field: table[field] for field in free_texts(table, labels)}
    return QualityReport(
        sets=sets,
        amounts=[count(named_set.dataset) for named_set in sets],
        findings=findings,
        checks=checks,
        check_counts={check.name: _by_set(table, names, check.name) for check in checks},
        repeated=_repeated(table, names, kinds),
        pairs=pairs(names),
        shared=_shared(across, pairs(names), kinds),
        labels=labels,
        scripts={
            field: _scripts(table, names, field, values) for field, values in texts_of.items()
        },
        text_charts=_text_charts(table, names, list(texts_of)),
        image_charts=_image_charts(table, names),
        audio_charts=_audio_charts(table, names),
        pictures=pictures,
        clips=clips,
        texts=texts,
    )


class _Exhibitor:
    """Makes exhibits of rows of the table; the few samples shown are read once more for it."""

    bar: tqdm[Any]

    def __init__(
        self, sets: list[NamedSet], table: pandas.DataFrame, labels: list[Label], seed: int
    ) -> None:
        self._sets = {named_set.name: named_set for named_set in sets}
        self._table, self._seed = table, seed
        self._says = ["text", *(label.field for label in labels)]
        self._thumbnails: dict[int, Thumbnail | None] = {}

    def examples(self, finding: Finding) -> list[list[Exhibit]]:
        pictured = finding.code.partition("_")[0] == "image" or "_image" in finding.code
        return [
            [
                self._exhibit(row, picture=pictured, sound=False, detail=finding.detail)
                for row in group
            ]
            for group in finding.examples
        ]

    def gallery(
        self, modality: str, column: str, most: int
    ) -> list[tuple[NamedSet, list[Exhibit]]]:
        """Of every set that has some, sound samples drawn under the seed, in the order of the
        set.
        """
        shown = []
        for name, named_set in self._sets.items():
            rows = self._table.index[
                (self._table["set"] == name) & self._table[column].notna()
            ].to_numpy()
            if not len(rows):
                continue
            number = min(len(rows), max(1, most // len(self._sets)))
            key = derive_key("inspect gallery", self._seed, modality, *named_set.dataset.digests)
            drawn = np.sort(rows[Permutation(key, len(rows))(np.arange(number))])
            exhibits = [
                self._exhibit(row, picture=modality == "image", sound=modality == "audio")
                for row in drawn.tolist()
            ]
            shown.append((named_set, exhibits))
        return shown

    def _exhibit(self, row: int, picture: bool, sound: bool, detail: str = "") -> Exhibit:
        self.bar.update()
        facts = self._table.loc[row]
        dataset, sample = self._sets[facts["set"]].dataset, int(facts["sample"])
        if picture and row not in self._thumbnails:
            there = isinstance(facts["image_hash"], str)
            self._thumbnails[row] = thumbnail(dataset, sample) if there else None
        columns = [detail] if detail else self._says
        says = (
            facts[column] for column in columns if isinstance(facts[column], str) and facts[column]
        )
        return Exhibit(
            set=facts["set"],
            shard=facts["shard"],
            key=facts["key"],
            says=next(says, ""),
            thumbnail=self._thumbnails[row] if picture else None,
            clip=clip(dataset, sample) if sound else None,
        )


def _finding_json(shown: FindingWithExamples) -> dict[str, Any]:
    finding = shown.finding
    return {
        "code": finding.code,
        "severity": finding.severity,
        "count": finding.count,
        "title": finding.title,
        "remedy": finding.remedy,
        "examples": [
            [{"set": exhibit.set, "shard": exhibit.shard, "key": exhibit.key} for exhibit in group]
            for group in shown.examples
        ],
        "lines": finding.lines,
    }


def _by_set(table: pandas.DataFrame, names: list[str], column: str) -> list[int]:
    return [int(table.loc[table["set"] == name, column].sum()) for name in names]


def _repeated(table: pandas.DataFrame, names: list[str], kinds: list[str]) -> dict[str, list[int]]:
    return {
        kind: [sum(len(group) - 1 for group in repeats(table, kind, name)) for name in names]
        for kind in kinds
    }


def _shared(
    across: list[Overlap], pairs: list[tuple[str, str]], kinds: list[str]
) -> dict[str, list[int]]:
    """Equal samples count as alike too."""
    return {
        kind: [
            sum(
                len(overlap.samples)
                for overlap in across
                if kind.startswith(overlap.modality)
                and (overlap.part, overlap.whole) == pair
                and (kind.endswith("_alike") or not overlap.near)
            )
            for pair in pairs
        ]
        for kind in kinds
    }


def _scripts(
    table: pandas.DataFrame, names: list[str], field: str, values: pandas.Series
) -> dict[str, list[int]]:
    scripts = table["text_script"] if field == "text" else values.dropna().map(script_of)
    counts = scripts.dropna().value_counts()
    ranked = sorted(counts.index, key=lambda script: (-int(counts[script]), script))
    of_set = table["set"].reindex(scripts.index)
    return {
        script: [int(((scripts == script) & (of_set == name)).sum()) for name in names]
        for script in ranked
    }


def _text_charts(table: pandas.DataFrame, names: list[str], fields: list[str]) -> list[Histogram]:
    charts = []
    if "text" in fields:
        charts.append(
            _chart(table, names, "Length of a text", "characters", table["text_characters"])
        )
    for field in fields:
        if field != "text":
            title = f"Length of {field}"
            charts.append(_chart(table, names, title, "characters", table[field].str.len()))
    return [chart for chart in charts if chart is not None]


def _image_charts(table: pandas.DataFrame, names: list[str]) -> list[Histogram]:
    width, height = table["image_width"], table["image_height"]
    charts = [
        _chart(table, names, "Width", "pixels", width),
        _chart(table, names, "Height", "pixels", height),
        _chart(
            table, names, "Aspect ratio, width to height", "", (width / height).astype("Float64")
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _audio_charts(table: pandas.DataFrame, names: list[str]) -> list[Histogram]:
    charts = [
        _chart(table, names, "Length of a clip", "s", table["audio_seconds"]),
        _chart(table, names, "Level of a clip", "dB of full scale", table["audio_level"]),
        _chart(table, names, "Sample rate", "Hz", table["audio_rate"]),
    ]
    return [chart for chart in charts if chart is not None]


def _chart(
    table: pandas.DataFrame, names: list[str], title: str, unit: str, values: pandas.Series
) -> Histogram | None:
    of_sets: Iterable[pandas.Series] = (values[table["set"] == name].dropna() for name in names)
    return histogram(
        title,
        unit,
        [
            (name, of_set.to_numpy(dtype=np.float64))
            for name, of_set in zip(names, of_sets, strict=True)
        ],
    )
