"""JSON of samples: NaN is absence, a byte-order mark is no part of a text."""

from __future__ import annotations

import pytest

from mmscale.data.index.json_field import json_text, parse_json
from mmscale.errors import SampleFault


def test_nan_and_infinity_are_absence() -> None:
    document = '{"label": NaN, "far": -Infinity, "list": [1, NaN], "word": "NaN"}'
    assert parse_json(document) == {"label": None, "far": None, "list": [1, None], "word": "NaN"}
    assert [json_text(document, path) for path in ("label", "far", "list.1")] == [None] * 3
    assert json_text(document, "word") == "NaN" and json_text(document, "list.0") == "1"


def test_a_byte_order_mark_is_passed_over() -> None:
    document = '\ufeff{"label": "\ufeffcat", "inner": "a\ufeffb"}'
    assert json_text(document, "label") == "cat"
    assert json_text(document, "inner") == "a\ufeffb"


def test_what_is_no_json_is_refused() -> None:
    for document in ("", "{", "nan", "[1,]", "\ufeff\ufeff1"):
        with pytest.raises(SampleFault, match="not valid JSON"):
            parse_json(document)
