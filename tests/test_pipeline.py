"""Whole runs on the tiny pair: nothing runs twice; a killed run ends like an uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from benchmark_data import write_data
from test_card import traces

from lep.corpus.read import read_documents
from lep.errors import LepError
from lep.pipeline.recipe_file import load_grid
from lep.pipeline.run import GridStages, grid_stages, run_recipe
from lep.pipeline.stage import Runner
from lep.publish import fingerprint
from lep.tokenizer.load import load_tokenizer

ROOT = Path(__file__).parent.parent
RECIPE = """\
name: tiny
base: {pair}/base
instruct: {pair}/instruct
language: ru
text: {{ru: {text}/ru, en: {text}/en}}
corpus: {{heldout_share: 0.2, limit_characters: 40_000, limit_heldout_characters: 8_000}}
tokenizer: {{new_tokens: 60}}
pretrain: {{tokens: 8_000, learning_rate: 1e-3, block_size: 64, batch_tokens: 256}}
calibrate:
  {{prompt_tasks: 4, copy_tasks: 6, max_new_tokens: 12, batch_size: 4, learning_rate: 1e-3}}
tune: {{data_tasks: 4, copy_tasks: 6, batch_size: 4, learning_rate: 1e-3}}
evaluate:
  {{items: 2, characters: 2_000, bootstrap: 50, tasks: [copy_sentence, first_word],
    benchmark: {{tasks: [daru_rwsd], data: {data}, limit: 3}}}}
"""


@pytest.fixture(scope="module")
def recipe(pair, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    data = write_data(path.parent / "data", items=3)
    path.write_text(
        RECIPE.format(pair=pair["base"].parent, text=ROOT / "lab" / "text" / "train", data=data)
    )
    return path


@pytest.fixture(autouse=True)
def random_models_talk(monkeypatch) -> None:
    """A random model's answers never pass the rules, and calibration needs some."""
    monkeypatch.setattr("lep.calibration.answers.reason_to_drop", lambda *_: None)


REPRODUCED = {
    *("model.safetensors", "mapping.safetensors", "tokenizer.json"),
    *("scores.json", "records.jsonl", "answers.jsonl"),
}


def results(folder: Path) -> dict[str, bytes]:
    """Everything that a run has to reproduce: models, tokenizers, scores, records."""
    paths = [path for path in folder.rglob("*") if path.name in REPRODUCED]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if ".work" not in path.parts
    }


def stages_of(recipe: Path, folder: Path, *overrides: str) -> GridStages:
    return grid_stages(load_grid(recipe, overrides), folder)


def test_faults_of_benchmark_tasks_show_before_anything_runs(recipe, tmp_path) -> None:
    for override, says in {
        "tasks=[daru_rwst]": "daru_rwsd",
        f"data={tmp_path}": "rwsd has no test",
    }.items():
        with pytest.raises(LepError, match=says):
            run_recipe(recipe, tmp_path / "run", overrides=[f"evaluate.benchmark.{override}"])
    assert not (tmp_path / "run").exists()


def test_run_report_and_second_run(recipe, tmp_path) -> None:
    first: list[str] = []
    finished = run_recipe(str(recipe), str(tmp_path / "run"), say=first.append)
    page = finished.report.read_text(encoding="utf-8")
    assert "conversion + self-calibration" in page
    assert "fewer tokens" in page
    assert "http://" not in page.split("</script>")[-1]
    assert "https://" not in page.split("</script>")[-1]
    report, *tables, benchmark, verdict = str(finished).split("\n\n")
    assert [table.split()[0] for table in tables] == ["ru", "en"]
    assert verdict == finished.verdict
    assert "Russian takes" in verdict
    assert report == f"report: {tmp_path / 'run' / 'report.html'}"
    assert "Benchmark" in page
    assert "daru_rwsd" in benchmark
    lines = tables[0].splitlines()[1:]
    rows = [line.split("  ")[0] for line in lines]
    assert rows == [
        "original instruct",
        "mean initialisation",
        "swap",
        "overlap",
        "conversion",
        "conversion + self-calibration",
        "conversion + tuning",
    ]
    assert not any(cell == "-" for line in lines for cell in line.split())
    for name in ("init-instruct", "propagate-swap", "calibrate-conversion", "tune-conversion"):
        assert not traces(tmp_path / "run" / name, tmp_path, recipe.parent, ROOT)
        card = (tmp_path / "run" / name / "README.md").read_text(encoding="utf-8")
        written = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
        assert written["pretrain"]["tokens"] == 8_000
        assert written["text"] == {"ru": ["ru"], "en": ["en"]}
    assert "Russian takes" in card
    before = results(tmp_path / "run")
    assert sum(name.endswith("model.safetensors") for name in before) == 8
    again: list[str] = []
    started = time.process_time()
    repeated = run_recipe(recipe, tmp_path / "run", say=again.append)
    assert time.process_time() - started < 20
    assert len(again) == len(stages_of(recipe, tmp_path / "run").all) == len(repeated.seconds)
    assert all(line.startswith("[") and line.endswith("up to date") for line in again)
    assert repeated == finished
    assert results(tmp_path / "run") == before
    assert not any((tmp_path / "run" / ".work").iterdir())

    redone: list[str] = []
    run_recipe(recipe, tmp_path / "run", overrides=["tune.epochs=2"], say=redone.append)
    done = {line.split("] ")[1].split(":")[0] for line in redone if line.endswith(" s")}
    assert done == {"tune-conversion", "evaluate-tune-conversion"}


