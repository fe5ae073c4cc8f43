"""Training: packing loses nothing, the body stays, a resumed run ends like an uninterrupted one."""

import json
import math
import random
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, SAMPLE, TEMPLATE, changed, kill_when, save_model, weights
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config

from lep.checkpoint.reader import Checkpoint
from lep.corpus.blocks import packed, token_pieces
from lep.corpus.copies import copy_records
from lep.corpus.read import Document, read_documents, read_messages, write_records
from lep.errors import CheckpointError, CorpusError, LepError, OutputError, TrainingError
from lep.inference.models import load_model
from lep.settings import CalibrateSettings, JointSettings, PretrainSettings, TuneSettings
from lep.tokenizer.load import load_tokenizer
from lep.training.data import (
    check_sharing,
    collate,
    isolates,
    look_tokens,
    packed_blocks,
    schedule,
    tokens_of,
)
from lep.training.heldout import HeldoutText
from lep.training.loss import head_is_plain, head_loss, linear_cross_entropy
from lep.training.optimizer import EPSILON_SHARE, decay_touched_rows, scale_epsilon
from lep.training.pretrain import pretrain
from lep.training.samples import Sample, batches, collate_answers, encode_records, in_order
from lep.training.states import check_step, last_state
from lep.training.trainable_rows import check_frozen, frozen_digest
from lep.training.trainer import (
    StopWhenDiverging,
    TablesTrainer,
    load_to_train,
    logging_steps,
    look_steps,
    uses_bf16,
)
from lep.training.tune import CALIBRATION, NEW_ROWS, train_adapter, tune
from lep.transfer.initialise import initialise

RU, EN = [SAMPLE / "ru"], [SAMPLE / "en"]
SIZES = {"learning_rate": 5e-3, "block_size": 64, "batch_tokens": 256}
SETTINGS = PretrainSettings(tokens=6000, weight_decay=0.1, checkpoints=5, **SIZES)
TABLES = {"model.embed_tokens.weight", "lm_head.weight"}


def variant(settings: Any = SETTINGS, **changes: Any) -> Any:
    return settings.model_copy(update=changes)


@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=16), max_size=60),
    st.integers(16, 40),
)
def test_packing_loses_no_token_and_cuts_no_piece(pieces, block) -> None:
    blocks = list(packed(pieces, block))
    assert sorted(piece for inside in blocks for piece in inside) == sorted(pieces)
    assert all(sum(map(len, inside)) <= block for inside in blocks)
    full = sum(map(len, pieces)) / block
    assert len(blocks) <= 2 * full + 1  # no two blocks could be one


def test_a_piece_longer_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens is longer than a block of 4"):
        list(packed([[1, 2, 3, 4, 5]], 4))


def text_of(pieces, tokenizer) -> str:
    return tokenizer.decode([*chain(*pieces)], skip_special_tokens=True)


@pytest.mark.parametrize("block", [24, 100, 5000])
def test_pieces_begin_where_lines_begin_and_hold_all_text(pair, block) -> None:
    tokenizer = load_tokenizer(pair["tokenizer"])
    documents = list(read_documents(RU))
    pieces = list(token_pieces(documents, tokenizer, block))
    assert max(map(len, pieces)) <= block
    ends = [i for i, ids in enumerate(pieces) if ids[-1] == tokenizer.eos_token_id]
    assert len(ends) == len(documents)
    starts = [0, *(end + 1 for end in ends)]
    for document, first, last in zip(documents, starts, ends, strict=False):
        parts = pieces[first : last + 1]
        assert parts[0][0] == tokenizer.bos_token_id
        assert text_of(parts, tokenizer) == document.text
        begun = text_of(parts[:1], tokenizer)
        for ids in parts[1:]:
            if ids[0] == tokenizer.bos_token_id:
                assert begun.endswith("\n")
            begun += text_of([ids], tokenizer)


def test_a_very_long_document_is_given_to_the_tokenizer_in_parts(pair, monkeypatch) -> None:
    """With lines and without: the same text, one end, and no part longer than the limit."""
    tokenizer, seen = load_tokenizer(pair["tokenizer"]), []
    monkeypatch.setattr("lep.corpus.blocks.LONGEST", 1_000)

    class Watching:
        eos_token_id = tokenizer.eos_token_id
        num_special_tokens_to_add = staticmethod(tokenizer.num_special_tokens_to_add)

        def __call__(self, texts, **options):
            seen.extend(map(len, texts))
            return tokenizer(texts, **options)

    for text in ("река\n" * 900, "река" * 900, "река\n" * 200 + "лес" * 1_000):
        pieces = list(token_pieces([Document("d", text, "s", "g")], Watching(), 64))
        assert text_of(pieces, tokenizer) == text
        ended = [ids[-1] == tokenizer.eos_token_id for ids in pieces]
        assert ended == [False] * (len(pieces) - 1) + [True]
    assert max(seen) <= 1_000


def test_documents_in_a_block_do_not_see_each_other(pair) -> None:
    """Hidden states of a document do not depend on what precedes it; no label crosses over."""
    model = AutoModelForCausalLM.from_pretrained(pair["base"], dtype=torch.float64)
    assert isolates(model)
    first, second, other = ([7, 8, 9, 10], [5, 6, 11], [12, 13, 14, 15])
    states = []
    for before in (first, other):
        samples = [
            {"input_ids": before + second, "lengths": [4, 3]},
            {"input_ids": list(range(9)), "lengths": [9]},
        ]
        batch = collate(samples)
        labels = batch.pop("labels")[0].tolist()
        assert labels == [-100, *before[1:], -100, *second[1:], -100, -100]
        outputs = model.get_decoder()(**batch, use_cache=False)
        states.append(outputs.last_hidden_state[0, 4:7])
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    alone = model.get_decoder()(input_ids=torch.tensor([second]), use_cache=False)
    torch.testing.assert_close(states[0], alone.last_hidden_state[0])


