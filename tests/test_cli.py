"""The command line as a user meets it: whole processes, exit codes, one sentence for each fault."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lep.cli import expand_lists

SAMPLE = Path(__file__).parent.parent / "lab" / "text" / "train"


def lep(*arguments: object, code: int = 0) -> str:
    """Run the command; what it said, checked for its exit code and for tracebacks."""
    done = subprocess.run(
        [sys.executable, "-m", "lep", *map(str, arguments)], capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said
    return said


def test_help_is_quick() -> None:
    # What makes help slow is what it imports: that can be checked on a machine as busy as it likes.
    heavy = "torch transformers datasets peft plotly tokenizers"
    check = (
        f"import sys, lep.cli; sys.exit(' '.join(m for m in '{heavy}'.split() if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert "propagate" in lep("--help")


def test_lists_of_paths() -> None:
    assert expand_lists(["pretrain", "--corpus", "a", "b", "c", "--tokens", "5"]) == [
        "pretrain",
        "--corpus",
        "a",
        "--corpus",
        "b",
        "--corpus",
        "c",
        "--tokens",
        "5",
    ]
    assert expand_lists(["evaluate", "m", "--text", "ru=a", "en=b", "n"]) == [
        "evaluate",
        "m",
        "--text",
        "ru=a",
        "--text",
        "en=b",
        "n",
    ]


@pytest.mark.slow
def test_the_verbs_one_after_another(pair, here, tmp_path, monkeypatch) -> None:
    ru = SAMPLE / "ru"
    verbs = (
        "tokenizer",
        "init",
        "adapted",
        "propagated",
        "answers",
        "calibrated",
        "tuned",
        "scores",
    )
    out = {name: tmp_path / name for name in verbs}
    said = lep(
        "tokenizer",
        "extend",
        "--base",
        pair["base"],
        "--corpus",
        ru,
        SAMPLE / "en",
        "--new-tokens",
        40,
        "--output",
        out["tokenizer"],
    )
    assert "500 tokens before, 540 after: 500 kept, 0 moved, 40 new, 0 dropped" in said
    said = here(
        "init",
        "--model",
        pair["base"],
        "--tokenizer",
        out["tokenizer"],
        "--method",
        "mean",
        "--output",
        out["init"],
    )
    assert "540 rows: 500 copied, 40 new" in said
    here(
        "pretrain",
        "--model",
        out["init"],
        "--corpus",
        ru,
        "--tokens",
        4000,
        "--learning-rate",
        "1e-3",
        "--train",
        "embeddings",
        "--output",
        out["adapted"],
    )
    said = lep(
        "propagate",
        "--base",
        pair["base"],
        "--instruct",
        pair["instruct"],
        "--adapted",
        out["adapted"],
        "--method",
        "overlap",
        "--output",
        out["propagated"],
    )
    assert re.search(r"input: held-out residual 0\.\d+", said)
    data = tmp_path / "data.jsonl"
    data.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        * 4
    )
    monkeypatch.setattr(
        "lep.calibration.answers.reason_to_drop", lambda question, answer: None
    )  # a random model's
    said = here(
        "answer",
        "--original",
        pair["instruct"],
        "--prompts",
        data,
        "--samples",
        2,
        "--max-new-tokens",
        4,
        "--output",
        out["answers"],
    )
    assert "kept: 4" in said
    said = here(
        "calibrate",
        "--model",
        out["propagated"],
        "--answers",
        out["answers"],
        "--train",
        "new_rows",
        "--text",
        f"ru={ru}",
        "--copy-tasks",
        4,
        "--output",
        out["calibrated"],
    )
    assert "answers: {'kept': 4}; copy tasks: 4; 1 steps" in said
    here(
        "tune",
        "--model",
        out["propagated"],
        "--data",
        data,
        "--output",
        out["tuned"],
        "--copy-tasks",
        0,
        "--no-merge",
    )
    assert (out["tuned"] / "adapter" / "adapter_config.json").exists()
    said = here(
        "evaluate",
        pair["instruct"],
        out["tuned"],
        "--text",
        f"ru={ru}",
        "--text",
        f"en={SAMPLE / 'en'}",
        "--tasks",
        "copy_sentence,first_word",
        "--items",
        2,
        "--characters",
        1000,
        "--output",
        out["scores"],
    )
    assert "bits/byte" in said
    assert all(place.is_dir() for place in out.values())


def test_faults_are_one_sentence_and_exit_code_2(pair, adapted, here, tmp_path) -> None:
    out = tmp_path / "out"
    pickled = tmp_path / "pickled"
    shutil.copytree(pair["base"], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "recipe.yaml").write_text("nam: x\n")
    cases = [
        (
            [
                "init",
                "--model",
                tmp_path / "none",
                "--tokenizer",
                pair["tokenizer"],
                "--output",
                out,
            ],
            "is no folder",
        ),
        (
            ["init", "--model", pickled, "--tokenizer", pair["tokenizer"], "--output", out],
            "pickled weights only",
        ),
        (
            [
                "tokenizer",
                "extend",
                "--base",
                pair["base"],
                "--corpus",
                tmp_path / "empty.txt",
                "--new-tokens",
                5,
                "--output",
                out,
            ],
            "the corpus holds no text",
        ),
        (
            [
                "pretrain",
                "--model",
                adapted,
                "--corpus",
                SAMPLE / "ru",
                "--tokens",
                -5,
                "--output",
                out,
            ],
            "tokens is -5",
        ),
        (
            [
                "pretrain",
                "--model",
                adapted,
                "--corpus",
                SAMPLE / "ru",
                "--tokens",
                5,
                "--train",
                "all",
                "--output",
                out,
            ],
            "--train is 'all'",
        ),
        (["run", tmp_path / "recipe.yaml"], "unknown key 'nam'; did you mean 'name'?"),
        (["evaluate", pair["base"], "--text", "ru", "--output", out], "write LANGUAGE=PATH"),
        (
            ["evaluate", pair["base"], "--tasks", "daru_rcb", "rublimp", "--output", out],
            "rublimp is a task where a model is expected: write --tasks daru_rcb,rublimp",
        ),
        (["report", tmp_path], "has no run.json"),
    ]
    for number, (arguments, message) in enumerate(cases):
        said = (here if number else lep)(*arguments, code=2)
        assert message in said
        assert said.startswith("error: ")
        assert len(said.strip().splitlines()) == 1, said
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_the_verbs_of_tokenizers(pair, here, tmp_path) -> None:
    ru, en, base = SAMPLE / "ru", SAMPLE / "en", pair["base"]
    said = here(
        "tokenizer", "count", "--base", base, "--corpus", ru, "--output", tmp_path / "ru.counts.zst"
    )
    assert "different words in" in said
    said = here(
        "tokenizer",
        "extend",
        "--base",
        base,
        "--corpus",
        tmp_path / "ru.counts.zst",
        "--new-tokens",
        30,
        "--script",
        "cyrillic",
        "--method",
        "merge",
        "--output",
        tmp_path / "merged",
    )
    assert "500 kept, 0 moved, 30 new, 0 dropped" in said
    said = here(
        "tokenizer",
        "prune",
        "--base",
        base,
        "--corpus",
        ru,
        en,
        "--vocab-size",
        450,
        "--protect",
        en / "no",
        "--output",
        tmp_path / "no",
        code=2,
    )
    assert "no does not exist" in said
    said = here(
        "tokenizer",
        "prune",
        "--base",
        base,
        "--corpus",
        ru,
        en,
        "--vocab-size",
        450,
        "--output",
        tmp_path / "p",
    )
    assert "500 tokens before, 450 after" in said
    said = here(
        "tokenizer",
        "optimize",
        "--base",
        base,
        "--corpus",
        ru,
        en,
        "--script",
        "cyrillic",
        "--keep",
        460,
        "--vocab-size",
        500,
        "--in-place",
        "--output",
        tmp_path / "o",
    )
    assert "460 kept, 0 moved, 40 new, 40 dropped" in said
    said = here(
        "tokenizer",
        "train",
        "--base",
        base,
        "--corpus",
        ru,
        "--algorithm",
        "bpe",
        "--vocab-size",
        600,
        "--output",
        tmp_path / "t",
    )
    assert "600 after" in said
    said = here(
        "tokenizer",
        "compare",
        base,
        tmp_path / "o",
        "--text",
        f"ru={ru}",
        f"en={en}",
        "--json",
        tmp_path / "c.json",
        "--html",
        tmp_path / "c.html",
    )
    assert "unreachable" in said
    assert json.loads((tmp_path / "c.json").read_text())["reference"] == "base"
    page = (tmp_path / "c.html").read_text()
    assert "<h2>The tokenizers</h2>" in page
    assert "http://" not in page.replace("http://www.w3.org", "").split("<body>")[1]


@pytest.mark.parametrize("arguments", [["frobnicate"], ["init"], ["propagate", "--base", "x"]])
def test_wrong_usage_has_exit_code_2(arguments) -> None:
    lep(*arguments, code=2)


def test_launchers_are_for_pretraining_alone(tmp_path) -> None:
    import os
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "lep", "run", "no.yaml"],
        capture_output=True,
        text=True,
        env=os.environ | {"WORLD_SIZE": "2", "RANK": "0"},
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "only lep pretrain shares its work out" in done.stderr.replace("\n", " ")
    assert not list(tmp_path.iterdir())
