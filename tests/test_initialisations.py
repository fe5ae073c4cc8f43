"""The benchmark of initialisations: states, least squares, a donor, and one small run."""

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLE
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.append(str(ROOT / "benchmarks"))
import initial_rows
import initialisations


def test_states_are_those_that_transformers_returns(pair):
    model = AutoModelForCausalLM.from_pretrained(pair["base"], dtype=torch.float32).eval()
    samples = [([1, 30, 31, 32, 33], [(1, 2, 7), (3, 4, 8)]), ([1, 40, 41], [(1, 2, 9)])]
    layers = [1, len(model.model.layers) - 1]
    result = initial_rows.states(model, samples, layers)
    assert len(model.model.layers) > max(layers)  # all are back
    assert result.tokens == [7, 8, 9]
    assert result.pieces == [[30, 31], [32, 33], [40, 41]]
    for layer in layers:
        expected = []
        for ids, marks in samples:
            with torch.no_grad():
                out = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
            expected += [out[last] for _, last, _ in marks]
        torch.testing.assert_close(result.by_layer[layer], torch.stack(expected))


def test_a_linear_map_is_found_again():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=generator) * torch.tensor([1.0, 100, 1, 1, 0.01, 1])
    y = x @ torch.randn(6, 3, generator=generator) + torch.tensor([5.0, -2, 0])
    error = (initial_rows.LinearMap(x, y)(x) - y).norm() / (y - y.mean(0)).norm()
    assert error < 2 * initial_rows.RIDGE


def test_pursuit_finds_the_atoms_of_a_sum():
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((200, 64)).astype(np.float32)
    atoms *= rng.uniform(0.1, 10, (200, 1)).astype(np.float32)  # norms do not matter
    expected = [{3: 2.0, 50: -1.0}, {7: 0.5, 199: 0.7}]
    for each in expected:
        for index in each:
            each[index] /= np.linalg.norm(atoms[index])
    targets = [sum(weight * atoms[i] for i, weight in each.items()) for each in expected]
    picked, weights = initial_rows.pursuit(
        torch.tensor(np.stack(targets)), torch.tensor(atoms), nonzero=2
    )
    for each, indices, coefficients in zip(expected, picked, weights, strict=True):
        result = dict(zip(indices.tolist(), coefficients.tolist(), strict=True))
        assert result == pytest.approx(each, rel=1e-4)


def test_intervals_are_paired_by_document():
    base = [(100.0 * n * math.log(2), 100) for n in range(1, 30)]
    better = [(nats - 10 * math.log(2), size) for nats, size in base]
    assert initialisations.difference(better, base) == "-0.100, -0.100 to -0.100"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Lines of the sample text, three quarters of them to train on."""
    folder = tmp_path_factory.mktemp("corpus")
    for language in ("ru", "en"):
        text = "".join(p.read_text(encoding="utf-8") for p in sorted((SAMPLE / language).iterdir()))
        cuts = range(0, min(len(text), 120_000), 1_000)
        lines = [json.dumps({"id": f"{language}{a}", "text": text[a:b]}) for a, b in pairwise(cuts)]
        parts = {"train": lines[: 3 * len(lines) // 4], "heldout": lines[3 * len(lines) // 4 :]}
        for part, some in parts.items():
            (folder / f"{language}.{part}.jsonl").write_text("\n".join(some), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_rows_are_new_and_the_others_stay(pair, corpus, tmp_path, capsys):
    numbers = {"texts": 4, "old-texts": 2, "choice-texts": 2, "state-tokens": 3_000, "anchors": 50}
    numbers |= {"nonzero": 4, "updates": 2, "block": 64, "batch-tokens": 64}
    options = [f"--{name}={value}" for name, value in numbers.items()]
    folders = {"model": pair["base"], "tokenizer": pair["tokenizer"], "donor": pair["instruct"]}
    folders |= {"corpus": corpus, "eval": corpus / "ru.heldout.jsonl", "output": tmp_path / "out"}
    options += [f"--{name}={folder}" for name, folder in folders.items()]
    command = ["run", *options, "--arms", "mean", "hidden", "split"]
    parsed = initialisations.arguments().parse_args(command)
    parsed.verb(parsed)
    before = load_file(pair["base"] / "model.safetensors")["model.embed_tokens.weight"].float()
    usual = float(before.norm(dim=1).median())
    new = len(AutoTokenizer.from_pretrained(pair["tokenizer"])) - len(before)
    assert new == 100
    tables = {}
    for arm in ("mean", "hidden", "split"):
        weights = load_file(tmp_path / "out" / "models" / arm / "model.safetensors")
        tables[arm] = weights["model.embed_tokens.weight"].float()
        assert torch.equal(tables[arm][:-new], before)
        assert torch.isfinite(tables[arm]).all()
        record = json.loads((tmp_path / "out" / f"{arm}.json").read_text(encoding="utf-8"))
        assert len(record["start"]["ru"]) == len(record["trained"]["ru copied"]) == 4
    means = tables["mean"][-new:].norm(dim=1)
    for arm in ("hidden", "split"):
        norms = tables[arm][-new:].norm(dim=1)
        assert not torch.equal(tables[arm], tables["mean"])
        wanted = means if torch.allclose(norms, means, rtol=0.02) else torch.full((new,), usual)
        torch.testing.assert_close(norms, wanted, rtol=0.02, atol=0)

    def stamp() -> list[int]:
        return [file.stat().st_mtime_ns for file in sorted((tmp_path / "out").glob("*.json"))]

    files = stamp()
    parsed.verb(parsed)  # nothing is left to do
    assert stamp() == files
    capsys.readouterr()
    parsed = initialisations.arguments().parse_args(["table", "--output", str(tmp_path / "out")])
    parsed.verb(parsed)
    printed = capsys.readouterr().out
    assert printed.count("| `hidden` |") == printed.count("| `mean` |") == 2
