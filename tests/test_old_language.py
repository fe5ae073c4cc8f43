"""A small cell of the table of what is kept of the old language, on the lab pair."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zstandard
from conftest import ROOT
from safetensors.torch import load_file
from test_adapt import LAB, LAB_CHANGES
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

SMALL = ["--new-tokens", "64", "--tokens", "20000", "--tuning-tasks", "8"]
SMALL += ["--characters", "2000", "--items", "2", "--limit", "4", "--prompts", "2"]
TABLE = "model.embed_tokens.weight"
ENGLISH = "The people of the town came to the house in the morning."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(ROOT / "lab" / "text" / "train", folder / "train")
    (folder / "bench").mkdir()
    prompts = [
        {"instruction": "Repeat this sentence:", "instances": [{"input": f"I am {i}."}]}
        for i in range(4)
    ]
    lines = "".join(json.dumps(each) + "\n" for each in prompts)
    (folder / "bench" / "en_user_prompts.jsonl").write_text(lines, encoding="utf-8")
    questions = [
        {"split": split, "subject": "sums", "question": f"1 + {i}?", "label": "B"}
        | {letter: str(n + i) for n, letter in enumerate("ABCD")}
        for split, count in (("dev", 5), ("test", 6))
        for i in range(count)
    ]
    lines = "".join(json.dumps(each) + "\n" for each in questions)
    (folder / "bench" / "mmlu_en.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    return folder


@pytest.mark.slow
def test_three_ways_to_new_tokens_are_compared_in_english(data, tmp_path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "old_language.py", "--model", LAB]
    command += ["--data", data, "--output", tmp_path, *SMALL, "--set", *LAB_CHANGES]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    ways, siblings = (
        json.loads((tmp_path / name / "scores.json").read_text()) for name in ("ways", "siblings")
    )
    for scores in (ways, siblings):
        assert len(scores) == 3
        for each in scores.values():
            measured = {(one["metric"], one["language"]) for one in each}
            assert {("bits per byte", "en"), ("bits per byte", "ru"), ("acc", "en")} <= measured
    # In place: as many ids, some with other tokens; English of kept tokens has the same states.
    before, after = (
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        for folder in (LAB, tmp_path / "in-place")
    )
    assert before.get_vocab_size() == after.get_vocab_size()
    changed = set(after.get_vocab()) - set(before.get_vocab())
    assert len(changed) == 64
    old, new, grown = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (LAB, tmp_path / "in-place", tmp_path / "run" / "adapt")
    )
    ids = before.encode(ENGLISH).ids
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "adapt").encode(ENGLISH) == (
        AutoTokenizer.from_pretrained(LAB).encode(ENGLISH)
    )
    with torch.inference_mode():
        states, others = (
            model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
            for model in (old, grown)
        )
    assert torch.equal(states, others)
    kept = [id_ for token, id_ in before.get_vocab().items() if token not in changed]
    kept = [id_ for id_ in kept if before.id_to_token(id_) == after.id_to_token(id_)]
    tables = [model.get_input_embeddings().weight for model in (old, new)]
    assert torch.equal(tables[0][kept], tables[1][kept])
    # The pack: what the adapted model learned beyond means, added to the sibling's means.
    start, adapted, mean, packed = (
        load_file(tmp_path / folder / "model.safetensors")[TABLE].double()
        for folder in ("run/init-instruct", "run/adapt", "sibling-mean", "sibling-pack")
    )
    size = before.get_vocab_size()
    expected = mean[size:] + (adapted - start)[size:]
    torch.testing.assert_close(packed[size:], expected, atol=0.01, rtol=0.01)
    assert not torch.equal(packed[size:], mean[size:])
    torch.testing.assert_close(packed[:size], mean[:size], atol=0, rtol=0)