def test_a_model_that_ignores_positions_is_told(pair) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair["base"], dtype=torch.float32)
    plain = model.forward
    model.forward = lambda input_ids, use_cache: plain(input_ids=input_ids, use_cache=use_cache)
    assert not isolates(model)
    model.forward = lambda input_ids, position_ids=None, use_cache=False: plain(input_ids=input_ids)
    assert not isolates(model)


def test_rounding_is_not_taken_for_a_leak(pair) -> None:
    """A mask that isolates may round differently: by up to 0.04 of the effect in bf16."""
    model = AutoModelForCausalLM.from_pretrained(pair["base"], dtype=torch.bfloat16)
    plain, rounding = model.forward, torch.randn(500, generator=torch.manual_seed(0))

    def forward(position_ids=None, **inputs):
        logits = plain(position_ids=position_ids, **inputs).logits.float()
        restarts = position_ids is not None and int((position_ids == 0).sum()) > 1
        extra = 0.05 * logits.abs().max() * rounding[: logits.shape[-1]]
        return SimpleNamespace(logits=logits + extra * restarts)

    model.forward = forward
    assert isolates(model)


def test_one_layer_that_leaks_is_seen(pair) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair["base"], dtype=torch.bfloat16)
    assert isolates(model)
    layer = model.get_decoder().layers[-1]
    layer.register_forward_pre_hook(
        lambda _, inputs, options: (inputs, options | {"attention_mask": None}), with_kwargs=True
    )
    assert not isolates(model)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 2, 0.5])
def test_an_epoch_is_every_block_once(pair, tmp_path, monkeypatch, epochs) -> None:
    seen = []

    def counting(samples, **options):
        ids = [sample["input_ids"] for sample in samples]
        seen.extend(tuple(each) for each in ids if isinstance(each, list))  # probes are tensors
        return collate(samples, **options)

    monkeypatch.setattr("lep.training.data.collate", counting)
    settings = PretrainSettings(epochs=epochs, learning_rate=1e-3, block_size=64, batch_tokens=1024)
    result = pretrain(pair["base"], RU, tmp_path / "out", settings)
    blocks = result.blocks
    # up to a whole step, and what is read ahead
    assert len(seen) == pytest.approx(epochs * blocks, abs=32)
    assert len(set(seen)) == (blocks if epochs >= 1 else len(seen))
    assert result.tokens == pytest.approx(epochs * result.packed_tokens, rel=0.02)


@pytest.mark.parametrize(("blocks", "epochs"), [(48, 3), (48, 1.5), (100, 2)])
def test_passes_over_a_corpus_are_whole(blocks, epochs) -> None:
    """The last step of a pass is short where steps do not divide the corpus."""
    tokens = round(epochs * blocks * 64)
    settings = PretrainSettings(tokens=tokens, batch_tokens=44 * 64, micro_batch_tokens=64)
    sequences, _, steps = schedule(settings, 64, blocks)
    per_pass = math.ceil(blocks / sequences)
    whole, rest = divmod(steps, per_pass)
    assert whole * blocks + rest * sequences >= epochs * blocks
    assert (whole - (rest == 0)) * blocks < epochs * blocks


@pytest.mark.parametrize(("schedule", "steps"), [("cosine", 12), ("wsd", 20)])
def test_rates_rise_from_the_first_step_on(adapted, tmp_path, schedule, steps) -> None:
    """No step has the rate zero: warm-up begins with a share, and the end is not reached."""
    tokens = steps * 256
    settings = variant(tokens=tokens, schedule=schedule, warmup_steps=4, learning_rate=1e-3)
    result = pretrain(adapted, EN, tmp_path / "out", settings)
    rates = [entry.learning_rate for entry in result.losses]
    assert len(rates) == result.steps == steps
    rising = [1e-3 * step / 4 for step in (1, 2, 3, 4)]
    rest, total = range(5, steps + 1), steps + 1
    if schedule == "cosine":
        falling = [0.5e-3 * (1 + math.cos(math.pi * (s - 4) / (total - 4))) for s in rest]
    else:  # the last fifth of the steps decays
        begin = total - round(0.2 * steps)
        falling = [
            1e-3 if s <= begin else 0.5e-3 * (1 + math.cos(math.pi * (s - begin) / (total - begin)))
            for s in rest
        ]
    assert rates == pytest.approx(rising + falling, rel=1e-6)


def test_documents_are_drawn_where_a_training_needs_few(pair, tmp_path) -> None:
    """Of 1,500 documents for 700 tokens, some are packed, from everywhere; else all."""
    words = ["река", "лес", "поле", "гора"]
    texts = [f"{' '.join(words[i % 4 :])} {i}" for i in range(1_500)]
    lines = "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(texts))
    (tmp_path / "c.jsonl").write_text(lines)
    checkpoint = Checkpoint(pair["base"])
    counts = {}
    for budget in (700, 1_000_000, None):
        folder = tmp_path / f"packed{budget}"
        blocks = packed_blocks(checkpoint, [tmp_path / "c.jsonl"], 64, folder, str(budget), budget)
        counts[budget] = tokens_of(blocks)
        numbers = [n for block in blocks["input_ids"] for n in numbers_in(checkpoint, block)]
        assert min(numbers) < 150
        assert max(numbers) > 1_350
    ids = checkpoint.tokenizer(texts)["input_ids"]
    assert counts[1_000_000] == counts[None] == sum(map(len, ids)) + len(ids)
    assert 2 * 700 <= counts[700] < 2.5 * 700


def numbers_in(checkpoint: Checkpoint, ids: list[int]) -> list[int]:
    text = checkpoint.tokenizer.decode(ids, skip_special_tokens=True)
    return [int(number) for number in re.findall(r"\d+", text)]


def test_looks_are_planned_to_a_tenth_of_the_time() -> None:
    """Nine looks at two languages, forward only, of a training forward and backward."""
    settings = PretrainSettings(tokens=800_000, eval_text={"ru": ["x"], "en": ["y"]})
    assert look_tokens(settings) == int(0.1 * 2 * 800_000 / (2 * 9))
    assert look_tokens(settings.model_copy(update={"eval_text": {}})) is None
    given = PretrainSettings(tokens=800_000, eval_text={"ru": ["x"]}, eval_characters=50_000)
    assert look_tokens(given) is None


