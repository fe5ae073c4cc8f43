"""What MkDocs needs to show these pages as a site: the README as its start, links within it."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: Any) -> Files:
    """The README is the first page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    text = re.sub(r"\]\((?!http|#)(?![\w.-]+\.(?:md|svg|png))", "](../", text)
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Files of the repository that are no pages are named without a link."""
    markdown = re.sub(r"\(\.\./README\.md(#[\w-]+)?\)", r"(index.md\1)", markdown)
    return re.sub(r"(?<!!)\[((?:[^\]\[]|\[[^\]]*\])+)\]\(\.\./[^)]*\)", r"\1", markdown)
