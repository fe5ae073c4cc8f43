"""The package as a library: every public name loads, and the example of the README runs."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, sample_texts

import lep


@pytest.mark.parametrize("name", lep.__all__)
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    value = getattr(lep, name)
    assert isinstance(value, dict) or value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lep' has no attribute 'propagat'"):
        lep.propagat  # noqa: B018


@pytest.mark.slow
def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As it is written, in a copy of the repository's lab."""
    pages = [(ROOT / page).read_text() for page in ("README.md", "docs/how-to/python.md")]
    examples = [each for page in pages for each in re.findall(r"```python\n(.*?)```", page, re.S)]
    assert len(examples) == 4
    shutil.copytree(ROOT / "lab", tmp_path / "lab")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for example in examples:
        exec(compile(example, "example", "exec"), names)
    assert names["rows"].shape == (names["mapping"].target_size, names["before"].shape[1])
    # What the example says of itself, computed without it: conversion is least squares of M E.
    mapping, before, after = (names[name] for name in ("mapping", "before", "after"))
    source, target = (mapping(table.double()) for table in (before, after))
    expected = source @ torch.linalg.lstsq(source, target).solution
    distances = [(rows.double() - expected).norm() for rows in (names["rows"], source)]
    assert distances[0] < 0.01 * expected.norm() < distances[1]  # rows are stored in 16 bits
    printed = capsys.readouterr().out
    assert "256" in printed
    assert "runs/lab/trained" in printed


VERBS = {
    "corpus": lambda model, paths, out: lep.build_corpus(paths, out),
    "counts": lambda model, paths, out: lep.count_corpus(model, paths, out / "ru.counts.zst"),
    "extend": lambda model, paths, out: lep.extend_tokenizer(model, paths, 8, out),
    "optimize": lambda model, paths, out: lep.optimize_tokenizer(
        model, paths, 330, 340, out, protect=paths
    ),
    "compare": lambda model, paths, out: str(
        lep.compare_tokenizers(model if isinstance(paths, str) else [model], {"ru": paths})
    ).splitlines()[:2],  # the others tell the speed
    "bits": lambda model, paths, out: lep.bits_per_byte(model, paths),
    "evaluate": lambda model, paths, out: lep.evaluate(
        model if isinstance(paths, str) else [model], {"ru": paths}, out, tasks=[]
    ),
    "pretrain": lambda model, paths, out: lep.pretrain(model, paths, out, tokens=500),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_path_alone_is_not_its_letters(verb: str, pair: dict[str, Path], tmp_path: Path) -> None:
    """As `/` is the first letter of many, a verb once read the whole disk."""
    file = tmp_path / "ru.txt"
    file.write_text("\n\n".join(sample_texts("ru")[:3]), encoding="utf-8")
    results = []
    for name, paths in (("alone", str(file)), ("listed", [file])):
        output = tmp_path / name
        output.parent.mkdir(exist_ok=True)
        if verb == "counts":
            output.mkdir()
        result = VERBS[verb](pair["instruct"], paths, output)
        files = sorted(f for f in output.rglob("*.*") if f.suffix in (".zst", ".safetensors"))
        files += sorted(output.rglob("tokenizer.json"))
        written = [each.read_bytes() for each in files]
        results.append((written, str(result).replace(str(output), "")))
    if verb == "pretrain":  # the result tells its time
        results = [written for written, _ in results]
    assert results[0] == results[1]
    assert results[0]