def test_windows_of_a_look_are_cut_to_tokens(adapted) -> None:
    heldout = HeldoutText({"ru": [str(RU[0])]}, 3_000, Checkpoint(adapted))
    before = heldout.texts["ru"]
    tokenizer = Checkpoint(adapted).tokenizer
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in before]
    heldout.limit(2 * sum(lengths[:2]) + 2)  # half for windows, a quarter for what is repeated
    assert heldout.texts["ru"] == before[:2]
    short = Checkpoint(adapted).tokenizer([t[:300] for t in before[:2]], add_special_tokens=False)
    fits = len(short["input_ids"][0]) + len(short["input_ids"][1]) <= sum(lengths[:2]) // 2
    assert heldout.copies == (2 if fits else 1)
    heldout.limit(1)
    assert (heldout.texts["ru"], heldout.copies) == (before[:1], 1)


def test_one_step_of_tuning_learns(pair, tmp_path) -> None:
    """The first step of a warm-up has the rate zero."""
    data, settings = conversations(tmp_path), TuneSettings(learning_rate=1e-2)
    result = tune(pair["instruct"], data, tmp_path / "out", settings)
    assert result.steps == 1
    assert result.losses[0].learning_rate == 1e-2
    assert "lm_head.weight" in result.changed_tensors


def test_tuning_follows_the_names_of_the_file(tmp_path, pair) -> None:
    """Checkpoints may name tensors otherwise than the model does: without its prefix, for one."""
    shutil.copytree(pair["instruct"], tmp_path / "model")
    stored = weights(tmp_path / "model")
    renamed = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
    save_file(renamed, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    settings = TuneSettings(learning_rate=1e-2, batch_size=8)
    result = tune(tmp_path / "model", conversations(tmp_path), tmp_path / "out", settings)
    assert {"lm_head.weight", "layers.0.mlp.up_proj.weight"} <= set(result.changed_tensors)
    after = weights(tmp_path / "out")
    assert after.keys() == renamed.keys()
    assert changed(after, renamed) == set(result.changed_tensors)


def test_half_a_character_is_mended(tmp_path) -> None:
    record = '{"text": "\\ud83d вот \\ud83d\\ude00", "id": "\\uD800"}\n'
    (tmp_path / "a.jsonl").write_text(record, encoding="utf-8")
    (document,) = read_documents([tmp_path / "a.jsonl"])
    assert document.text == "\ufffd вот 😀"
    document.id.encode()


def test_schedule_spends_the_budget() -> None:
    settings = PretrainSettings(tokens=1_000_000, batch_tokens=65_536, micro_batch_tokens=8192)
    assert schedule(settings, 512, 10**6) == (128, 8, 16)
    # no more than the corpus has, up to whole micro-batches
    assert schedule(settings, 512, 100)[0] < 100 + 8
    long = PretrainSettings(tokens=10_000_000_000)
    assert schedule(long, 1024, 10**8)[0] == 256  # the paper's batch


def test_processes_that_would_enlarge_a_step_are_refused() -> None:
    """The usual joint training has 1,638 tokens a step; eight processes take eight blocks."""
    settings = JointSettings(tokens=2_457_600, train="new_rows", old_text=["x"])
    for count in (1, 2, 3):
        check_sharing(settings, 1024, 2400, count)
    with pytest.raises(TrainingError, match=r"8 processes would train 8,192 tokens .* of 2,048: "):
        check_sharing(settings, 1024, 2400, 8)
    check_sharing(settings, 256, 9600, 8)
    check_sharing(variant(settings, batch_tokens=8192), 1024, 2400, 8)
    check_sharing(PretrainSettings(tokens=300), 1024, 1, 1)  # a block is no process's fault
    check_sharing(PretrainSettings(tokens=10**9), 1024, 10**6, 256)


def test_arithmetic_follows_the_hardware(monkeypatch) -> None:
    for fast in (True, False):
        monkeypatch.setattr("lep.training.trainer.multiplies_bf16", lambda fast=fast: fast)
        assert uses_bf16(SETTINGS) == fast
        assert uses_bf16(variant(precision="bf16"))
        assert not uses_bf16(variant(precision="float32"))


@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_tables_move(precision, dtype, byte_level, tmp_path) -> None:
    save_model(tmp_path / "model", byte_level, dtype=dtype)
    settings = variant(precision=precision)
    result = pretrain(tmp_path / "model", RU, tmp_path / "out", settings)
    before, after = weights(tmp_path / "model"), weights(tmp_path / "out")
    assert {t.dtype for t in after.values()} == {dtype}
    assert changed(before, after) == TABLES
    assert result.frozen_tensors == len(before) - 2
    assert result.step_tokens == 256
    assert result.losses[-1].loss < result.losses[0].loss - 0.1
    assert not (tmp_path / "out" / "work").exists()


def test_chunked_loss_and_gradients_equal_the_models_own(pair) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair["base"], dtype=torch.float32)
    assert head_is_plain(model)
    ids = torch.randint(0, 500, (5, 200))
    labels = torch.where(torch.rand(5, 200) < 0.1, -100, ids)
    expected = model(input_ids=ids, labels=labels).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    learned = targets != -100
    total = head_loss(model.get_output_embeddings(), hidden[learned], targets[learned])
    loss = total / learned.sum()
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], msg=name)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_loss_of_any_logits_is_that_of_float64(dtype: torch.dtype, rtol: float) -> None:
    """With probabilities too small for float32, several chunks, a bias, and one frozen table."""
    torch.manual_seed(0)
    hidden = (6 * torch.randn(600, 16)).to(dtype).requires_grad_()
    frozen, table = 3 * torch.randn(300, 16), (3 * torch.randn(40, 16)).requires_grad_()
    bias, labels = torch.randn(340), torch.randint(0, 340, (600,))
    parts = [part.to(dtype) for part in (frozen, table)]
    logits = (torch.cat([hidden @ part.T for part in parts], 1) + bias.to(dtype)).double()
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert expected.max() > 104  # e^-104 is zero in float32
    wanted = torch.autograd.grad(expected.sum(), (hidden, table))
    loss = linear_cross_entropy(hidden, labels, [frozen, table], bias.to(dtype))
    assert loss.item() == pytest.approx(expected.sum().item(), rel=max(rtol / 10, 1e-5))
    for gradient, exact in zip(torch.autograd.grad(loss, (hidden, table)), wanted, strict=True):
        assert (gradient - exact).norm() <= rtol * exact.norm()


