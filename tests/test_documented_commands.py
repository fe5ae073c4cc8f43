"""Every command of the documentation: its verb and its options are there, and its pages."""

import re
import shlex
import subprocess
import sys
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import typer
from conftest import ROOT
from typer._click.exceptions import MissingParameter

from lep.cli import app

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks/RESULTS.md"]
ROOT_COMMAND = typer.main.get_command(app)


def commands(page: str) -> list[str]:
    """The lines of code that begin with `lep`, and what they continue with."""
    joined = re.sub(r"\\\n\s*", " ", page)
    lines = [line.strip() for line in joined.splitlines() if re.match(r"(    )?lep\s", line)]
    return [re.sub(r"\s{2,}\(.*\)$", "", line) for line in lines]  # without a remark


def shown() -> list[tuple[str, str]]:
    return [
        (page.name, command)
        for page in PAGES
        for command in commands(page.read_text(encoding="utf-8"))
    ]


def verb(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and the words after it."""
    command = ROOT_COMMAND
    while words and (verbs := getattr(command, "commands", None)):
        assert words[0] in verbs, f"lep has no verb {words[0]}"
        command, words = verbs[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize(("page", "line"), shown())
def test_a_documented_command_is_understood(page: str, line: str) -> None:
    command, words = verb(shlex.split(line)[1:])
    is_cut = "..." in words
    given = [word for word in words if word != "..."]
    # It raises for an option that is not there, and for one that is missing.
    with suppress(MissingParameter) if is_cut else nullcontext():
        command.make_context(command.name, given)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_that_are_mentioned_are_there(page: Path) -> None:
    for words in re.findall(r"`lep ((?:tokenizer )?[a-z]+)", page.read_text(encoding="utf-8")):
        verb(words.split())


def test_the_tests_that_answers_name_are_there() -> None:
    page = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", page)
    assert len(re.findall(r"^## ", page, re.MULTILINE)) == 19
    assert len(named) >= 15
    for file, test in named:
        assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8"), file


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("mkdocs"), reason="make docs installs mkdocs-material")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Strictly: a link or a heading that is not there ends it."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    pages = {str(page.parent.relative_to(site)) for page in site.rglob("index.html")}
    named = re.findall(r" ([\w/-]+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert pages >= {name.removesuffix("/index") for name in named} - {"index"}
    reference = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in reference for name in ("adapt", "LinearMapFitter", "evaluate"))
    assert not list((tmp_path / "site").rglob("*.py"))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    """And to headings in them: what a link names is the heading as GitHub spells it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            plain = [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings]
            assert heading in plain, link
