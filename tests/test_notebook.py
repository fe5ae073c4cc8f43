"""The notebook runs, cell by cell, and says what transformers says of its result."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from transformers import AutoTokenizer

NOTEBOOK = ROOT / "examples" / "adapt.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(ROOT / "lab", tmp_path / "lab")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["run"].report.is_file()
    tokens = [
        len(
            AutoTokenizer.from_pretrained(folder)(names["text"], add_special_tokens=False).input_ids
        )
        for folder in (ROOT / "lab" / "pair" / "instruct", "runs/notebook/adapt")
    ]
    assert tokens[1] < tokens[0]
    printed = capsys.readouterr().out
    assert f"\n{tokens[0]} [" in printed
    assert f"\n{tokens[1]} [" in printed
    assert names["run"].verdict in printed


def test_the_notebook_is_clean() -> None:
    """No output of anyone's machine, and nothing but text and Python."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            compile("".join(cell["source"]), "cell", "exec")
