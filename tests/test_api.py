"""The package as a library: every public name loads, and the example of the README runs."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import lep


@pytest.mark.parametrize("name", lep.__all__)
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    value = getattr(lep, name)
    assert isinstance(value, dict) or value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lep' has no attribute 'propagat'"):
        lep.propagat  # noqa: B018


@pytest.mark.slow
def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As it is written, in a copy of the repository's lab."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shutil.copytree(ROOT / "lab", tmp_path / "lab")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["rows"].shape == (names["mapping"].target_size, names["before"].shape[1])
    # What the example says of itself, computed without it: conversion is least squares of M E.
    mapping, before, after = (names[name] for name in ("mapping", "before", "after"))
    source, target = (mapping(table.double()) for table in (before, after))
    expected = source @ torch.linalg.lstsq(source, target).solution
    distances = [(rows.double() - expected).norm() for rows in (names["rows"], source)]
    assert distances[0] < 0.01 * expected.norm() < distances[1]  # rows are stored in 16 bits
    printed = capsys.readouterr().out
    assert "256" in printed
    assert "runs/ru/trained" in printed
