"""A small cell of the table of base models, beside transformers."""

import json
import math
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, sample_texts
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = ROOT / "lab" / "pair" / "base"


def test_text_of_a_base_model_before_and_after(tmp_path) -> None:
    """Characters a token, and the original's bits of text and of repeated text."""
    for language in ("ru", "en"):
        file = tmp_path / "data" / "train" / language / "texts.jsonl"
        file.parent.mkdir(parents=True)
        texts = [text[:400] for text in sample_texts(language)]  # each is one window
        lines = (json.dumps({"id": f"{i}", "text": text}) for i, text in enumerate(texts))
        file.write_text("\n".join(lines), encoding="utf-8")
    script, output = ROOT / "benchmarks" / "base_text.py", tmp_path / "out"
    command = [sys.executable, script, "--base", BASE, "--data", tmp_path / "data"]
    command += ["--output", output, "--languages", "ru", "--new-tokens", "32", "--tokens", "2000"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    row = done.stdout.splitlines()[-1].strip("| ").split(" | ")
    assert row[0] == "ru"
    heldout = [json.loads(line)["text"] for line in (output / "ru.heldout.jsonl").open()]
    before, after = (
        AutoTokenizer.from_pretrained(folder) for folder in (BASE, output / "ru" / "start")
    )
    for tokenizer, shown in ((before, row[1]), (after, row[2])):
        tokens = sum(
            len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in heldout
        )
        assert float(shown) == pytest.approx(sum(map(len, heldout)) / tokens, abs=0.006)
    assert float(row[2]) > float(row[1])
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()

    def bits(texts: list[str], times: int) -> float:
        """A byte of each text, the last of so many times that it is read."""
        nats = 0.0
        for text in texts:
            ids = before(text, add_special_tokens=False)["input_ids"]
            read = [before.bos_token_id, *(times * ids)]
            with torch.inference_mode():
                shares = model(torch.tensor([read])).logits[0].double().log_softmax(1)
            last = range(len(read) - len(ids), len(read))
            nats -= sum(float(shares[i - 1, read[i]]) for i in last)
        return nats / math.log(2) / sum(len(text.encode()) for text in texts)

    assert float(row[3]) == pytest.approx(bits(heldout, 1), abs=0.002)
    assert float(row[6]) == pytest.approx(bits([t[:300] for t in heldout], 2), abs=0.002)
    assert float(row[5]) < float(row[4])  # trained, and mean rows
