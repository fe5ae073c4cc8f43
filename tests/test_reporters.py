"""Trainings report to other programs while they run, and end with the same bits."""

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SAMPLE

import lep
from lep.errors import LepError
from lep.pipeline import stages as stages_module
from lep.pipeline import stages_adapt
from lep.pipeline.recipe_file import load_recipe
from lep.pipeline.recipe_stages import recipe_stages
from lep.pipeline.stages import part
from lep.settings import CalibrateSettings, TuneSettings
from lep.training.reporters import AVAILABLE

RU = SAMPLE / "ru"
SIZES = {"tokens": 600, "learning_rate": 1e-3, "block_size": 64, "batch_tokens": 128}
# What transformers uses of the package; each run has its name, and the losses reported to it.
STUB = """
runs, run, config = [], None, {}
class Run(dict):
    id = name = url = "x"
    summary = {}
    def _label(self, **_): pass
def init(project, name=None, **_):
    global run
    run = Run(name=name, losses=[])
    runs.append(run)
    class Config(dict):
        def update(self, other, **_): dict.update(self, other)
    globals()["config"] = Config()
def log(logs, **_): run["losses"] += [logs["train/loss"]] if "train/loss" in logs else []
def define_metric(*_, **__): pass
def finish():
    global run
    run = None
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A package in the place of wandb."""
    folder = tmp_path / "packages" / "wandb" / "sdk" / "lib"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").write_text("")
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text(STUB)
    (folder / "config_util.py").write_text("class ConfigError(Exception): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    yield lambda: sys.modules["wandb"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        del sys.modules[name]


def losses(folder: Path) -> list[float]:
    record = json.loads((folder / "lep" / "pretrain.json").read_text())
    return [entry["loss"] for entry in record["losses"]]


def test_losses_are_reported_and_change_nothing(pair, wandb, tmp_path) -> None:
    for name, more in {"quiet": {}, "told": {"report_to": ["wandb"]}}.items():
        lep.pretrain(pair["base"], [RU], tmp_path / name, **SIZES, **more)
    (run,) = wandb().runs
    assert run["name"] == "told"
    assert run["losses"] == pytest.approx(losses(tmp_path / "told"))
    assert len(run["losses"]) > 3
    assert wandb().run is None  # the next training begins its own
    quiet, told = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("quiet", "told")
    )
    assert quiet == told
    assert "report_to" not in (tmp_path / "told" / "lep" / "pretrain.json").read_text()


def test_tensorboard_has_the_losses(pair, tmp_path, monkeypatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    lep.pretrain(pair["base"], [RU], tmp_path / "told", report_to=["tensorboard"], **SIZES)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "told"))
    events.Reload()
    reported = [event.value for event in events.Scalars("train/loss")]
    assert reported == pytest.approx(losses(tmp_path / "told"))


def test_what_is_not_installed_is_said_at_once(pair, here, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(AVAILABLE, "mlflow", lambda: False)
    words = ["pretrain", "--model", pair["base"], "--corpus", RU, "--tokens", 1_000]
    refusal = here(*words, "--output", tmp_path / "out", "--report-to", "mlflow", code=2)
    advice = "report_to names mlflow, and its package is not installed: pip install mlflow"
    assert advice in refusal
    with pytest.raises(LepError, match=advice):
        recipe_stages(recipe(pair, tmp_path, "tune.report_to=mlflow"))
    refusal = here(*words, "--output", tmp_path / "out", "--report-to", "tensorbord", code=2)
    assert "did you mean 'tensorboard'?" in refusal
    assert not (tmp_path / "out").exists()


RECIPE = """
name: tiny
base: {pair}/base
instruct: {pair}/instruct
language: ru
text: {{ru: {text}/ru, en: {text}/en}}
tokenizer: {{new_tokens: 60}}
pretrain: {{tokens: 8_000}}
propagate: [conversion]
adapt: {{tokens: 8_000}}
calibrate: {{prompt_tasks: 4}}
tune: {{data_tasks: 4}}
"""


def recipe(pair, tmp_path, *changes: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(pair=pair["base"].parent, text=ROOT / "lab" / "text" / "train"))
    return load_recipe(path, changes)


def test_a_recipe_passes_it_on_and_builds_nothing_again(pair, wandb, tmp_path, monkeypatch) -> None:
    sections = ("pretrain", "adapt", "calibrate", "tune")
    quiet = recipe(pair, tmp_path)
    told = recipe(pair, tmp_path, *(f"{name}.report_to=wandb" for name in sections))
    before, after = (
        {stage.name: stage for stage in recipe_stages(each).all} for each in (quiet, told)
    )
    assert {n: s.fingerprint for n, s in before.items()} == {
        n: s.fingerprint for n, s in after.items()
    }
    assert told.model_dump() == quiet.model_dump()
    seen = {}
    for name, module in {"pretrain": stages_module, "adapt": stages_adapt}.items():

        def pretrain(model, corpus, output, settings, name=name) -> None:
            seen[name] = settings.report_to

        monkeypatch.setattr(module, "pretrain", pretrain)
        after[name].action(tmp_path, lambda source: Path(getattr(source, "name", source)))
    assert seen == {"pretrain": ["wandb"], "adapt": ["wandb"]}
    assert part(CalibrateSettings, told.calibrate).report_to == ["wandb"]
    assert part(TuneSettings, told.tune).report_to == ["wandb"]
