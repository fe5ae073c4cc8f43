"""Batches from which ended rows leave, nuclei, and packed layers, beside transformers."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    TopPLogitsWarper,
)

from lep.inference import generate, models
from lep.inference.generate import Nucleus, Sampling, answers, continuations, end_tokens
from lep.inference.models import load_model, load_writer
from lep.inference.packed import PackedLinear, pack
from lep.tokenizer.chat import chat_ids

LAB = ROOT / "lab" / "pair" / "instruct"
TEXTS = ["Тихо.", "Вечером в саду пели птицы.", "Он взял книгу, сел у окна и долго читал её вслух."]


def rows_of(texts: list[str]) -> tuple[object, list[list[int]]]:
    tokenizer = AutoTokenizer.from_pretrained(LAB)
    rows = []
    for text in texts:
        messages = [{"role": "user", "content": f"Повтори это предложение: {text}"}]
        shown = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        rows.append(tokenizer(shown, add_special_tokens=False)["input_ids"])
    return tokenizer, rows


def until_end(row: list[int], ends: set[int]) -> list[int]:
    stop = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: stop + 1]


def test_a_turn_ends_where_the_template_ends_it(tmp_path) -> None:
    """A model tuned from a base may have the base's settings, which know the end of a text only."""
    shutil.copytree(LAB, tmp_path / "model")
    tokenizer, rows = rows_of(TEXTS)
    base = {"eos_token_id": tokenizer.eos_token_id}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(base))
    plain = AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float32).eval()
    model, _ = load_writer(tmp_path / "model")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert end_tokens(model) == {tokenizer.eos_token_id, end}
    for row, written in zip(
        rows, continuations(model, tokenizer, rows, max_new_tokens=40), strict=True
    ):
        expected = plain.generate(torch.tensor([row]), max_new_tokens=40, do_sample=False)
        ids = until_end(written.ids, {end})
        assert ids == until_end(expected[0, len(row) :].tolist(), {end})
        assert ids[-1] == end


@pytest.mark.parametrize("part", [3, 16])
def test_rows_that_end_leave_the_batch_and_the_others_go_on(part, monkeypatch) -> None:
    monkeypatch.setattr(generate, "PART", part)
    tokenizer, rows = rows_of(TEXTS)
    plain = AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float32).eval()
    expected = []
    for row in rows:  # each alone, in one piece
        written = plain.generate(torch.tensor([row]), max_new_tokens=40, do_sample=False)
        expected.append(written[0, len(row) :].tolist())
    sizes, forward = [], plain.forward

    def watched(*args: object, **options: object) -> object:
        sizes.append(len(options["input_ids"]))
        return forward(*args, **options)

    plain.forward = watched
    found = continuations(plain, tokenizer, rows, max_new_tokens=40)
    ends = end_tokens(plain)
    found = [each.ids for each in found]
    assert [until_end(row, ends) for row in found] == [until_end(row, ends) for row in expected]
    assert sizes[0] == len(rows)
    assert sizes[-1] < len(rows)
    shortest = min(len(until_end(row, ends)) for row in expected)
    assert sizes.count(len(rows)) < shortest + part


def test_rows_stay_where_a_cache_has_other_layers(monkeypatch) -> None:
    tokenizer, rows = rows_of(TEXTS)
    model = load_model(LAB)[0]
    monkeypatch.setattr(generate, "PART", 3)
    expected = continuations(model, tokenizer, rows, max_new_tokens=30)
    monkeypatch.setattr(generate, "DynamicLayer", type("Other", (), {}))
    found, ends = continuations(model, tokenizer, rows, max_new_tokens=30), end_tokens(model)
    found, expected = ([until_end(row.ids, ends) for row in rows] for rows in (found, expected))
    assert found == expected


def test_an_answer_that_is_cut_off_has_as_many_tokens_as_asked_for() -> None:
    tokenizer, rows = rows_of(TEXTS)
    model = load_model(LAB)[0]
    (written,) = continuations(model, tokenizer, rows[2:], max_new_tokens=5)
    assert len(written.ids) == len(written.nats) == 5


def test_no_answer_goes_beyond_the_context(tmp_path) -> None:
    """Learned positions end there: one more would be an error."""
    tokenizer, _ = rows_of(TEXTS)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=40)
    model = GPT2LMHeadModel(config).eval()
    prompts = [[{"role": "user", "content": text}] for text in ("да", "нет " * 5)]
    lengths = [len(chat_ids(tokenizer, messages, ask=True)) for messages in prompts]
    options = {"max_new_tokens": 100, "batch_size": 2, "leave_out": True}
    (batch,) = answers(model, tokenizer, prompts, **options)
    assert max(lengths) < 40
    assert {len(answer.ids) for answer in batch} == {40 - max(lengths)}


