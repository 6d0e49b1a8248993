"""What is looked for in single samples, each with its limit, its words, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mmscale.inspect.picture import BLANK_CONTRAST

if TYPE_CHECKING:
    import pandas

Severity = Literal["serious", "check", "note"]
Modality = Literal["image", "audio", "text", "label"]

TINY_SIDE = 24  # pixels
LONG_ASPECT = 4.0
SILENT_PEAK_DB = -84.0  # about two steps of 16 bits
QUIET_LEVEL_DB = -50.0  # speech is recorded at -35 to -15
CLIPPED_SAMPLES = 10
SHORT_S = 0.1


@dataclass(frozen=True)
class QualityCheck:
    """One question asked of every sample.

    Attributes:
        name: in tables and JSON.
        modality: whose section and noun it has.
        severity: of a sample that is found; how the warning is marked.
        one, many: what is the matter, after "1 picture" or "3 pictures".
        meaning: how it is measured.
        remedy: what to do.
        finds: from the table to its samples, bool.
        detail: the column, if any, that says more of a sample.
    """

    name: str
    modality: Modality
    severity: Severity
    one: str
    many: str
    meaning: str
    remedy: str
    finds: Callable[[pandas.DataFrame], pandas.Series]
    detail: str = ""


CHECKS = [
    QualityCheck(
        "image_broken",
        "image",
        "serious",
        "cannot be decoded",
        "cannot be decoded",
        "decoding it in full fails",
        "Replace or remove them; training leaves their places empty and stops above "
        "data.max_bad_fraction.",
        lambda t: t["image_fault"].notna(),
        "image_fault",
    ),
    QualityCheck(
        "image_blank",
        "image",
        "check",
        "is blank",
        "are blank",
        f"at 64 x 64 pixels no colour channel spans more than {BLANK_CONTRAST} of 255",
        "Look at them; a missing download or a wrong mask often leaves one flat colour.",
        lambda t: t["image_contrast"] <= BLANK_CONTRAST,
    ),
    QualityCheck(
        "image_tiny",
        "image",
        "check",
        "is tiny",
        "are tiny",
        f"the shorter side is below {TINY_SIDE} pixels",
        "Leave them out, or check that they are not thumbnails or tracking pixels taken for "
        "pictures.",
        lambda t: t[["image_width", "image_height"]].min(axis=1) < TINY_SIDE,
    ),
    QualityCheck(
        "image_long",
        "image",
        "note",
        "is very long and narrow",
        "are very long and narrow",
        f"one side is over {LONG_ASPECT:g} times the other",
        "Set media.max_image_tokens to keep their shape; a fixed square would squeeze them.",
        lambda t: (
            t[["image_width", "image_height"]].max(axis=1)
            > LONG_ASPECT * t[["image_width", "image_height"]].min(axis=1)
        ),
    ),
    QualityCheck(
        "audio_broken",
        "audio",
        "serious",
        "cannot be decoded",
        "cannot be decoded",
        "decoding it in full fails",
        "Replace or remove them; training leaves their places empty and stops above "
        "data.max_bad_fraction.",
        lambda t: t["audio_fault"].notna(),
        "audio_fault",
    ),
    QualityCheck(
        "audio_silent",
        "audio",
        "serious",
        "is silent",
        "are silent",
        f"no sample is above {SILENT_PEAK_DB:g} dB of full scale",
        "Remove them or record them again; a transcript of silence teaches the model to invent "
        "words.",
        lambda t: t["audio_peak"] <= SILENT_PEAK_DB,
    ),
    QualityCheck(
        "audio_quiet",
        "audio",
        "check",
        "is nearly silent",
        "are nearly silent",
        f"the level (root mean square) is below {QUIET_LEVEL_DB:g} dB of full scale",
        "Listen to some; raise their level, or remove them if only noise is left.",
        lambda t: (t["audio_level"] < QUIET_LEVEL_DB) & (t["audio_peak"] > SILENT_PEAK_DB),
    ),
    QualityCheck(
        "audio_clipped",
        "audio",
        "check",
        "is clipped",
        "are clipped",
        f"{CLIPPED_SAMPLES} samples or more stand at full scale in runs of three or more",
        "Listen to some; record again at a lower gain if you can. Clipping cannot be undone.",
        lambda t: t["audio_clipped_samples"] >= CLIPPED_SAMPLES,
    ),
    QualityCheck(
        "audio_short",
        "audio",
        "check",
        "is very short",
        "are very short",
        f"less than {SHORT_S:g} s",
        "Check how they were cut; a word takes 0.2 s or more.",
        lambda t: t["audio_seconds"] < SHORT_S,
    ),
    QualityCheck(
        "text_broken",
        "text",
        "serious",
        "cannot be read",
        "cannot be read",
        "its bytes differ from the index, or are not UTF-8",
        "Copy the shard again, or index it anew.",
        lambda t: t["text_fault"].notna(),
        "text_fault",
    ),
    QualityCheck(
        "text_empty",
        "text",
        "check",
        "is empty",
        "are empty",
        "nothing but white space",
        "Remove the samples, or give them a text; as a target it teaches the model to say nothing.",
        lambda t: t["text"] == "",
    ),
    QualityCheck(
        "text_replaced",
        "text",
        "check",
        "holds replacement characters (�)",
        "hold replacement characters (�)",
        "a character was lost in an earlier conversion",
        "Convert the source again with its true encoding.",
        lambda t: t["text_replacements"] > 0,
    ),
    QualityCheck(
        "label_broken",
        "label",
        "serious",
        "cannot be read",
        "cannot be read",
        "its cls or json differs from the index, or is not JSON",
        "Copy the shard again, or index it anew.",
        lambda t: t["cls_fault"].notna() | t["json_fault"].notna(),
        "json_fault",
    ),
]


def run_checks(table: pandas.DataFrame) -> None:
    """Add a boolean column for every check, named as the check. Null measures are not found."""
    assert table.columns.intersection([check.name for check in CHECKS]).empty, (
        "a measure would be lost"
    )
    for check in CHECKS:
        table[check.name] = check.finds(table).fillna(False).astype(bool)
