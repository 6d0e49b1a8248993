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


@dataclass(frozen=True, kw_only=True)
class QualityCheck:
    """One question asked of every sample.

    Attributes:
        name: in tables and JSON.
        modality: whose section and noun it has.
        severity: of a sample that is found; how the warning is marked.
        singular, plural: what is the matter, after "1 picture" or "3 pictures".
        meaning: how it is measured.
        remedy: what to do.
        finds: from the table to its samples, bool.
        detail: the column, if any, that says more of a sample.
    """

    name: str
    modality: Modality
    severity: Severity
    singular: str
    plural: str
    meaning: str
    remedy: str
    finds: Callable[[pandas.DataFrame], pandas.Series]
    detail: str = ""


CHECKS = [
    QualityCheck(
        name="image_broken",
        modality="image",
        severity="serious",
        singular="cannot be decoded",
        plural="cannot be decoded",
        meaning="decoding it in full fails",
        remedy="Replace or remove them; training leaves their places empty and stops above "
        "data.max_bad_fraction.",
        finds=lambda t: t["image_fault"].notna(),
        detail="image_fault",
    ),
    QualityCheck(
        name="image_blank",
        modality="image",
        severity="check",
        singular="is blank",
        plural="are blank",
        meaning=f"at 64 x 64 pixels no colour channel spans more than {BLANK_CONTRAST} of 255",
        remedy="Look at them; a missing download or a wrong mask often leaves one flat colour.",
        finds=lambda t: t["image_contrast"] <= BLANK_CONTRAST,
    ),
    QualityCheck(
        name="image_tiny",
        modality="image",
        severity="check",
        singular="is tiny",
        plural="are tiny",
        meaning=f"the shorter side is below {TINY_SIDE} pixels",
        remedy="Leave them out, or check that they are not thumbnails or tracking pixels taken for "
        "pictures.",
        finds=lambda t: t[["image_width", "image_height"]].min(axis=1) < TINY_SIDE,
    ),
    QualityCheck(
        name="image_long",
        modality="image",
        severity="note",
        singular="is very long and narrow",
        plural="are very long and narrow",
        meaning=f"one side is over {LONG_ASPECT:g} times the other",
        remedy="Set media.max_image_tokens to keep their shape; a fixed square would squeeze them.",
        finds=lambda t: (
            t[["image_width", "image_height"]].max(axis=1)
            > LONG_ASPECT * t[["image_width", "image_height"]].min(axis=1)
        ),
    ),
    QualityCheck(
        name="audio_broken",
        modality="audio",
        severity="serious",
        singular="cannot be decoded",
        plural="cannot be decoded",
        meaning="decoding it in full fails",
        remedy="Replace or remove them; training leaves their places empty and stops above "
        "data.max_bad_fraction.",
        finds=lambda t: t["audio_fault"].notna(),
        detail="audio_fault",
    ),
    QualityCheck(
        name="audio_silent",
        modality="audio",
        severity="serious",
        singular="is silent",
        plural="are silent",
        meaning=f"no sample is above {SILENT_PEAK_DB:g} dB of full scale",
        remedy="Remove them or record them again; a transcript of silence teaches the model to "
        "invent words.",
        finds=lambda t: t["audio_peak"] <= SILENT_PEAK_DB,
    ),
    QualityCheck(
        name="audio_quiet",
        modality="audio",
        severity="check",
        singular="is nearly silent",
        plural="are nearly silent",
        meaning=f"the level (root mean square) is below {QUIET_LEVEL_DB:g} dB of full scale",
        remedy="Listen to some; raise their level, or remove them if only noise is left.",
        finds=lambda t: (t["audio_level"] < QUIET_LEVEL_DB) & (t["audio_peak"] > SILENT_PEAK_DB),
    ),
    QualityCheck(
        name="audio_clipped",
        modality="audio",
        severity="check",
        singular="is clipped",
        plural="are clipped",
        meaning=f"{CLIPPED_SAMPLES} samples or more stand at full scale in runs of three or more",
        remedy="Listen to some; record again at a lower gain if you can. Clipping cannot be "
        "undone.",
        finds=lambda t: t["audio_clipped_samples"] >= CLIPPED_SAMPLES,
    ),
    QualityCheck(
        name="audio_short",
        modality="audio",
        severity="check",
        singular="is very short",
        plural="are very short",
        meaning=f"less than {SHORT_S:g} s",
        remedy="Check how they were cut; a word takes 0.2 s or more.",
        finds=lambda t: t["audio_seconds"] < SHORT_S,
    ),
    QualityCheck(
        name="text_broken",
        modality="text",
        severity="serious",
        singular="cannot be read",
        plural="cannot be read",
        meaning="its bytes differ from the index, or are not UTF-8",
        remedy="Copy the shard again, or index it anew.",
        finds=lambda t: t["text_fault"].notna(),
        detail="text_fault",
    ),
    QualityCheck(
        name="text_empty",
        modality="text",
        severity="check",
        singular="is empty",
        plural="are empty",
        meaning="nothing but white space",
        remedy="Remove the samples, or give them a text; as a target it teaches the model to say "
        "nothing.",
        finds=lambda t: t["text"] == "",
    ),
    QualityCheck(
        name="text_replaced",
        modality="text",
        severity="check",
        singular="holds replacement characters (�)",
        plural="hold replacement characters (�)",
        meaning="a character was lost in an earlier conversion",
        remedy="Convert the source again with its true encoding.",
        finds=lambda t: t["text_replacements"] > 0,
    ),
    QualityCheck(
        name="label_broken",
        modality="label",
        severity="serious",
        singular="cannot be read",
        plural="cannot be read",
        meaning="its cls or json differs from the index, or is not JSON",
        remedy="Copy the shard again, or index it anew.",
        finds=lambda t: t["cls_fault"].notna() | t["json_fault"].notna(),
        detail="json_fault",
    ),
]


def run_checks(table: pandas.DataFrame) -> None:
    """Add a boolean column for every check, named as the check. Null measures are not found."""
    assert table.columns.intersection([check.name for check in CHECKS]).empty, (
        "a measure would be lost"
    )
    for check in CHECKS:
        table[check.name] = check.finds(table).fillna(False).astype(bool)