def test_a_capped_head_is_not_taken_for_a_plain_one(pair) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair["base"], dtype=torch.float32)
    plain = model.forward
    model.forward = lambda **inputs: SimpleNamespace(logits=plain(**inputs).logits / 2)
    assert not head_is_plain(model)
    model.forward = lambda **inputs: SimpleNamespace(logits=plain(**inputs).logits * 1.01)
    assert not head_is_plain(model)
    model.forward = plain
    model.config.final_logit_softcapping = 30.0  # as Gemma 2: invisible while the logits are small
    assert not head_is_plain(model)


def test_a_frozen_tensor_that_moves_is_named(pair) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair["base"])
    model.requires_grad_(False)
    before = frozen_digest(model)
    check_frozen(before, model)
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] += 1e-6
    with pytest.raises(AssertionError, match=r"layers\.1\.mlp\.up_proj\.weight changed"):
        check_frozen(before, model)


@pytest.mark.slow
def test_a_tied_model_trains_one_table(byte_level, tmp_path) -> None:
    save_model(tmp_path / "model", byte_level, tied=True, template=TEMPLATE)
    pretrain(tmp_path / "model", RU, tmp_path / "out", SETTINGS)
    before, after = weights(tmp_path / "model"), weights(tmp_path / "out")
    assert changed(before, after) == {"model.embed_tokens.weight"}
    settings = CalibrateSettings(learning_rate=1e-2, batch_size=8, copy_tasks=0)
    records = read_messages(conversations(tmp_path))
    train_adapter(tmp_path / "out", records, tmp_path / "calibrated", settings, CALIBRATION)
    assert weights(tmp_path / "calibrated").keys() == before.keys()


def test_a_state_that_a_kill_left_half_written_is_passed_over(tmp_path) -> None:
    """So is one without our file of weights, which older versions wrote while tuning."""
    assert last_state(tmp_path / "none") is None
    for step, state in ((9, '{"global_step": 9}'), (10, '{"global_st'), (11, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trained.safetensors").touch()
        if state:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-12").mkdir()
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text('{"global_step": 12}')
    assert last_state(tmp_path) == tmp_path / "checkpoint-9"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-9"]


def test_steps_of_saved_states_keep_their_size(tmp_path) -> None:
    """More processes may share them, unless they need more sequences; a new training may differ."""
    settings = PretrainSettings(tokens=6_000, batch_tokens=192)
    sequences = [schedule(settings, 64, 94, processes)[0] for processes in (1, 2, 3)]
    assert sequences == [3, 4, 3]
    work = tmp_path / "out.partial" / "work"
    (work / "trainer").mkdir(parents=True)
    for number in sequences:
        check_step(work, number)
    (work / "trainer" / "checkpoint-9").mkdir()
    check_step(work, 3)
    message = r"out\.partial holds .* 3 sequences a step, .* would take 4: go on with 1 process, or"
    with pytest.raises(OutputError, match=message):
        check_step(work, 4)
    check_step(work, 3)


@pytest.mark.slow
@pytest.mark.parametrize("train", ["embeddings", "new_rows"])
def test_a_killed_training_ends_like_an_uninterrupted_one(train, adapted, tmp_path) -> None:
    model = adapted.parent / "initialised"
    options = {"model": model, "train": train, "corpus": RU[0], "tokens": 40_000, **SIZES}
    command = [sys.executable, "-m", "lep", "pretrain", "--output", str(tmp_path / "killed")]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    states = "killed.*.partial/work/trainer/checkpoint-*/trainer_state.json"
    kill_when(command, lambda: list(tmp_path.glob(states)))
    assert not (tmp_path / "killed").exists()
    subprocess.run(command, check=True, capture_output=True)
    killed = json.loads((tmp_path / "killed" / "lep" / "pretrain.json").read_text())
    settings = PretrainSettings(tokens=40_000, train=train, **SIZES)
    whole = pretrain(model, RU, tmp_path / "whole", settings)
    assert killed["losses"] == [asdict(loss) for loss in whole.losses]
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("killed", "whole"))
    assert one == two
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_input_rows_of_tokens_that_do_not_occur_stay(adapted, tmp_path) -> None:
    """Weight decay would shrink them at every step; rows that occur do decay, as AdamW has it."""
    start = adapted.parent / "initialised"
    settings = variant(weight_decay=0.5, precision="float32")
    results = {}
    for decay in (0.5, 0.0):
        out = tmp_path / str(decay)
        pretrain(start, RU, out, variant(settings, weight_decay=decay))
        results[decay] = weights(out)["model.embed_tokens.weight"]
    before = weights(start)["model.embed_tokens.weight"]
    documents = read_documents(RU)
    used = {i for ids in token_pieces(documents, load_tokenizer(start), 64) for i in ids}
    rows = torch.zeros(len(before), dtype=torch.bool)
    rows[list(used)] = True
    assert 0 < rows.sum() < len(rows)
    assert torch.equal(results[0.5][~rows], before[~rows])
    moved = (results[0.5] != before).any(1)
    assert moved[rows].float().mean() > 0.5  # of a corpus of which not all is read
    assert results[0.5][moved].norm() < results[0.0][moved].norm()


def test_decay_by_rows_is_that_of_adamw() -> None:
    torch.manual_seed(0)
    start, slopes = torch.randn(5, 3), torch.randn(5, 3)
    slopes[2] = 0
    rowwise, plain = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    group = {"params": [rowwise], "weight_decay": 0.0, "decay_of_touched_rows": 0.3}
    by_row = torch.optim.AdamW([group], lr=0.1)
    by_row.register_step_pre_hook(decay_touched_rows)
    stock = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.3)
    for _ in range(3):
        rowwise.grad, plain.grad = slopes.clone(), slopes.clone()
        by_row.step()
        stock.step()
    touched = slopes.any(1)
    torch.testing.assert_close(rowwise[touched], plain[touched])
    assert torch.equal(rowwise[2], start[2])
    assert not torch.equal(plain[2], start[2])