@pytest.mark.slow
def test_auto_is_a_method_like_the_others(recipe, tmp_path) -> None:
    changes = ["calibrate=null", "propagate=[swap, auto]", "tune.after=auto"]
    few = [
        "prompts=24",
        "characters=4000",
        "candidates=[swap, exact, new-rows]",
        "max_new_tokens=64",
    ]
    overrides = changes + [f"select.{setting}" for setting in few]
    run_recipe(recipe, tmp_path / "run", overrides=overrides)
    described = json.loads((tmp_path / "run" / "run.json").read_text())["instruct_models"]
    assert {"swap", "auto", "auto + tuning"} <= set(described)
    chosen = json.loads(
        (tmp_path / "run" / "propagate-auto" / "lep" / "selection.json").read_text()
    )
    assert chosen["chosen"].split(",")[0] in ("swap", "exact", "new-rows")


def test_old_text_is_read_again(recipe, tmp_path) -> None:
    """Stages that train on plain text read it; those before them do not depend on it."""
    changes = ["direct=true", "pretrain.tokens=5_000"]
    before = {stage.name: stage for stage in stages_of(recipe, tmp_path / "run", *changes).all}
    changed = stages_of(recipe, tmp_path / "run", *changes, "pretrain.replay={en: 0.5}")
    stages = {stage.name: stage for stage in changed.all}
    assert set(stages) - set(before) == {"replay"}
    assert [name for name in stages if stages["replay"] in stages[name].upstream] == [
        "pretrain",
        "direct",
    ]
    same = ("corpus", "tokenizer", "init-base")
    assert all(before[name].fingerprint == stages[name].fingerprint for name in same)
    Runner(changed.folder, print).run_all([stages[name] for name in (*same, "replay", "pretrain")])
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer")
    new, old = (
        [document.text for document in read_documents([tmp_path / "run" / path])]
        for path in ("corpus/ru.train.jsonl", "replay/en.jsonl")
    )
    assert 0.5 <= sum(map(len, old)) / sum(map(len, new)) < 0.6
    record = json.loads((tmp_path / "run" / "pretrain" / "lep" / "pretrain.json").read_text())
    assert record["packed_tokens"] == pytest.approx(
        sum(map(len, tokenizer(new + old)["input_ids"])), rel=0.05
    )


def test_new_rows_are_calibrated_beside_the_published_way(recipe, tmp_path) -> None:
    run = stages_of(recipe, tmp_path / "run", "direct=true", "calibrate.new_rows=direct")
    models = {title: stage.name for title, stage in run.cells[0][1].instruct_models.items()}
    assert models["conversion + self-calibration"] == "evaluate-calibrate-conversion"
    assert models["direct + self-calibration of new rows"] == "evaluate-calibrate-direct-new-rows"
    stages = {stage.name: stage for stage in run.all}
    published, new_rows = (
        stages[f"calibrate-{name}"].settings for name in ("conversion", "direct-new-rows")
    )
    assert new_rows == published | {"train": "new_rows"}
    with pytest.raises(
        LepError, match="calibrate comes after 'direct', which the recipe does not make"
    ):
        load_grid(recipe, ["calibrate.new_rows=direct"])


