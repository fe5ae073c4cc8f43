"""Grids: combinations, shared stages, several processes, and faults that name their lines."""

import fcntl
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from test_pipeline import RECIPE, ROOT, results, stages_of

from lep.errors import RecipeError
from lep.pipeline.recipe_file import load_grid
from lep.pipeline.run import run_recipe
from lep.pipeline.stage import MANIFEST, RunFolder, Runner, Stage, read_manifest
from lep.publish import publishing
from lep.report.grid import Block, Cell

GRID = """\
grid:
  axes:
    vocabulary:
      Extended: {propagate: [conversion, exact], direct: true}
      BPE:
        tokenizer: {method: bpe, new_tokens: null, vocab_size: 500}
        propagate: [swap]
        calibrate: {after: swap}
    rate:
      low: {}
      high: {pretrain: {learning_rate: 4e-3}}
  cells:
    - {vocabulary: Extended}
    - {rate: [low]}
  seeds: [0, 1]
"""


@pytest.fixture(scope="module")
def recipe(pair, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "grid.yaml"
    text = RECIPE.format(
        pair=pair["base"].parent, text=ROOT / "lab" / "text" / "train", data="none"
    )
    text = re.sub(r",\n +benchmark: .*?\}\}", "}", text)
    path.write_text(re.sub(r"tune: .*\n", "", text) + GRID)
    return path


def test_combinations(recipe) -> None:
    cells = load_grid(recipe).cells
    assert [(c.labels["vocabulary"], c.labels["rate"]) for c in cells if c.seed == 0] == [
        ("Extended", "low"),
        ("Extended", "high"),
        ("BPE", "low"),
    ]
    assert [c.seed for c in cells] == [0] * 3 + [1] * 3
    bpe, high = cells[2].recipe, cells[4].recipe
    assert (bpe.tokenizer.method, bpe.tokenizer.vocab_size, bpe.tokenizer.new_tokens) == (
        "bpe",
        500,
        None,
    )
    assert bpe.pretrain.learning_rate == 1e-3
    assert high.pretrain.learning_rate == 4e-3
    assert high.pretrain.seed == high.calibrate.seed == 1
    assert high.pretrain.batch_tokens == 256  # what an axis does not name stays


def test_common_stages_are_one(recipe, tmp_path) -> None:
    grid = stages_of(recipe, tmp_path)
    names = [grid.folder.name(stage) for stage in grid.all]
    assert len(names) == len(set(names))

    def of(start: str) -> list[str]:
        return sorted(name for name in names if name.split(".")[0] == start)

    assert of("corpus") == ["corpus"]
    assert of("answers") == ["answers"]
    assert of("tokenizer") == ["tokenizer.BPE.low", "tokenizer.Extended"]
    assert of("pretrain") == [
        "pretrain.BPE.low.seed-0",
        "pretrain.BPE.low.seed-1",
        "pretrain.Extended.high.seed-0",
        "pretrain.Extended.high.seed-1",
        "pretrain.Extended.low.seed-0",
        "pretrain.Extended.low.seed-1",
    ]
    assert len(of("direct")) == 4
    assert of("calibrate-conversion") == [
        n.replace("pretrain", "calibrate-conversion") for n in of("pretrain")[2:]
    ]


def test_another_judge_leaves_the_answers(recipe, tmp_path) -> None:
    one = ("grid.axes={}", "grid.cells=[]", "grid.seeds=[0]")
    rules, judged, short = (
        {stage.name: stage.fingerprint for stage in stages_of(recipe, tmp_path, *one, *change).all}
        for change in ([], ["calibrate.judge=j@http://127.0.0.1:9"], ["calibrate.max_new_tokens=7"])
    )
    assert rules["unjudged"] == judged["unjudged"] != short["unjudged"]
    assert len({stages["answers"] for stages in (rules, judged, short)}) == 3
    assert rules["calibrate-conversion"] != judged["calibrate-conversion"]


def test_what_is_made_keeps_its_name_when_a_grid_grows(recipe, tmp_path) -> None:
    one = stages_of(recipe, tmp_path, "grid.seeds=[0]")
    first = next(stage for stage in one.all if stage.name == "pretrain")
    assert one.folder.name(first) == "pretrain.Extended.low"
    (tmp_path / "pretrain.Extended.low").mkdir()
    record = json.dumps({"fingerprint": first.fingerprint, "seconds": 1.5})
    (tmp_path / "pretrain.Extended.low" / "lep_stage.json").write_text(record)
    grown = stages_of(recipe, tmp_path)
    assert grown.folder.name(first) == "pretrain.Extended.low"
    names = [grown.folder.name(stage) for stage in grown.all]
    assert len(names) == len(set(names))
    assert "pretrain.Extended.low.seed-1" in names


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "learning_rate: 4e-3}}",
            "learning_rat: 4e-3}}",
            r"unknown key 'pretrain.learning_rat'; did you mean",
        ),
        ("  seeds:", "  seed:", r"unknown key 'grid.seed'; did you mean 'seeds'"),
        (
            "{vocabulary: Extended}\n",
            "{vocabulary: Extendet}\n",
            r"no axis 'vocabulary' has a value 'Extendet' "
            r"\(known: Extended, BPE\)",
        ),
        ("      low: {}", "      lo/w: {}", r"'lo/w' becomes part of folder names"),
        (
            "vocab_size: 500",
            "vocab_size: 500, keep: 4",
            r"tokenizer: the method bpe has no keep: give vocab_size",
        ),
        ("new_tokens: null, ", "", r"tokenizer: the method bpe has no new_tokens"),
        (
            "after: swap",
            "after: direct",
            r"calibrate comes after 'direct', which the recipe does not make",
        ),
        (
            "low: {}",
            "low: {tune: {seed: 3}}",
            r"tune.seed is set, but the seeds of a grid are grid.seeds",
        ),
    ],
)
def test_faults_are_located(recipe, old, new, message, tmp_path) -> None:
    assert old in recipe.read_text()
    text = recipe.read_text()
    (tmp_path / "bad.yaml").write_text(text.replace(old, new))
    line = 1 + text[: text.index(old)].count("\n")
    with pytest.raises(RecipeError) as caught:
        load_grid(tmp_path / "bad.yaml")
    assert re.search(rf"bad.yaml, line {line}: {message}", str(caught.value)), str(caught.value)