@pytest.mark.slow
def test_activation_checkpointing_changes_memory_not_results(adapted, tmp_path) -> None:
    settings = variant(precision="float32")
    plain = pretrain(adapted, RU, tmp_path / "plain", settings)
    settings = variant(settings, activation_checkpointing=True)
    saving = pretrain(adapted, RU, tmp_path / "saving", settings)
    losses = [entry.loss for entry in plain.losses]
    assert [entry.loss for entry in saving.losses] == pytest.approx(losses, rel=1e-4)


def watched(**changes) -> PretrainSettings:
    text = {"ru": [str(RU[0])], "en": [str(EN[0])]}
    return variant(eval_text=text, eval_characters=3_000, **changes)


@pytest.mark.slow
def test_the_state_that_is_best_on_held_out_text_is_kept(adapted, tmp_path) -> None:
    """English is trained on and Russian looked at, so that the end is not the best."""
    settings = watched(learning_rate=0.02, tokens=12_000, schedule="wsd", precision="float32")
    result = pretrain(adapted, EN, tmp_path / "out", settings)
    looks = result.looks
    best = min(looks, key=lambda look: look.bits_per_byte["ru"])
    assert result.best_step == best.step < looks[-1].step
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    checkpoint = Checkpoint(tmp_path / "out")
    look = HeldoutText(settings.eval_text, settings.eval_characters, checkpoint).look(model)
    bits = {name: look[name] for name in ("ru", "en")}
    assert bits == pytest.approx(best.bits_per_byte, rel=1e-4)
    copied = {name: look[f"{name} copied"] for name in ("ru", "en")}
    assert copied == pytest.approx(best.copied_bits_per_byte, rel=1e-4)
    stopped = pretrain(adapted, EN, tmp_path / "early", variant(settings, patience=1))
    assert len(stopped.looks) < len(looks)
    assert stopped.best_step == result.best_step


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_the_best_state_is_kept_after_a_step_of_hard_text(seed: int, tmp_path) -> None:
    """One document of twelve is far harder; its step, and the next one, are no divergence."""
    (hard,) = list((SAMPLE / "el").glob("news-01-*.txt"))
    easy = "The river is long and the river is wide. " * 20
    texts = [*(f"{easy}{i}" for i in range(11)), hard.read_text(encoding="utf-8")[:500]]
    corpus, look = tmp_path / "corpus.jsonl", hard.with_name("dialogue-01-viliothiki.txt")
    write_records(corpus, ({"text": text} for text in texts))
    settings = PretrainSettings(
        epochs=1, block_size=512, batch_tokens=256, train="embeddings", learning_rate=2e-4,
        seed=seed, precision="float32", warmup_share=0.0, checkpoints=50,
        eval_text={"el": [str(look)]}, eval_characters=1_500,
    )  # fmt: skip
    result = pretrain(ROOT / "lab" / "pair" / "instruct", [corpus], tmp_path / "out", settings)
    losses = [each.loss for each in result.losses]
    assert max(losses[-3:]) > max(losses[:3]) + 1  # hard text came late
    best = min(result.looks, key=lambda each: each.bits_per_byte["el"])
    assert result.best_step == best.step


def test_a_narrower_type_in_the_configuration_rounds_no_known_row(pair, tmp_path) -> None:
    """Of a model that is stored in float32, products in bf16 leave the rows as they are."""
    shutil.copytree(pair["instruct"], tmp_path / "model")
    stored = {name: tensor.float() for name, tensor in weights(tmp_path / "model").items()}
    generator = torch.Generator().manual_seed(0)
    for tensor in stored.values():
        tensor += 1e-4 * torch.randn(tensor.shape, generator=generator)  # no bf16 numbers
    save_file(stored, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["dtype"] = "bfloat16"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    model = load_to_train(
        Checkpoint(tmp_path / "model"), PretrainSettings(tokens=1, precision="bf16")
    )
    table = model.get_input_embeddings().weight
    assert torch.equal(table, stored["model.embed_tokens.weight"])


@pytest.mark.parametrize(("epochs", "samples"), [(1, 90), (0.5, 300), (2, 5), (1, 64)])
def test_tuning_trains_all_samples(epochs: float, samples: int) -> None:
    settings = TuneSettings(epochs=epochs, batch_size=64, micro_batch_size=16)
    steps, sizes = batches(settings, samples)
    step = sizes["per_device_train_batch_size"] * sizes["gradient_accumulation_steps"]
    assert (steps - 1) * step < round(epochs * samples) <= steps * step


def test_the_start_is_kept_where_no_step_is_better(adapted, tmp_path) -> None:
    """English at a rate that ruins the tables, and Russian looked at."""
    settings = watched(learning_rate=0.2, tokens=2_000, precision="float32")
    result = pretrain(adapted, EN, tmp_path / "out", settings)
    bits = [look.bits_per_byte["ru"] for look in result.looks]
    assert result.looks[0].step == result.best_step == 0
    assert bits[0] < min(bits[1:])
    assert "no step was better on held-out text than the start" in str(result)
    start, kept = weights(adapted), weights(tmp_path / "out")
    assert start.keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in start.items())
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_copying_and_new_tokens_are_looked_at(adapted) -> None:
    """A random model does not copy; one whose head prefers a new token writes nothing else."""
    start = adapted.parent / "initialised"
    heldout = HeldoutText({"ru": [str(RU[0])]}, 3_000, Checkpoint(start))
    model = AutoModelForCausalLM.from_pretrained(start)
    plain = heldout.look(model)
    assert plain["ru copied"] == pytest.approx(plain["ru"], rel=0.2)  # a random model does not copy
    new = sorted(heldout.new_tokens)
    assert new
    model.get_output_embeddings().weight.data.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(model.lm_head.weight)))
    for token, share in ((new[0], 1.0), (7, 0.0)):
        model.lm_head.bias.data.zero_()[token] = 9.0
        assert heldout.look(model)["new tokens"] == share