def test_samples_of_a_batch_are_drawn_again() -> None:
    tokenizer, rows = rows_of(TEXTS)
    model, sampling = load_model(LAB)[0], Sampling(1.5, 0.9, 3)
    first, again, other = (
        continuations(model, tokenizer, rows, max_new_tokens=20, sampling=sampling, draw=draw)
        for draw in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("sampling", [None, Sampling(1.5, 0.9, 3)])
def test_what_is_written_has_its_likelihood(sampling, monkeypatch) -> None:
    """Of the model's own scores, before temperature and nucleus, also after rows have left."""
    monkeypatch.setattr(generate, "PART", 3)
    tokenizer, rows = rows_of(TEXTS)
    model = AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float32).eval()
    found = continuations(model, tokenizer, rows, max_new_tokens=30, sampling=sampling)
    lengths = [len(until_end(each.ids, end_tokens(model))) for each in found]
    assert len(set(lengths)) > 1
    for row, each, length in zip(rows, found, lengths, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([row + each.ids[:length]])).logits[0].double()
        shares = logits.log_softmax(1)[len(row) - 1 : -1]
        expected = [-float(share[token]) for share, token in zip(shares, each.ids, strict=False)]
        assert each.nats[:length] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_a_nucleus_is_that_of_transformers(temperature) -> None:
    """Among the most likely tokens, and where it is larger than these."""
    generator = torch.Generator().manual_seed(0)
    sharpness = torch.tensor([0.1, 1.0, 2.0, 4.0, 8.0])[:, None]
    scores = torch.randn(5, 20_000, generator=generator) * sharpness
    expected = TopPLogitsWarper(0.9)(None, scores / temperature)
    found = Nucleus(temperature, 0.9)(torch.zeros(5, 1, dtype=torch.int64), scores)
    sizes = torch.isfinite(expected).sum(1)
    assert sizes[0] > generate.CANDIDATES > sizes[-1] > 0
    assert torch.equal(torch.isfinite(found), torch.isfinite(expected))
    inside = torch.isfinite(expected)
    assert torch.equal(found[inside], expected[inside])


def test_packed_layers_multiply_as_before() -> None:
    plain = AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float32).eval()
    packed = load_model(LAB, writes=True)[0]
    assert not any(type(module) is nn.Linear for module in packed.modules())
    ids = torch.randint(0, 1_000, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = (model(input_ids=ids).logits for model in (plain, packed))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_layers_with_and_without_bias_are_packed_and_others_stay() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4, bias=False), nn.ReLU())
    states, weights = torch.randn(2, 5, 8), [layers[0].weight.clone(), layers[1].weight.clone()]
    with torch.inference_mode():
        expected = layers(states)
        pack(layers)
        torch.testing.assert_close(layers(states), expected)
    assert [
        torch.equal(layer.weight, weight) for layer, weight in zip(layers, weights, strict=False)
    ] == [True] * 2
    assert [type(layer) for layer in layers] == [PackedLinear, PackedLinear, nn.ReLU]
    half = nn.Sequential(nn.Linear(8, 8)).half()
    pack(half)
    assert type(half[0]) is nn.Linear


@pytest.mark.parametrize("fast", [True, False])
def test_a_model_writes_in_bf16_where_that_is_fast(fast, monkeypatch) -> None:
    monkeypatch.setattr(models, "multiplies_bf16", lambda: fast)
    writer = load_writer(LAB)[0]
    dtype = torch.bfloat16 if fast else torch.float32
    assert {tensor.dtype for tensor in writer.parameters()} == {dtype}
    assert not any(type(module) is nn.Linear for module in writer.modules())
    plain = AutoModelForCausalLM.from_pretrained(LAB, dtype=dtype).eval()
    ids = torch.randint(0, 1_000, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = (model(input_ids=ids).logits for model in (plain, writer))
    assert found.dtype == dtype
    bound = 1e-4 if dtype == torch.float32 else 0.05 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    assert load_model(LAB, writes=True)[0].dtype == torch.float32  # as what is measured


def test_a_cpu_writes_float16_as_float32(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(models, "multiplies_bf16", lambda: True)
    AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(LAB).save_pretrained(tmp_path)
    on_cpu = models.device().type == "cpu"
    assert load_writer(tmp_path)[0].dtype == (torch.float32 if on_cpu else torch.float16)


@pytest.mark.parametrize(("seconds", "fast"), [(0.5, True), (0.9, False), (2, False)])
def test_what_a_cpu_multiplies_fast_is_measured(seconds, fast, monkeypatch) -> None:
    """By the best of seven products of one thread, in its own time: beside another program that
    keeps all cores busy, two threads wait for each other, and float32 once seemed as fast.
    """
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    taken = [3, 1, 5, 1, 1, 2, 1, 9, 9, 9, seconds, 9, 9, 9]
    ticks = iter([t for second in taken for t in (0, second)])
    threads, used = torch.get_num_threads(), []
    clock = SimpleNamespace(thread_time=lambda: next(ticks))
    monkeypatch.setattr(models, "time", clock)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_num_threads", used.append)
        assert models.multiplies_bf16.__wrapped__() == fast
    assert used == [1, threads]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert models.multiplies_bf16.__wrapped__()  # nothing is measured: no tick is left