def _cells(**values: list[float]) -> dict[str, Cell]:
    return {
        name: Cell({f"{name}/{seed}": v for seed, v in enumerate(each)})
        for name, each in values.items()
    }


def test_differences_are_paired_by_seed() -> None:
    cells = _cells(a=[0.1, 0.5, 0.9], b=[0.21, 0.59, 1.0], one=[0.4], step=[0.2, 0.6, 1.0])
    apart = cells["b"] - cells["a"]
    assert (round(apart.mean, 9), apart.sign) == (0.1, 1)  # though their own intervals overlap
    assert (
        cells["step"] - cells["a"]
    ).sign == 0  # one item of ten, three times: no spread to tell it from none
    assert str(cells["step"] - cells["a"]) == "0.100 ± 0.000"
    assert (cells["a"] - cells["b"]).sign == -1
    assert (cells["a"] - cells["one"]).mean == pytest.approx(0.1)
    assert (cells["one"] - cells["a"]).sign == 0  # from -0.5 to 0.3
    assert Cell({"x": 1.0}).half is None
    assert (Cell({"x": 1.0}) - Cell({"y": 0.0})).sign == 0  # one value says nothing for sure


def test_the_page_says_what_calibration_raised_and_what_not() -> None:
    before, better, same = ([0.1, 0.2, 0.3], [0.5, 0.61, 0.7], [0.0, 0.2, 0.4])
    models = {
        name: {"copy ru": Cell({f"{name}{i}": v for i, v in enumerate(values)})}
        for name, values in {
            "swap": before,
            "exact": before,
            "swap + tuning": better,
            "exact + tuning": same,
        }.items()
    }
    assert Block({}, [0, 1, 2], models).verdicts() == [
        "tuning, copy ru: raised: swap; no sure change: exact"
    ]


def _run_quietly(recipe: Path, folder: Path, log: Path) -> None:
    import lep.calibration.answers as answers

    answers.reason_to_drop = lambda *_: None
    with log.open("w", buffering=1) as out:
        print(run_recipe(recipe, folder, say=lambda text: print(text, file=out)), file=out)


@pytest.mark.slow
def test_two_processes_share_a_grid(recipe, tmp_path) -> None:
    """Each stage is made by one of them, and a stage that is deleted comes back the same."""
    context = multiprocessing.get_context("spawn")
    pair = [
        context.Process(target=_run_quietly, args=(recipe, tmp_path / "run", tmp_path / f"{i}.txt"))
        for i in range(2)
    ]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
        assert process.exitcode == 0
    logs = [(tmp_path / f"{i}.txt").read_text() for i in range(2)]
    first, second = (set(re.findall(r"\] (\S+): \d+ s", text)) for text in logs)
    assert first.isdisjoint(second)
    assert min(len(first), len(second)) > 5
    grid = stages_of(recipe, tmp_path / "run")
    assert first | second == {grid.folder.name(stage) for stage in grid.all}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "vocabulary Extended, rate high" in page
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) > 50
    assert all((tmp_path / "run" / link).exists() for link in links)

    before = results(tmp_path / "run")
    cell = "calibrate-conversion.Extended.high.seed-1"
    shutil.rmtree(tmp_path / "run" / cell)
    _run_quietly(recipe, tmp_path / "run", tmp_path / "again.txt")
    assert re.findall(r"\] (\S+): \d+ s", (tmp_path / "again.txt").read_text()) == [cell]
    assert results(tmp_path / "run") == before
    table = (tmp_path / "again.txt").read_text()
    assert "vocabulary BPE, rate low (seeds 0, 1)" in table
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["cells"]) == 6