def test_padding_after_any_end_token_is_no_text(adapted) -> None:
    """An instruct model ends its turns with another token than its tokenizer's EOS."""
    start = adapted.parent / "initialised"
    heldout = HeldoutText({"ru": [str(RU[0])]}, 3_000, Checkpoint(start))
    model, new, end = AutoModelForCausalLM.from_pretrained(start), min(heldout.new_tokens), 4
    model.generation_config.eos_token_id = [end, 1]

    def write(input_ids, pad_token_id, **_):
        row = torch.tensor([new, end, pad_token_id, pad_token_id])
        return torch.cat([input_ids, row.repeat(len(input_ids), 1)], dim=1)

    model.generate = write
    assert heldout.look(model)["new tokens"] == 1.0


@pytest.mark.parametrize("name", ["patience", "sweep"])
def test_what_looks_needs_something_to_look_at(adapted, tmp_path, name) -> None:
    with pytest.raises(TrainingError, match=f"{name} needs held-out text"):
        pretrain(adapted, RU, tmp_path / "out", variant(**{name: 1}))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_takes_the_rate_that_is_best_on_held_out_text(adapted, tmp_path) -> None:
    # The rate is far too high: one of the lower ones must win.
    settings = watched(learning_rate=0.4, precision="float32")
    result = pretrain(adapted, RU, tmp_path / "swept", variant(settings, sweep=True))
    seen, best = result.sweep.bits_per_byte, result.sweep.best
    assert list(seen) == ["0.04", "0.1", "0.2", "0.4"]
    scores = [bits for bits in seen.values() if bits is not None]  # none where it diverged
    assert len(set(scores)) == len(scores) >= 2  # each rate was trained, with its own result
    assert seen[f"{best:g}"] == min(scores)
    assert best < 0.4
    assert result.settings.learning_rate == best
    plain = variant(settings, learning_rate=best)
    assert pretrain(adapted, RU, tmp_path / "plain", plain).losses == result.losses


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_state(adapted, tmp_path, monkeypatch) -> None:
    """No file may grow beyond 50 kB from the second state on, as if the disk were full."""
    save, saved = TablesTrainer._save_optimizer_and_scheduler, []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_on_a_full_disk(trainer, folder) -> None:
        saved.append(folder)
        if len(saved) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        save(trainer, folder)

    with monkeypatch.context() as patch:
        patch.setattr(TablesTrainer, "_save_optimizer_and_scheduler", save_on_a_full_disk)
        message = r"checkpoint-8 could not be saved .* goes on from .*checkpoint-4"
        try:
            with pytest.raises(OutputError, match=message):
                pretrain(adapted, RU, tmp_path / "out", SETTINGS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()
    again = pretrain(adapted, RU, tmp_path / "out", SETTINGS)
    whole = pretrain(adapted, RU, tmp_path / "whole", SETTINGS)
    assert again.losses == whole.losses
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert one == two


def test_a_loss_that_runs_away_ends_the_training(adapted, tmp_path) -> None:
    settings = variant(learning_rate=300.0, tokens=20_000)
    message = r"by step \d+ of 79: the learning rate 300 is too high"
    with pytest.raises(TrainingError, match=message) as caught:
        pretrain(adapted, RU, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    kept = str(caught.value).rpartition("the last state before is ")[2]
    assert ("no state had been saved" in kept) or (Path(kept) / "trained.safetensors").exists()


def test_no_state_is_saved_while_the_loss_is_high(tmp_path) -> None:
    watch, control = StopWhenDiverging(), SimpleNamespace(should_save=True)
    arguments = SimpleNamespace(output_dir=tmp_path, max_steps=19, learning_rate=1.0)
    (tmp_path / "checkpoint-3").mkdir()
    history = []

    def report(loss: float) -> None:
        # The trainer's own callback asks for this before the step's loss is known.
        control.should_save = True
        watch.on_step_end(arguments, None, control)
        history.append({"loss": loss})
        state = SimpleNamespace(global_step=len(history), log_history=history)
        watch.on_log(arguments, state, control, history[-1])

    losses = [4.0, 5.0, 3.0, *[6.5, 6.1, 5.8] * 3]
    for last, loss in pairwise([0.0, *losses]):
        report(loss)
        assert control.should_save == (max(last, loss) <= 6)
    with pytest.raises(TrainingError, match=r"from 5.00 to 8.00 .* step 13 of 19: .* is .*-3$"):
        report(8.0)  # ten reports with a mean of 6.32
    history[1:] = []
    with pytest.raises(TrainingError, match="to nan nats a token"):
        report(float("nan"))


def test_short_reports_of_text_are_noise(tmp_path) -> None:
    """Three texts in a row that are 1.5 nats harder than the first ones are no divergence."""
    watch, history = StopWhenDiverging(), []
    arguments = SimpleNamespace(output_dir=tmp_path, max_steps=99, learning_rate=1.0)
    for step, loss in enumerate([4.3, 4.6, 4.2, *[4.5, 5.9, 5.8, 6.1, 4.4] * 9]):
        history.append({"loss": 9.0, "loss of text": loss, "loss of old_text": 20.0})
        state = SimpleNamespace(global_step=step, log_history=history)
        watch.on_log(arguments, state, SimpleNamespace(should_save=True), history[-1])


def test_a_loss_that_is_no_number_ends_the_training(adapted, tmp_path, monkeypatch) -> None:
    """And leaves no state of it: the stock Trainer would put an average in its place."""
    calls = []

    def lost(*arguments):
        calls.append(None)
        return head_loss(*arguments) * (math.nan if len(calls) > 12 else 1)

    monkeypatch.setattr("lep.training.loss.head_loss", lost)
    settings = variant(checkpoints=24)
    with pytest.raises(TrainingError, match=r"to nan nats a token by step 13 of .*checkpoint-12$"):
        pretrain(adapted.parent / "initialised", RU, tmp_path / "out", settings)
    (states,) = tmp_path.rglob("trainer")
    assert [state.name for state in states.iterdir()] == ["checkpoint-12"]


@pytest.mark.parametrize("steps", [1, 7, 99, 458, 1000])
def test_states_are_saved_at_steps_whose_loss_is_seen(steps) -> None:
    for looks in (1, 8, 500):
        assert look_steps(steps, looks) % logging_steps(steps) == 0
        assert 1 <= look_steps(steps, looks) <= steps


@pytest.mark.slow
@pytest.mark.parametrize("train", ["embeddings", "new_rows"])
def test_accumulation_changes_the_loss_by_rounding_only(train, adapted, tmp_path) -> None:
    losses = []
    for micro in (64, 128, 256):
        settings = variant(precision="float32", micro_batch_tokens=micro, train=train)
        result = pretrain(adapted.parent / "initialised", RU, tmp_path / str(micro), settings)
        losses.append([entry.loss for entry in result.losses])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def conversations(folder: Path, count: int = 40) -> Path:
    words = ["дом", "река", "лес", "house", "river", "wood"]
    turns = [(f"{words[i % 6]} {i}", words[(i + 1) % 6]) for i in range(count)]
    roles = ("user", "assistant")
    records = [
        {"messages": [{"role": r, "content": text} for r, text in zip(roles, turn, strict=True)]}
        for turn in turns
    ]
    write_records(folder / "data.jsonl", records)
    return folder / "data.jsonl"


def test_tuning_changes_projections_and_head(pair, tmp_path) -> None:
    settings = TuneSettings(learning_rate=1e-2, batch_size=8, epochs=2, copy_tasks=4)
    copies = copy_records({"ru": RU}, 4, seed=0)
    result = tune(pair["instruct"], conversations(tmp_path), tmp_path / "out", settings, copies)
    before, after = weights(pair["instruct"]), weights(tmp_path / "out")
    moved = changed(before, after)
    assert moved == set(result.changed_tensors)
    assert {n for n in before if n.endswith("_proj.weight")} | {"lm_head.weight"} == moved
    assert result.merge_error < 1e-4
    assert result.samples + result.too_long == 44
    assert result.losses[-1].loss < result.losses[0].loss


def test_samples_of_a_batch_are_of_like_length_and_none_is_lost() -> None:
    samples = [Sample([i] * (1 + 7 * i % 101), 0) for i in range(203)]
    settings = TuneSettings(batch_size=16, micro_batch_size=4, epochs=2.5, seed=3)
    ordered = in_order(samples, settings)
    counts = Counter(sample.ids[0] for sample in ordered)
    assert len(ordered) == round(2.5 * 203)
    assert set(counts.values()) == {2, 3}
    widths = [[len(s.ids) for s in ordered[i : i + 4]] for i in range(0, len(ordered), 4)]
    padded = sum(max(batch) * len(batch) for batch in widths) / sum(map(sum, widths))
    shuffled = random.Random(0).sample([len(s.ids) for s in samples], 200)
    assert padded < 1.06
    unsorted = sum(4 * max(shuffled[i : i + 4]) for i in range(0, 200, 4)) / sum(shuffled)
    assert unsorted > 1.4
    parts = [[*chain(*widths[i : i + 4])] for i in range(0, 100, 4)]
    steps = [max(part) - min(part) for part in parts]
    assert sum(steps) / len(steps) > 30  # a step has short and long ones
    assert in_order(samples, settings) == ordered
    assert in_order(samples, variant(settings, seed=4)) != ordered


def test_answers_are_learned_and_prompts_are_not() -> None:
    batch = collate_answers([Sample([5, 6, 7, 8], 2), Sample([9, 10], 1)])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 8], [-100, 10, -100, -100]]