# Hashes of the settings that earlier versions recorded. If one changes, old runs start again.
SETTINGS = {
    "corpus": "036493dbc989fcb9",
    "tokenizer": "2a31214c67cdf3ce",
    "init-base": "55f9ae5c675282dd",
    "init-instruct": "44136fa355b3678a",
    "replay": "4207d9d923f2ef27",
    "pretrain": "916244812816e340",
    "prompts": "c4a8ddd479e92afc",
    "propagate-conversion": "99c11a90910005aa",
    "propagate-auto": "3b4f9221a5451764",
    "direct": "28cdcdc842401c27",
    "unjudged": "5928e33282fa7424",
    "answers": "c024418f755630e0",
    "calibrate-copies": "f952bdb05f264158",
    "calibrate-conversion": "8ce673b71ac0c126",
    "tune-copies": "f952bdb05f264158",
    "tuning-data": "ea5f2b6a48b04177",
    "tune-conversion": "9d6fa61906c535e9",
    "evaluate": "8cdef2df028cf022",
}


def test_a_run_of_an_earlier_version_is_continued(recipe, tmp_path) -> None:
    changes = ["direct=true", "propagate=[conversion, auto]", "pretrain.replay={en: 0.5}"]
    stages = stages_of(recipe, tmp_path / "run", *changes, "evaluate.benchmark={}").all
    names = ["evaluate" if stage.name.startswith("evaluate") else stage.name for stage in stages]
    hashes = [fingerprint(stage.settings) for stage in stages]
    assert dict(zip(names, hashes, strict=True)) == SETTINGS
    assert len(set(zip(names, hashes, strict=True))) == len(SETTINGS)


def test_a_damaged_source_is_seen_before_anything_runs(recipe, tmp_path) -> None:
    for override in (
        "base=/no/such/model",
        "text.ru=/no/such/text",
        "calibrate.prompts=/no/such.jsonl",
    ):
        with pytest.raises(LepError, match="/no/such"):
            run_recipe(recipe, tmp_path / "run", overrides=[override])
    (tmp_path / "bad.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "hi"}]}\n{"messages": "hi"}\n'
    )
    for override in ("calibrate.prompts", "tune.data"):
        bad = [f"{override}={tmp_path / 'bad.jsonl'}"]
        with pytest.raises(LepError, match=r"bad.jsonl, line 2: 'messages' must be a list"):
            run_recipe(recipe, tmp_path / "run", overrides=bad)
    assert not (tmp_path / "run").exists()


KILLED_RUN = """
import sys, lep.calibration.answers as c
from lep.pipeline.run import run_recipe
c.reason_to_drop = lambda *_: None
run_recipe(sys.argv[1], sys.argv[2])
"""


@pytest.fixture(scope="module")
def whole_run(recipe, tmp_path_factory) -> Path:
    """A run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    command = [sys.executable, "-c", KILLED_RUN, str(recipe), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_like_an_uninterrupted_one(
    recipe, whole_run, tmp_path
) -> None:
    command = [sys.executable, "-c", KILLED_RUN, str(recipe), str(tmp_path / "killed")]
    kills = 0
    for seconds in (0.05, 0.6, 0.2, 1.2, 0.4, 0.9):  # after the run began to work, at other points
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        if any(line.rstrip().endswith("...") for line in process.stdout):
            time.sleep(seconds)
            if process.poll() is None:  # on a slow machine it may be through
                kills += 1
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert kills >= 3
    assert results(tmp_path / "killed") == results(whole_run)


# Killed after they have saved a state.
TRAINING_STAGES = ("pretrain", "calibrate-conversion", "tune-conversion")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    [
        "corpus",
        "tokenizer",
        "init-base",
        "init-instruct",
        "pretrain",
        "propagate-conversion",
        "prompts",
        "unjudged",
        "answers",
        "calibrate-conversion",
        "tune-conversion",
        "evaluate-calibrate-conversion",
    ],
)
def test_a_kill_inside_each_stage(stage, recipe, whole_run, tmp_path_factory) -> None:
    """Killed while a stage works; then the same command again."""
    command = [sys.executable, "-c", KILLED_RUN, str(recipe)]
    folder = tmp_path_factory.mktemp("killed") / "run"
    process = subprocess.Popen(
        [*command, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if f"] {stage} ..." in line:
            time.sleep(0.3)
            trained = f".work/{stage}-*.partial/work/trainer/checkpoint-*/trainer_state.json"
            while stage in TRAINING_STAGES and not list(folder.glob(trained)):
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.02)
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "run.json").exists()
    subprocess.run([*command, str(folder)], check=True, capture_output=True)
    assert results(folder) == results(whole_run)
    assert json.loads((folder / "run.json").read_text())["instruct_models"]
