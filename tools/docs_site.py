"""What `mkdocs.yml` adds to the pages of docs/: README.md as the first one, and links that fit.

README and the pages are read on a code host, too, so their links are relative to the repository.
On the site, a link from README into docs/ loses that folder; a link out of docs/, to a config or a
module, becomes its text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_OF_README = re.compile(r"\]\(docs/")


def on_files(files: Any, config: Any) -> Any:
    """mkdocs's event: add README.md as index.md."""
    from mkdocs.structure.files import File

    readme = _OF_README.sub("](", (ROOT / "README.md").read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=readme))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs's event: links that leave the site become their text."""
    of_readme = ("CONTRIBUTING.md", "examples/")
    outside = ("../",) if page.file.src_uri != "index.md" else of_readme
    return LINK.sub(lambda link: link[1] if link[2].startswith(outside) else link[0], markdown)