def _slow_stage(name: str, log: Path, seconds: float) -> Stage:
    def action(output: Path, at: object) -> None:
        with publishing(output) as partial:
            append_lines(log, name)
            time.sleep(seconds)
            append_lines(log, name)
            (partial / "built").touch()

    return Stage(name, action, {})


def append_lines(log: Path, line: str) -> None:
    with log.open("a") as out:
        out.write(line + "\n")


def _run_stages(folder: Path, log: Path) -> None:
    stages = [_slow_stage(f"s{i}", log, 0.8) for i in range(6)]
    Runner(RunFolder(folder), lambda _: None).run_all(stages)


def test_a_stage_is_made_by_one_process(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_run_stages, args=(tmp_path / "run", tmp_path / "log"))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    begun_and_ended = (tmp_path / "log").read_text().split()
    assert sorted(begun_and_ended) == sorted(2 * [f"s{i}" for i in range(6)])
    pairs = zip(begun_and_ended[::2], begun_and_ended[1::2], strict=True)
    assert any(one != other for one, other in pairs)  # two were built at once


def test_a_stage_that_another_machine_built_is_seen_after_the_lock(tmp_path, monkeypatch) -> None:
    """NFS remembers that there was no manifest until the folder is opened."""
    folder, built = RunFolder(tmp_path / "run"), []
    stage = Stage("s", lambda output, at: built.append(output), {})
    remembered: set[Path] = set()
    lock, open_, read = fcntl.lockf, os.open, read_manifest

    def lock_late(file, operation, *place) -> None:
        if operation != fcntl.LOCK_UN:  # the other machine has just left it
            folder.of(stage).mkdir()
            manifest = {"fingerprint": stage.fingerprint, "seconds": 1}
            (folder.of(stage) / MANIFEST).write_text(json.dumps(manifest))
            remembered.update([folder.path, folder.of(stage)])
        lock(file, operation, *place)

    def open_and_ask(path, *options, **more) -> int:
        remembered.discard(path)
        return open_(path, *options, **more)

    monkeypatch.setattr(fcntl, "lockf", lock_late)
    monkeypatch.setattr(os, "open", open_and_ask)
    seen = "lep.pipeline.stage.read_manifest"
    monkeypatch.setattr(seen, lambda path: {} if remembered else read(path))
    Runner(folder, lambda line: None).run_all([stage])
    assert not built
    assert (folder.of(stage) / MANIFEST).exists()


def test_a_stage_says_how_much_memory_it_held(tmp_path: Path) -> None:
    """The second stage does not count what the first one gave back."""
    size = 400 << 20

    def take(output: Path, at) -> None:
        held = bytearray(size)
        held[:: 1 << 12] = b"1" * (size >> 12)  # each page is touched
        output.mkdir()

    stages = [Stage("much", take, {}), Stage("little", lambda output, at: output.mkdir(), {})]
    Runner(RunFolder(tmp_path), lambda line: None).run_all(stages)
    much, little = (
        json.loads((tmp_path / stage.name / MANIFEST).read_text())["memory"]["machine"]
        for stage in stages
    )
    assert much > size
    if sys.platform == "linux":
        assert 0.9 * size < much - little < 1.1 * size


def test_a_stage_counts_the_seconds_of_attempts_that_were_cut(tmp_path: Path) -> None:
    """Each up to the last file that it wrote, whose time is set here; one that wrote none leaves
    nothing behind.
    """
    lasted = iter([100, 50, 0])

    def write(output: Path, at) -> None:
        seconds = next(lasted)
        if seconds:
            file = output.with_name(output.name + ".partial") / "deeper" / "file"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            for path in (file, *list(file.parents)[:2]):
                os.utime(path, (time.time() + seconds,) * 2)
            raise KeyboardInterrupt
        output.mkdir()

    def fail(output: Path, at) -> None:
        raise KeyboardInterrupt

    stage = Stage("s", write, {})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Runner(RunFolder(tmp_path / "run"), lambda line: None).run_all([stage])
    runner = Runner(RunFolder(tmp_path / "run"), lambda line: None)
    runner.run_all([stage])
    assert runner.seconds["s"] == pytest.approx(150, abs=5)
    assert not any((tmp_path / "run" / ".work").iterdir())
    with pytest.raises(KeyboardInterrupt):
        Runner(RunFolder(tmp_path / "none"), lambda line: None).run_all([Stage("f", fail, {})])
    assert not (tmp_path / "none").exists()


def test_a_stage_that_is_built_is_told_with_those_that_come(tmp_path: Path) -> None:
    """Not one that is up to date, nor the last one: nothing comes after it."""

    def write(output: Path, at) -> None:
        output.mkdir()

    first = Stage("first", write, {"x": 1})
    second, third = (Stage(name, write, {}, (first,)) for name in ("second", "third"))
    told: list[list[str]] = []

    def run(stages: list[Stage]) -> None:
        Runner(RunFolder(tmp_path / "run"), lambda line: None, told.append).run_all(stages)

    run([first, second, third])
    assert told == [["second", "third"], ["third"]]
    run([first, second, third])
    assert len(told) == 2
