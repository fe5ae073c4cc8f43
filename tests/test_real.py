"""A small cell of the table of real models: a whole `lep adapt` of the lab pair, arms, measures."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import zstandard
from conftest import ROOT, sample_texts
from scipy.stats import sem, t
from test_adapt import LAB, lab_command

sys.path.append(str(ROOT / "benchmarks"))
import real_scores

from lep.evaluation.measures import measures
from lep.evaluation.records import PromptRecord, TaskRecord, TextRecord, save_records

SMALL = ["--characters", "2000", "--items", "2", "--prompts", "2", "--limit", "4"]


def compressed(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_bytes(zstandard.compress(lines.encode()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the benchmark reads, made from the sample texts."""
    folder, texts = tmp_path_factory.mktemp("data"), sample_texts("ru")
    compressed(
        folder / "eval" / "ru" / "wiki.jsonl.zst",
        [{"id": str(i), "text": text} for i, text in enumerate(texts[:6])],
    )
    bench = folder / "bench"
    news = [{"url": f"u{i}", "title": "т", "text": text} for i, text in enumerate(texts[6:9])]
    compressed(bench / "tg_news_ru.jsonl.zst", news)
    pairs = [{"good": t[:40], "bad": t[:40][::-1]} for t in texts[:8]]
    kinds = {"paradigm": "p", "phenomenon": "f", "domain": "d"}
    compressed(bench / "rublimp.jsonl.zst", [pair | kinds for pair in pairs])
    asked = {
        "ru_seed_tasks": ("Повтори это предложение:", "Я дома {}."),
        "en_user_prompts": ("Repeat this sentence:", "I am here {}."),
    }
    for name, (instruction, text) in asked.items():
        given = [
            {"instruction": instruction, "instances": [{"input": text.format(i)}]} for i in range(4)
        ]
        lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in given)
        (bench / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def benchmark(*arguments: object) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "real.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_arms_are_trained_measured_and_read_again(data, tmp_path) -> None:
    run, output = tmp_path / "run", tmp_path / "out"
    done = subprocess.run(lab_command(run), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    arms = ["mixture", "text", "token-distillation", "alm"]
    benchmark(run, "--output", output, "--arms", *arms, "--tokens", 2_000)
    figures = ["--figure", tmp_path / "arms.svg", "--curve", tmp_path / "curve.svg"]
    if not find_spec("matplotlib"):  # an extra
        figures = []
    printed = benchmark(run, "--output", output, "--data", data, *SMALL, *figures)
    assert all(Path(file).read_text().count('<g id="axes_') >= 4 for file in figures[1::2])
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    names = ["arm", "original", "mean", "adapt", *arms]
    assert [row[0] for row in rows[: 2 * len(names)]] == names * 2
    times = [row[:2] for row in rows if row[0] in ("adapt-unjudged", "own-prompts", "adapt", "all")]
    seconds = {
        file.parent.name: json.loads(file.read_text())["seconds"]
        for file in run.glob("*/lep_stage.json")
    }
    assert times[-1] == ["all", f"{sum(seconds.values()):,.0f}"]
    assert ["adapt", f"{seconds['adapt']:,.0f}"] in times
    record = json.loads((run / "adapt" / "lep" / "pretrain.json").read_text())
    looked = rows[-len(record["looks"]) :]
    assert [row[0] for row in looked][:: len(looked) - 1] == ["0", f"{record['tokens']:,}"]
    for row, look in zip(looked, record["looks"], strict=True):
        parts = (look["bits_per_byte"], look["copied_bits_per_byte"])
        assert row[1:] == [f"{part[code]:.4f}" for part in parts for code in ("ru", "en")]
    assert all(len(row) == len(rows[0]) for row in rows[: len(names)])
    assert rows[1][1:3] == ["-", "-"]
    assert rows[3][1] == "8,000" or int(rows[3][1].replace(",", "")) > 7_000
    windows = [
        json.loads(line)
        for line in (output / "scores" / "original" / "records.jsonl").read_text().splitlines()
    ]
    shown = [w for w in windows if w["kind"] == "text" and w["language"] == "ru"]
    assert shown
    characters, tokens = (sum(w[name] for w in shown) for name in ("characters", "tokens"))
    assert float(rows[1][3]) == pytest.approx(characters / tokens, abs=0.005)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    again = benchmark(run, "--output", output, "--data", data, *SMALL)
    assert again.startswith("\nRussian")  # nothing is scored or written once more
    assert printed.endswith(again)
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file()} == before


def test_a_ratio_and_its_interval_are_of_the_items_that_both_have() -> None:
    """A prompt that one model lacks does not count; every ratio of equal parts is that ratio."""

    def answers(factor: float, count: int) -> list[PromptRecord]:
        common = {"prompt": [], "answer": "", "finished": 1.0, "repetition": 0.0, "tokens": 1}
        return [
            PromptRecord(
                language="ru", id=str(i), new_tokens=0, original_answer="x",
                nats=factor * (i + 1) * math.log(2), bytes=10, **common,
            )
            for i in range(count)
        ]  # fmt: skip

    found = [list(measures(answers(*each))) for each in ((1.5, 5), (1.0, 4))]
    column = real_scores.Column("x", "original answers bits per byte", "ru", ratio=True)
    model, original = (next(m for m in side if m.metric == column.metric) for side in found)
    shown = real_scores.cell(column, model, original, is_reference=False)
    assert shown == "0.450 (x1.500, 1.500 to 1.500)"
    assert real_scores.cell(column, original, original, is_reference=True) == "0.250"
    assert real_scores.cell(column, None, original, is_reference=False) == "-"


def test_a_difference_has_a_sign_and_an_interval() -> None:
    """Where one model is right on two questions more of four, on the same ones in each resample."""
    common = {"language": "ru", "task": "copy_sentence", "finished": True, "expected": "да"}
    sides = []
    for rights in ([1, 1, 1, 0], [1, 0, 0, 0]):
        records = [
            TaskRecord(question=str(i), answer="", exact=float(right), **common)
            for i, right in enumerate(rights)
        ]
        sides.append(next(m for m in measures(records) if m.metric == "exact match"))
    column = real_scores.Column("x", "exact match", "ru", "copy_sentence", digits=2)
    shown = real_scores.cell(column, sides[1], sides[0], is_reference=False)
    half = t.ppf(0.975, 3) * sem([0, -1, -1, 0])  # of the classical interval of a mean: wider
    assert half > 0.75
    assert shown == "0.25 (-0.50, -0.85 to +0.10)"  # two of four lost, by Wilson and MOVER


def test_a_russian_prompt_about_code_is_russian(data: Path) -> None:
    """Not by its script: most of it is Latin."""
    prompts = {"ru": "Is this right?\nprint('x')", "en": "Что значит слово «снег»?"}
    for code, prompt in prompts.items():
        assert real_scores.language_of(f"{prompt}\n{real_scores.BRIEFLY[code]}") == code
    written = list(real_scores.users_prompts(data, "ru", 2))
    asked = [each["messages"][0]["content"] for each in written]
    assert [real_scores.language_of(each) for each in asked] == ["ru", "ru"]


def test_seeds_are_averaged_as_logarithms_with_a_t_interval(tmp_path: Path) -> None:
    """Beside the original, and beside another arm of the same seed."""
    bits = {"original": [1.0, 1.0, 1.0], "mixture": [2.0, 2.5, 3.0], "text": [2.2, 2.5, 3.6]}
    size = {"tokens": 10, "characters": 20, "bytes": 30}
    for arm, values in bits.items():
        for seed, value in enumerate(values):
            file = tmp_path / str(seed) / "scores" / arm / "records.jsonl"
            file.parent.mkdir(parents=True)
            window = TextRecord(language="ru", id="1", nats=value, **size)
            save_records(file, [window])
    folders = [str(tmp_path / str(seed)) for seed in range(3)]
    command = [sys.executable, str(ROOT / "benchmarks" / "real_seeds.py"), *folders]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    beside = dict(zip(("original", "mixture"), printed.split("\nBeside ")[1:], strict=True))
    shown = {
        against: dict(re.findall(r"^\| ([\w-]+) \| .* \| (x.*) \|$", part, re.MULTILINE))
        for against, part in beside.items()
    }

    def expected(arm: str, against: str) -> str:
        logs = np.log(bits[arm]) - np.log(bits[against])
        low, high = t.interval(0.95, 2, logs.mean(), sem(logs))
        return f"x{np.exp(logs.mean()):.3f} ({np.exp(low):.3f} to {np.exp(high):.3f})"

    assert shown["original"] == {arm: expected(arm, "original") for arm in ("mixture", "text")}
    assert shown["mixture"]["text"] == expected("text", "mixture")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("sh"), reason="a shell script")
def test_the_script_for_a_gpu_runs_on_small_shapes(tmp_path: Path) -> None:
    """A line of the table of steps for each way, and one of generation, with equal answers."""
    prompts = tmp_path / "prompts.jsonl"
    asked = [[{"role": "user", "content": text[:60]}] for text in sample_texts("ru")[:4]]
    prompts.write_text("".join(json.dumps({"messages": each}) + "\n" for each in asked))
    command = ["sh", str(ROOT / "benchmarks" / "gpu.sh"), "1", str(LAB), str(prompts)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"SMALL": "1", "PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"^\| (\w+) \| [\d.]+", done.stdout, re.MULTILINE)
    assert rows == ["plain", "new_rows", "plain", "ours"]
    assert "4 of 4 answers are equal" in done.stdout
