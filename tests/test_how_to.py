"""The commands of the README and of every page of How to run, on the lab pair.

Blocks with a title (`needs two GPUs`) are left out; any other has commands of `lep` or Python.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from test_documented_commands import commands

from lep.corpus.copies import records_apart
from lep.corpus.read import write_records

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
# What the names of the pages stand for.
NAMES = {
    "MODEL": "lab/pair/instruct",
    "SIBLING": "lab/pair/instruct",
    "BASE": "lab/pair/base",
    "Qwen/Qwen2.5-0.5B-Instruct": "lab/pair/instruct",
}
TEXT = re.compile(r"^((?:\w\w=)?)(?:text|heldout)/")
# How little is enough to see that a command works.
LESS = {
    "adapt": "--new-tokens 64 --tokens 8000 adapt.prompt_tasks=4 adapt.own_prompts=2 "
    "adapt.prompt_tokens=32 adapt.max_new_tokens=40 adapt.checkpoints=4 adapt.practice=3 "
    "evaluate.items=4 evaluate.characters=2_000",
    "run": "adapt.tokens=4_000",
    "pretrain": "--tokens 4000",
    "practice": "--practice-tokens 2000",
    "prompts": "--own-prompts 2 --prompt-tokens 32",
    "answer": "--max-new-tokens 40",
    "evaluate": "--items 4 --characters 2000",
    "calibrate": "--copy-tasks 8",
    "tune": "--copy-tasks 8",
}
# The lab's rule of cutting words is not one of llama.cpp's, and not every program is there.
REFUSED = r"llama\.cpp has no pre-tokenizer|pip install '\.\[(ctranslate2|mlx)\]'"
# The lab's model never learned what users write.
WRITES_NONE = "none of 8 prompts that lab/pair/instruct wrote in ru is of use"


def untitled(page: str) -> str:
    """The page without the blocks that need more than this machine has."""
    return re.sub(r"^```sh title=.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)


def in_the_lab(line: str) -> list[str]:
    words = [NAMES.get(word, word) for word in shlex.split(line)]
    words = [TEXT.sub(r"\1lab/text/train/", word) for word in words]
    practice = ["adapt.shares=practice=0"] if "--text el=" in line and words[1] == "adapt" else []
    return [*words, *practice, *shlex.split(LESS.get(words[1], ""))]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The command with which many pages begin, and a folder in which it ran."""
    line = "lep adapt MODEL --text ru=text/ru --text en=text/en --output runs/ru"
    folder = clone(tmp_path_factory.mktemp("adapted"))
    execute(line, folder)
    return line, folder


def clone(folder: Path) -> Path:
    """What a user has: the lab of the repository, prompts, and conversations to tune on."""
    shutil.copytree(ROOT / "lab", folder / "lab")
    text = {code: [str(ROOT / "lab" / "text" / "train" / code)] for code in ("ru", "en")}
    tasks = records_apart(text, ["first_word", "last_word"], 8, 0, {})
    write_records(folder / "instructions.jsonl", tasks)
    questions = [{"messages": record["messages"][:1]} for record in tasks]
    write_records(folder / "prompts.jsonl", questions)
    return folder


def execute(line: str, folder: Path) -> None:
    words = in_the_lab(line)
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True
    )
    verb, refused = words[1], ""
    if verb == "export" and done.returncode:
        refused = REFUSED
    elif verb == "prompts":
        refused = WRITES_NONE
        (folder / "ru" / "prompts").mkdir()
        shutil.copy(folder / "prompts.jsonl", folder / "ru" / "prompts")
    if refused:
        assert (done.returncode, bool(re.search(refused, done.stderr))) == (2, True), done.stderr
    else:
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, adapted: tuple[str, Path], tmp_path: Path) -> None:
    """In their order; of commands that make the same folder, the first."""
    common, done = adapted
    made = set[str]()
    folder = clone(tmp_path)
    for line in commands(untitled(page.read_text(encoding="utf-8"))):
        words = shlex.split(line)
        output = words[words.index("--output") + 1] if "--output" in words else line
        if words[1] in ("chat", "push") or (output in made and words[1] != "run"):
            continue  # someone has to talk, or to have an account
        made.add(output)
        if line == common or (
            page.stem == "README" and output == "runs/ru" and words[1] == "adapt"
        ):
            shutil.copytree(done / "runs", folder / "runs", dirs_exist_ok=True)
        else:
            execute(line, folder)
    if page.stem == "languages":  # the second language leaves the rows of the first as they are
        first, second = (
            load_file(folder / "runs" / code / "adapt" / "model.safetensors")
            for code in ("ru", "el")
        )
        name = "model.embed_tokens.weight"
        known = len(first[name])
        assert len(second[name]) > known
        assert torch.equal(second[name][:known], first[name])


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_blocks_are_run_or_say_what_they_need(page: Path) -> None:
    text = untitled(page.read_text(encoding="utf-8"))
    for language, block in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.M | re.S):
        if language != "python":  # those run in test_api.py
            assert language == ""
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            assert all(re.match(r"lep |pip install |$", line) for line in lines), block


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs" / "how-to" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in PAGES[1:]} - {"index.md"}
    assert pages == set(re.findall(r"\(([\w-]+\.md)\)", contents))
