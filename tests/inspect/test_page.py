"""The page by its source: nothing of the data is markup, nothing is fetched, nothing runs."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from planted import planted_report

from mmscale.inspect.page import amount_text, hours_text, share_text
from mmscale.inspect.text import printable

VOID = {"meta", "link", "img"}


class Outline(HTMLParser):
    """Every tag with its attributes, the text of the style sheet, and whether all tags are
    closed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.style = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data


@pytest.fixture(scope="module")
def inspected():
    return planted_report()


@pytest.fixture(scope="module")
def outline(inspected):
    parser = Outline()
    parser.feed(inspected.html.read_text(encoding="utf-8"))
    return parser


def test_every_tag_is_closed(outline):
    assert outline.open == []
    assert len(outline.tags) > 200


def test_no_script_handler_form_or_frame_is_there(outline):
    names = {tag for tag, _ in outline.tags}
    assert not names & {
        "script",
        "iframe",
        "object",
        "embed",
        "form",
        "input",
        "base",
        "foreignobject",
    }
    assert not [
        name for _, attributes in outline.tags for name in attributes if name.startswith("on")
    ]
    assert not [tag for tag, attributes in outline.tags if "style" in attributes]


def test_nothing_is_fetched(outline):
    links = [
        attributes[name]
        for _, attributes in outline.tags
        for name in ("src", "href", "srcset", "poster", "data")
        if name in attributes
    ]
    assert links
    assert not [link for link in links if not re.match(r"data:|#[a-z]+$", link or "")]
    assert "url(" not in outline.style and "@import" not in outline.style


def test_the_policy_allows_the_one_style_sheet_and_data_uris_only(outline):
    (policy,) = [
        a["content"] for _, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    digest = base64.b64encode(hashlib.sha256(outline.style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; media-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def test_hostile_text_is_shown_as_text(inspected):
    page = inspected.html.read_text(encoding="utf-8")
    assert "&lt;script&gt;window.pwned = 1&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page  # data is never a template
    assert "\u202e" not in page  # nor can it turn the writing direction round


def test_the_page_is_small(inspected):
    assert inspected.html.stat().st_size < 3_000_000


def test_sections_that_the_contents_name_are_there(outline):
    ids = {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    links = [attributes["href"][1:] for tag, attributes in outline.tags if tag == "a"]
    assert links == [
        "first",
        "amount",
        "quality",
        "duplicates",
        "labels",
        "text",
        "pictures",
        "sound",
        "method",
    ]
    assert set(links) == ids


def test_invisible_characters_become_visible():
    assert printable("a\x00b\u202ec\nd\u200d") == "a\ufffdb\ufffdc d\u200d"


@pytest.mark.parametrize(
    ("count", "total", "says"),
    [
        (1, 10**6, "< 0.1 %"),
        (1, 8, "12 %"),
        (999_999, 10**6, "99.9 %"),
        (3, 3, "100 %"),
        (1, 40, "2.5 %"),
    ],
)
def test_shares_never_round_to_none_or_all(count, total, says):
    assert share_text(count, total) == says


def test_amounts_and_times_in_words():
    assert [amount_text(12), amount_text(12_345), amount_text(3.1e6, "B")] == [
        "12",
        "12.3 k",
        "3.1 MB",
    ]
    assert [hours_text(22), hours_text(1312), hours_text(4.32e6)] == ["22 s", "21.9 min", "1,200 h"]