def test_calibration_leaves_the_middle_layers_alone(pair, tmp_path) -> None:
    settings = CalibrateSettings(learning_rate=1e-2, batch_size=8)
    records = read_messages(conversations(tmp_path))
    train_adapter(pair["instruct"], records, tmp_path / "out", settings, CALIBRATION)
    before, after = weights(pair["instruct"]), weights(tmp_path / "out")
    moved = changed(before, after)
    assert moved > TABLES
    layers = {name.split(".")[2] for name in moved if ".layers." in name}
    assert layers == {"0", "2"}  # of three


@pytest.mark.slow
def test_an_adapter_that_is_left_beside_gives_what_the_merged_model_gives(pair, tmp_path) -> None:
    from peft import PeftModel

    data = conversations(tmp_path)
    settings = TuneSettings(learning_rate=1e-2, batch_size=8, epochs=2, precision="float32")
    for merge in (True, False):
        tune(pair["instruct"], data, tmp_path / str(merge), settings, merge=merge)
    merged, plain = (
        AutoModelForCausalLM.from_pretrained(tmp_path / str(merge)).float()
        for merge in (True, False)
    )
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected, without = merged(ids).logits, plain(ids).logits
        unmerged = PeftModel.from_pretrained(plain, tmp_path / "False" / "adapter")(ids).logits
        loaded = load_model(tmp_path / "False")[0](ids).logits  # as lep evaluate sees it
    for logits in (unmerged, loaded):
        assert (logits - expected).abs().max() <= 1e-3 * expected.abs().max()
    effect, error = ((logits - expected).abs().max() for logits in (without, unmerged))
    assert effect > 10 * error
    before, after = weights(pair["instruct"]), weights(tmp_path / "False")
    assert changed(before, after) == {"lm_head.weight"}
    adapter = load_file(tmp_path / "False" / "adapter" / "adapter_model.safetensors")
    assert not any("lm_head" in name for name in adapter)


