"""Every command of the documentation: its verb and options are there, and the README's run."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import typer
from conftest import ROOT

from lep.cli import app

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/RESULTS.md"]
ROOT_COMMAND = typer.main.get_command(app)
# What the README's names stand for, and how much is enough to see that a command works.
IN_THE_LAB = {
    "text/ru": "lab/text/train/ru",
    "text/en": "lab/text/train/en",
    "MODEL": "lab/pair/instruct",
    "Qwen/Qwen2.5-0.5B-Instruct": "lab/pair/instruct",
}
ADAPT = "--new-tokens 64 --tokens 8000 adapt.prompt_tasks=4 adapt.own_prompts=2 "
ADAPT += "adapt.prompt_tokens=32 adapt.max_new_tokens=40 adapt.checkpoints=4 adapt.practice=3 "
ADAPT += "evaluate.items=4 evaluate.characters=2_000"


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
    command.make_context(command.name, given, resilient_parsing=is_cut)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_that_are_mentioned_are_there(page: Path) -> None:
    for words in re.findall(r"`lep ((?:tokenizer )?[a-z]+)", page.read_text(encoding="utf-8")):
        verb(words.split())


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    """In their order, on the lab pair; of commands that make the same folder, the first."""
    shutil.copytree(ROOT / "lab", tmp_path / "lab")
    made, ran = set[str](), list[str]()
    for line in commands((ROOT / "README.md").read_text(encoding="utf-8")):
        words = [IN_THE_LAB.get(word, word) for word in shlex.split(line)]
        words = [re.sub(r"(?<==)text/", "lab/text/train/", word) for word in words]
        output = words[words.index("--output") + 1] if "--output" in words else line
        if words[1] in ("chat", "push") or (output in made and words[1] != "run"):
            continue  # someone has to talk, or to have an account
        made.add(output)
        if words[1] == "adapt":
            words += ADAPT.split()
        words = [re.sub(r"^adapt\.tokens=.*", "adapt.tokens=4_000", word) for word in words]
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True
        )
        if words[1] == "export":  # the lab's rule of cutting words is not one of llama.cpp's
            assert "llama.cpp has no pre-tokenizer that cuts words like this" in done.stderr
        else:
            assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
        ran.append(words[1])
    assert set(ran) == {"adapt", "run", "export", "pack"}
    assert (tmp_path / "runs/ru/report.html").exists()


def test_the_tests_that_answers_name_are_there() -> None:
    page = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", page)
    assert len(re.findall(r"^## ", page, re.MULTILINE)) == 15
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
    pages = {page.parent.name for page in (tmp_path / "site").glob("*/index.html")}
    named = re.findall(r"(\w+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert pages >= set(named) - {"index"}
    assert not list((tmp_path / "site").rglob("*.py"))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700
