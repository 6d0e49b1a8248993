"""Lays a report out as one page of HTML that needs no other file and runs no script.

Every text is escaped by jinja2, which no part of the templates switches off. Should something slip
through all the same, the page's Content-Security-Policy lets the browser run no script and fetch
nothing: it allows one style sheet, by its hash, and pictures and sound from data URIs.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from mmscale.inspect.charts import number_text
from mmscale.inspect.duplicates import NEAR_BITS, NEAR_COLOUR
from mmscale.inspect.exhibits import WAVE_COLUMNS, WAVE_HEIGHT
from mmscale.inspect.table import import_extra
from mmscale.inspect.text import printable
from mmscale.version import __version__

if TYPE_CHECKING:
    from mmscale.inspect.report import QualityReport

COLOURS = 6
"""Colours of the style sheet that distinguish sets; more sets share them."""
SHOWN_VALUES = 12
"""Values of a label that are seen without a click."""

_HERE = Path(__file__).parent
_MODALITIES = {"image": "Pictures", "audio": "Sound", "text": "Text", "label": "Labels"}


def render(report: QualityReport) -> str:
    """The page."""
    jinja2 = import_extra("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "printable": printable,
        "number": number_text,
        "amount": amount_text,
        "hours": hours_text,
        "share": share_text,
    }
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; media-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page: str = environment.get_template("report.html").render(
        report=report,
        version=__version__,
        # Our own file; it stands in <style>, where entities mean nothing.
        style=jinja2.utils.markupsafe.Markup(style),
        policy=policy,
        colours=COLOURS,
        shown_values=SHOWN_VALUES,
        modalities=_MODALITIES,
        near_bits=NEAR_BITS,
        near_colour=NEAR_COLOUR,
        wave_columns=WAVE_COLUMNS,
        wave_height=WAVE_HEIGHT,
    )
    return page


def amount_text(value: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: ``12.3 M``; with a unit, ``12.3 MB``."""
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{number_text(float(f'{value / power:.3g}'))} {prefix}{unit}".strip()
    return f"{number_text(value)} {unit}".strip()


def hours_text(seconds: float) -> str:
    """Such as ``22 s``, ``21.9 min`` and ``1,200 h``."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{number_text(float(f'{seconds / size:.3g}'))} {unit}"
    return f"{number_text(float(f'{seconds:.3g}'))} s"


def share_text(count: int, total: int) -> str:
    """Per cent; never 0 % of something nor 100 % of less than all."""
    if count == total:
        return "100 %"
    share = 100.0 * count / total
    return (
        "< 0.1 %"
        if share < 0.1
        else f"{min(share, 99.9):.1f} %"
        if share < 10 or share > 99
        else f"{share:.0f} %"
    )
