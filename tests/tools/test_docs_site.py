"""The site of `make docs`: built strictly, readable without a network, its links on the site."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

NAMES = ["index.html", *(f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md"))]
LOADED = re.compile(r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link[^>]* href="([^"]+)"')


def build(folder: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "-f",
            root / "mkdocs.yml",
            "-d",
            folder,
        ],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    result = build(folder)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    return folder


def test_readme_is_the_first_page_and_its_links_stay_on_the_site(site):
    page = (site / "index.html").read_text()
    assert "<h1" in page and 'href="quickstart.html"' in page and 'src="images/demo.png"' in page
    assert "CONTRIBUTING.md" not in page and (site / "images" / "demo.png").exists()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_loaded_from_a_network(site, name):
    loaded = [first or second for first, second in LOADED.findall((site / name).read_text())]
    assert loaded and [url for url in loaded if "//" in url] == []


@pytest.mark.parametrize("name", NAMES)
def test_lists_and_tables_are_read_as_such(site, name):
    """A list or a table needs an empty line before it here, unlike on code hosts."""
    paragraphs = re.findall(r"<p>(.*?)</p>", (site / name).read_text(), re.DOTALL)
    assert [text for text in paragraphs if re.search(r"^(- |\d\. |\|)", text, re.MULTILINE)] == []


def test_a_link_to_nowhere_ends_the_build(tmp_path):
    for name in ("mkdocs.yml", "README.md", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").mkdir()
    for page in (ROOT / "docs").iterdir():
        (tmp_path / "docs" / page.name).symlink_to(page)
    (tmp_path / "docs" / "plan.md").unlink()
    (tmp_path / "docs" / "plan.md").write_text("[x](none.md)\n")
    result = build(tmp_path / "site", tmp_path)
    assert result.returncode != 0 and "none.md" in result.stderr
