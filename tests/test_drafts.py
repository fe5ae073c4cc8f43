"""Speculative decoding by transformers: a draft model for a model with new tokens."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SAMPLE, weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import lep

BASE, INSTRUCT = ROOT / "lab" / "pair" / "base", ROOT / "lab" / "pair" / "instruct"
PADDING, MAX_TOKENS = 64, 24
TEXTS = ["Кошка сидит на", "Утром на", "The lake was quiet"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """The lab's instruct model with new tokens; its base, with more rows, given the same ones."""
    path = tmp_path_factory.mktemp("drafts")
    lep.extend_tokenizer(INSTRUCT, [SAMPLE / "ru"], 200, path / "tokenizer")
    lep.initialise(INSTRUCT, path / "tokenizer", path / "model")
    lep.initialise(padded(path / "base"), path / "tokenizer", path / "draft")
    size = len(AutoTokenizer.from_pretrained(INSTRUCT))
    lep.optimize_tokenizer(
        INSTRUCT, [SAMPLE / "ru"], size - 200, size, path / "in-place-tokenizer", in_place=True
    )
    lep.initialise(INSTRUCT, path / "in-place-tokenizer", path / "in-place")
    return {name: path / name for name in ("model", "draft", "in-place")}


def padded(path: Path) -> Path:
    """The lab's base model with rows that no token has."""
    path.mkdir()
    for file in BASE.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    tensors = weights(BASE)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.nn.functional.pad(tensors[name], (0, 0, 0, PADDING))
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    settings = json.loads((path / "config.json").read_text())
    settings["vocab_size"] += PADDING
    (path / "config.json").write_text(json.dumps(settings))
    return path


def load(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def passes(model: torch.nn.Module, prompt: list[int], **drafts) -> tuple[list[int], int]:
    """A greedy answer, and how many times the model was called for it."""
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    inputs = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": MAX_TOKENS, "pad_token_id": 0}
    result = model.generate(inputs, attention_mask=torch.ones_like(inputs), **options, **drafts)
    hook.remove()
    return result[0, len(prompt) :].tolist(), len(calls)


def check(folder: Path, **drafts) -> None:
    """The drafts change no answer, and save calls of the model."""
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    calls, plain_calls = 0, 0
    for text in TEXTS:
        prompt = tokenizer(text)["input_ids"]
        plain, count = passes(model, prompt)
        answer, fewer = passes(model, prompt, **drafts)
        assert answer == plain
        calls, plain_calls = calls + fewer, plain_calls + count
    assert calls < plain_calls


def test_init_gives_a_draft_model_the_same_vocabulary(models: dict[str, Path]) -> None:
    """However many rows it had, so that programs which compare sizes or ids take it."""
    names = ("model", "draft")
    sizes = [json.loads((models[name] / "config.json").read_text())["vocab_size"] for name in names]
    vocabularies = [AutoTokenizer.from_pretrained(models[name]).get_vocab() for name in names]
    assert sizes[0] == sizes[1] == len(vocabularies[0])
    assert vocabularies[0] == vocabularies[1]
    check(models["model"], assistant_model=load(models["draft"]))


def test_the_original_drafts_where_both_tokenizers_are_given(models: dict[str, Path]) -> None:
    draft, prompt = load(INSTRUCT), [1, 5]
    with pytest.raises(ValueError, match="different tokenizers"):
        passes(load(models["model"]), prompt, assistant_model=draft)
    tokenizers = {
        "tokenizer": AutoTokenizer.from_pretrained(models["model"]),
        "assistant_tokenizer": AutoTokenizer.from_pretrained(INSTRUCT),
    }
    check(models["model"], assistant_model=draft, **tokenizers)


def test_the_original_drafts_for_a_vocabulary_in_place(models: dict[str, Path]) -> None:
    """Its size is the same, and ids that mean something else cost time, not answers."""
    ids = [
        AutoTokenizer.from_pretrained(path).get_vocab() for path in (INSTRUCT, models["in-place"])
    ]
    assert ids[0] != ids[1]
    check(models["in-place"], assistant_model=load(INSTRUCT))


def test_prompt_lookup_needs_no_draft_model(models: dict[str, Path]) -> None:
    check(models["model"], prompt_lookup_num_tokens=3)