def test_tuning_data_must_hold_answers(pair, tmp_path) -> None:
    write_records(tmp_path / "data.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    with pytest.raises(CorpusError, match="ends with the role 'user'"):
        tune(pair["instruct"], tmp_path / "data.jsonl", tmp_path / "out", TuneSettings())
    with pytest.raises(CorpusError, match="has no chat template"):
        tune(pair["base"], conversations(tmp_path), tmp_path / "out", TuneSettings())
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "user"}]}\n')
    with pytest.raises(CorpusError, match=r"bad.jsonl, line 1: 'messages' must be"):
        tune(pair["instruct"], tmp_path / "bad.jsonl", tmp_path / "out", TuneSettings())
    assert not list(tmp_path.glob("out*"))


def test_rows_that_no_text_uses_stay_where_they_are() -> None:
    """Adam's epsilon follows the gradients of the table, against sums over all steps in float64."""
    gradients = 1e-6 * torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0))
    gradients[:, 0] *= 1_000  # the row of a token that occurs
    table, vector = torch.nn.Parameter(torch.zeros(50, 8)), torch.nn.Parameter(torch.zeros(2, 8))
    optimizer = torch.optim.AdamW([vector, table], lr=0.1, betas=(0.9, 0.98), weight_decay=0.0)
    optimizer.register_step_pre_hook(scale_epsilon)
    moment = 0.0
    for step, gradient in enumerate(gradients, 1):
        table.grad, vector.grad = gradient.clone(), torch.ones(2, 8)
        optimizer.step()
        moment = 0.98 * moment + 0.02 * float(gradient.double().square().mean())
        expected = EPSILON_SHARE * (moment / (1 - 0.98**step)) ** 0.5
        assert optimizer.param_groups[0]["eps"] == pytest.approx(expected, rel=1e-4)
    moved = table.detach().abs().mean(1)
    assert moved[0] > 0.03
    assert moved[1:].max() < 0.1 * moved[0]
    assert vector.detach().abs().min() > 0.2
    table.grad = torch.zeros_like(table)
    fresh = torch.optim.AdamW([table])
    fresh.register_step_pre_hook(scale_epsilon)
    fresh.step()
    assert table.isfinite().all()


def test_an_adapter_beside_the_weights_is_not_lost(adapted, tmp_path) -> None:
    shutil.copytree(adapted, tmp_path / "model")
    (tmp_path / "model" / "adapter").mkdir()
    (tmp_path / "model" / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has an adapter beside its weights"):
        pretrain(tmp_path / "model", RU, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_the_context_of_a_nested_configuration_bounds_samples(pair, tmp_path) -> None:
    """As of models that also see images: the text model's settings are inside."""
    shutil.copytree(pair["instruct"], tmp_path / "model")
    text = {"max_position_embeddings": 10, "vocab_size": 500}
    Gemma3Config(text_config=text).save_pretrained(tmp_path / "model")
    checkpoint, records = Checkpoint(tmp_path / "model"), read_messages(conversations(tmp_path))
    with pytest.raises(CorpusError, match="40 above 10 tokens"):
        encode_records(checkpoint, records, 4096)


def test_new_rows_leave_no_adapter(tmp_path) -> None:
    scope = replace(NEW_ROWS, merge=False)
    with pytest.raises(LepError, match="leave --no-merge out"):
        train_adapter(tmp_path / "none", [], tmp_path / "out", CalibrateSettings(), scope)


def test_empty_corpus(adapted, tmp_path) -> None:
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(LepError, match="the corpus holds no text at all"):
        pretrain(adapted, [tmp_path / "empty.txt"], tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_settings_are_keywords_and_results_print(pair, tmp_path) -> None:
    """`pretrain` and `tune` from a notebook: paths as strings, every setting by its name."""
    initialise(pair["base"], pair["tokenizer"], tmp_path / "start")
    given = {"learning_rate": 1e-3, "block_size": 64, "checkpoints": 2, "eval_characters": 2_000}
    trained = pretrain(
        str(tmp_path / "start"),
        [str(RU[0])],
        output=str(tmp_path / "trained"),
        tokens=3_000,
        train="new_rows",
        eval_text={"ru": [str(RU[0])]},
        **given,
    )
    printed = str(trained).splitlines()
    count = f"{trained.tokens:,} tokens, {trained.steps} steps"
    loss = r"\d\.\d{3}"
    assert re.fullmatch(
        rf"{count} in [\d.]+ s; loss from {loss} to {loss} nats a token", printed[0]
    )
    kept = [look.bits_per_byte["ru"] for look in trained.looks if look.step == trained.best_step]
    assert f"step {trained.best_step}: bits per byte ru {kept[0]:.4f} (kept)" in printed
    assert printed[-1] == f"wrote {tmp_path / 'trained'}"
    record = json.loads((tmp_path / "trained" / "lep" / "pretrain.json").read_text())
    assert record["settings"] == trained.settings.model_dump() | {"eval_text": {"ru": [RU[0].name]}}
    assert record["looks"] == [asdict(look) for look in trained.looks]
    assert not {"sweep", "output"} & set(record)  # no sweep was asked for
    tuned = tune(
        str(pair["instruct"]),
        str(conversations(tmp_path, 6)),
        str(tmp_path / "tuned"),
        text={"ru": RU},
        copy_tasks=2,
        learning_rate=1e-2,
    )
    assert tuned.samples + tuned.too_long == 8
    assert str(tuned).startswith(f"{tuned.samples} samples ({tuned.too_long} too long), 1 steps in")
    with pytest.raises(LepError, match="unknown key 'token'; did you mean 'tokens'"):
        pretrain(pair["base"], RU, tmp_path / "out", token=3)
    assert not (tmp_path / "out").exists()
