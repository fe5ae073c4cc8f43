"""What MkDocs needs to show these pages as a site: the README as its start, links within it."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))
import reference  # noqa: E402


def on_files(files: Files, config: Any) -> Files:
    """The README is the first page, and the code writes its own reference."""
    files.append(
        File.generated(config, "index.md", content=(ROOT / "README.md").read_text("utf-8"))
    )
    for name, write in reference.PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=write()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links from the README, and links to files of the repository that are no pages."""
    above = "../" * page.file.src_uri.count("/")
    if page.file.src_uri == "index.md":
        markdown = re.sub(r"\]\(docs/", "](", markdown)
        return re.sub(
            r"(?<!!)\[([^\]\[]+)\]\((?!http|#)(?![\w./-]+\.(?:md|svg|png))[^)]*\)", r"\1", markdown
        )
    markdown = re.sub(rf"\({above}\.\./README\.md(#[\w-]+)?\)", rf"({above}index.md\1)", markdown)
    return re.sub(rf"(?<!!)\[((?:[^\]\[]|\[[^\]]*\])+)\]\({above}\.\./[^)]*\)", r"\1", markdown)
