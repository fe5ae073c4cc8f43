"""What `lep doctor` says of a machine, beside what Python says of it."""

import importlib.metadata
import shutil
import tomllib

import pytest
import torch
from conftest import ROOT

import lep
from lep.pipeline import doctor as doctor_module


def test_facts_are_those_of_the_machine(here, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = here("doctor").splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("*"))
    for package in ("torch", "transformers", "tokenizers"):
        assert facts[package] == importlib.metadata.version(package)
    assert facts["lep"].startswith(lep.__version__)
    free = shutil.disk_usage(".").free / 1e9
    assert float(facts["disk"].split()[0]) == pytest.approx(free, rel=0.2)
    assert facts["hub"].startswith("offline (HF_HUB_OFFLINE is set)")
    if not torch.cuda.is_available():
        assert facts["device"].startswith(f"cpu, {torch.get_num_threads()} threads")


def test_what_will_not_work_is_said_with_the_way_out(monkeypatch) -> None:
    monkeypatch.setattr(doctor_module, "_is_there", lambda module: module != "ctranslate2")
    machine = lep.doctor()
    assert machine.missing == {"lep export --to ctranslate2": "pip install '.[ctranslate2]'"}
    last = str(machine).splitlines()[-2:]
    assert last == [
        "These will not work:",
        "* lep export --to ctranslate2: pip install '.[ctranslate2]'",
    ]
    monkeypatch.setattr(doctor_module, "_is_there", lambda module: True)
    assert "will not work" not in str(lep.doctor())


@pytest.mark.parametrize(("module", "there"), [("torch", True), ("no_such.module", False)])
def test_a_package_is_there_or_not(module: str, there: bool) -> None:
    assert doctor_module._is_there(module) is there


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert {extra for extra, _ in doctor_module.EXTRAS.values()} <= set(extras)
