"""Joint training: streams by share within every step, what of them is learned, and the record."""

import json
import math
import random
from collections import Counter
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SAMPLE, TEMPLATE, changed, save_model, weights
from datasets import Dataset
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from lep.checkpoint.adapter import saved_factors
from lep.checkpoint.reader import Checkpoint
from lep.corpus.mixture import Piece, endless, interleaved
from lep.errors import CorpusError, LepWarning
from lep.settings import STREAMS, NewRowsSettings
from lep.tokenizer.write import extend_tokenizer
from lep.training import data, streams
from lep.training.loss import Details, chunk_loss, linear_cross_entropy
from lep.training.pretrain import pretrain
from lep.training.samples import encode_records
from lep.training.trainable_rows import split_tables
from lep.transfer.initialise import initialise
from lep.transfer.mappings import saved_mappings

RU, EN = [SAMPLE / "ru"], [str(SAMPLE / "en")]
SIZES = {"tokens": 8_000, "block_size": 96, "batch_tokens": 384, "checkpoints": 3}
WORDS = {
    "ru": ["улица", "площадь", "автобус", "маршрут", "город", "билет", "погода", "новости"],
    "en": ["street", "square", "bus", "route", "town", "ticket", "weather", "news", "show"],
}


def conversation(question: str, answer: str) -> dict:
    turns = {"user": question, "assistant": answer}
    return {"messages": [{"role": r, "content": c} for r, c in turns.items()]}


def write_jsonl(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return str(path)


@pytest.fixture(scope="module")
def start(byte_level, tmp_path_factory) -> Path:
    """An instruct model with 60 new tokens, conversations and practice tasks beside it."""
    folder = tmp_path_factory.mktemp("mixture")
    save_model(folder / "model", byte_level, template=TEMPLATE)
    extend_tokenizer(folder / "model", RU, 60, folder / "tokenizer")
    initialise(folder / "model", folder / "tokenizer", folder / "start")
    rng, answers = random.Random(0), []
    for language, words in WORDS.items():
        for _ in range(30):
            text = " ".join(rng.sample(words, 4))
            answers.append(conversation(f"{language}: {text}", text))
    write_jsonl(folder / "answers.jsonl", answers)
    practice = [conversation(f"? {word} {word}", word) for word in WORDS["ru"]]
    write_jsonl(folder / "practice.jsonl", practice)
    return folder / "start"


def mixture(start: Path, **options) -> dict:
    given = {"old_text": EN, "answers": str(start.parent / "answers.jsonl")}
    given["practice_tasks"] = str(start.parent / "practice.jsonl")
    return given | SIZES | options


def new_rows(start: Path) -> set[int]:
    return set(saved_mappings(Checkpoint(start))["input"].new_rows().tolist())


@pytest.fixture(scope="module")
def blocks(start, tmp_path_factory) -> Dataset:
    """A mixture of 20,000 tokens in blocks of 96."""
    settings, folder = (
        NewRowsSettings(**mixture(start, tokens=40_000, shares=STREAMS)),
        tmp_path_factory.mktemp("b"),
    )
    new = new_rows(start)
    return streams.mixed_blocks(Checkpoint(start), RU, settings, new, 96, folder, "key")


def pieces_of(blocks: Dataset) -> list[tuple[str, list[int], int]]:
    """Stream, ids, and tokens that are not learned, of each piece."""
    pieces = []
    for row in blocks:
        stops = list(accumulate(row["lengths"]))
        for stop, length, prompt, stream in zip(
            stops, row["lengths"], row["prompt_tokens"], row["streams"], strict=True
        ):
            ids = row["input_ids"][stop - length : stop]
            pieces.append(([*STREAMS][stream], ids, prompt))
    return pieces


def test_every_prefix_of_a_mixture_has_the_shares() -> None:
    rng = random.Random(1)
    shares = {"a": 2.0, "b": 1.0, "c": 0.25}
    longest = {"a": 40, "b": 9, "c": 90}

    def stream(name: str):
        while True:
            yield Piece([0] * rng.randint(1, longest[name]), 1, name)

    taken: Counter[str] = Counter()
    for piece in interleaved({name: stream(name) for name in shares}, shares, 20_000):
        taken[piece.stream] += len(piece)
        total = taken.total()
        for name, share in shares.items():
            assert abs(taken[name] - share / 3.25 * total) <= max(longest.values())
    assert 20_000 <= taken.total() < 20_090


def test_a_stream_begins_again_when_it_ends() -> None:
    passes = endless(lambda number: [Piece([number, i]) for i in range(2)])
    assert [next(passes).ids for _ in range(5)] == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]]
    with pytest.raises(ValueError, match="without pieces"):
        next(endless(lambda number: []))


def test_blocks_have_the_shares_of_the_settings(blocks) -> None:
    lengths: Counter[str] = Counter()
    for name, ids, _ in pieces_of(blocks):
        lengths[name] += len(ids)
    for name, share in STREAMS.items():
        assert lengths[name] / lengths.total() == pytest.approx(
            share / sum(STREAMS.values()), abs=0.02
        )
    assert max(map(len, blocks["input_ids"])) <= 96
    # No step of 384 tokens is one stream's alone.
    for step in range(0, len(blocks) - 4, 4):
        assert len(set().union(*blocks[step : step + 4]["streams"])) > 1


def test_answers_alone_are_learned(start, blocks) -> None:
    """What is learned of a conversation is its answer and the end of the turn, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(start)
    expected, new = {}, new_rows(start)
    for file, kinds in (
        ("answers", ("old_answers", "answers")),
        ("practice", ("old_answers", "practice")),
    ):
        for line in (start.parent / f"{file}.jsonl").read_text().splitlines():
            messages = json.loads(line)["messages"]
            ids = tokenizer.apply_chat_template(messages, return_dict=False)
            prompt = tokenizer.apply_chat_template(
                messages[:1], add_generation_prompt=True, return_dict=False
            )
            has_new = not new.isdisjoint(ids)
            expected[tuple(ids)] = (kinds[has_new], len(prompt))
    assert len({name for name, _ in expected.values()}) == 3
    seen = Counter()
    for name, ids, prompt in pieces_of(blocks):
        if name in ("text", "old_text"):
            assert prompt == 1
        else:
            assert expected[tuple(ids)] == (name, prompt)
            seen[name] += 1
    assert len(seen) == 3
    batch = data.collate(list(blocks.select(range(3))))
    for row, labels, ids, numbers in zip(
        blocks.select(range(3)), batch["labels"], batch["input_ids"], batch["streams"], strict=True
    ):
        position = 0
        for length, prompt, stream in zip(
            row["lengths"], row["prompt_tokens"], row["streams"], strict=True
        ):
            stop = position + length
            assert (labels[position : position + prompt] == -100).all()
            assert torch.equal(labels[position + prompt : stop], ids[position + prompt : stop])
            assert (numbers[position:stop] == stream).all()
            position = stop
        assert (labels[position:] == -100).all()


@pytest.mark.parametrize("trims", [False, True])
def test_an_answer_that_was_cut_off_is_learned_up_to_its_last_word(start, trims) -> None:
    """And no token after it, by transformers' ids of the question and the tokenizer's of words,
    before which the template has a space."""
    checkpoint, answer = Checkpoint(start), "Автобус едет в гор"
    tokenizer, template = checkpoint.tokenizer, TEMPLATE
    if trims:
        template = TEMPLATE.replace("' + m['content'] +", "' + m['content'] | trim +")
        assert template != TEMPLATE
    tokenizer.chat_template = template
    plain = conversation("Куда едет автобус?", answer)["messages"]
    record = conversation("Куда едет автобус?", f" {answer}" if trims else answer)
    prompt = tokenizer.apply_chat_template(plain[:1], add_generation_prompt=True, return_dict=False)
    words = tokenizer(" Автобус едет в", add_special_tokens=False)["input_ids"]
    whole = tokenizer.apply_chat_template(plain, return_dict=False)
    for finished, expected in ((False, prompt + words), (True, whole), (None, whole)):
        (sample,), _ = encode_records(checkpoint, [record | {"finished": finished}], 96)
        assert (sample.ids, sample.prompt_tokens) == (expected, len(prompt))
    limit = len(prompt) + 2
    (short,), _ = encode_records(checkpoint, [record | {"finished": False}], limit)
    assert short.ids == (prompt + words)[:limit]
    with pytest.raises(CorpusError, match="no conversation to train on: 1 given, 1 above"):
        encode_records(checkpoint, [record], limit)


def test_nothing_is_learned_where_the_template_changes_what_was_cut_off(start) -> None:
    checkpoint = Checkpoint(start)
    checkpoint.tokenizer.chat_template = TEMPLATE.replace(
        "' + m['content'] +", "' + m['content'] | upper +"
    )
    good, cut = conversation("Да?", "ДА"), conversation("Да?", "Да, ещё") | {"finished": False}
    samples, too_long = encode_records(checkpoint, [good, cut], 96)
    assert (len(samples), too_long) == (1, 0)


def test_details_of_the_loss_are_those_of_torch() -> None:
    torch.manual_seed(0)
    hidden, labels = torch.randn(700, 16), torch.randint(0, 50, (700,))
    tables = [torch.randn(40, 16), torch.randn(10, 16)]
    tables[1].requires_grad_()
    details = Details(torch.zeros(700), torch.rand(700), torch.zeros(700, 2))
    total = linear_cross_entropy(hidden, labels, tables, None, details)
    (gradient,) = torch.autograd.grad(total, tables[1])
    logs = log_softmax(hidden @ torch.cat(tables).T, 1)
    nats = -logs.gather(1, labels[:, None])[:, 0]
    assert torch.allclose(details.values[:, 0], nats, atol=1e-4)
    assert torch.allclose(details.values[:, 1], logs.exp()[:, 40:].sum(1), atol=1e-5)
    assert total.item() == pytest.approx((nats @ details.weights).item(), rel=1e-5)
    (expected,) = torch.autograd.grad(nats @ details.weights, tables[1])
    assert torch.allclose(gradient, expected, atol=1e-4)


@pytest.mark.parametrize("plain", [True, False])
def test_losses_of_streams_are_the_model_s_own(plain, start, monkeypatch) -> None:
    """By transformers' logits, for a plain head and for one that does more."""
    monkeypatch.setattr("lep.training.loss.head_is_plain", lambda model: plain)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    ids = torch.randint(10, 500, (3, 20), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(
        torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.3, -100
    )
    numbers = torch.randint(0, 5, (3, 20), generator=torch.Generator().manual_seed(2))
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    nats = cross_entropy(logits, labels[:, 1:].flatten(), reduction="none", ignore_index=-100)
    new = sorted(new_rows(start))
    mass = logits.softmax(1)[:, new].sum(1)
    split_tables(model, {"input": torch.tensor(new), "output": torch.tensor(new)})
    trainer = SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(autocast=torch.no_grad),
        stream_sums=streams.StreamSums(),
        stream_weights=streams.stream_weights("new_rows"),
    )
    assert chunk_loss(trainer) is plain
    loss = model(input_ids=ids, labels=labels, streams=numbers)["loss"]
    learned, by_stream = labels[:, 1:].flatten() != -100, numbers[:, 1:].flatten()
    # Tokens of the old language count ten times: their loss is only what new tokens take.
    times = torch.tensor([10.0 if name.startswith("old") else 1.0 for name in STREAMS])
    weighted = (nats * times[by_stream])[learned].mean()
    assert loss.item() == pytest.approx(weighted.item(), rel=1e-4)
    report = trainer.stream_sums.report(lambda sums: sums)
    assert report["loss"] == pytest.approx(nats[learned].mean().item(), rel=1e-4)
    for number, name in enumerate(STREAMS):
        chosen = learned & (by_stream == number)
        assert report[f"loss of {name}"] == pytest.approx(nats[chosen].mean().item(), rel=1e-4)
    old = learned & (by_stream == [*STREAMS].index("old_text"))
    assert report["new token mass"] == pytest.approx(mass[old].mean().item(), rel=1e-4)
    assert trainer.stream_sums.report(lambda sums: sums) == {}


def test_input_rows_that_no_text_uses_move_by_the_map_in_common(start, tmp_path) -> None:
    """Without the map, such rows stay."""
    sizes = {"tokens": 384, "train": "new_rows", "learning_rate": 1e-2, "weight_decay": 0.0}
    text = write_jsonl(tmp_path / "ru.jsonl", [{"text": "Погода " * 200}])
    moved = {}
    for shared in (True, False):
        output = tmp_path / str(shared)
        pretrain(start, [text], output, **mixture(start, **sizes, shared_maps=shared))
        before, after = (
            weights(folder)["model.embed_tokens.weight"].float() for folder in (start, output)
        )
        moved[shared] = after - before
    alone = [index for index in sorted(new_rows(start)) if not moved[False][index].any()]
    assert len(alone) > 8
    distances = moved[True][alone].abs().amax(1)
    # The tokens are those of one step; a step moves a row by little more than a step of its own.
    assert 1e-4 < distances.min() <= distances.max() < 3 * sizes["learning_rate"]


def test_joint_training_trains_new_rows_and_records_its_streams(start, tmp_path) -> None:
    text = {"eval_text": {"ru": [str(RU[0])], "en": EN}, "eval_characters": 1_000, "tokens": 4_000}
    rates = {"train": "new_rows", "relative_rate": 0.5}
    result = pretrain(start, RU, tmp_path / "out", **mixture(start, **rates, **text))
    before, after = weights(start), weights(tmp_path / "out")
    checkpoint, new = Checkpoint(start), new_rows(start)
    assert changed(before, after) == set(checkpoint.tables.names)
    for name in checkpoint.tables.names:
        moved = (before[name] != after[name]).any(1).nonzero().flatten().tolist()
        assert set(moved) <= new
        assert moved
    record = json.loads((tmp_path / "out" / "lep" / "pretrain.json").read_text())
    assert set(record["streams"]) == set(STREAMS)
    assert sum(stream["share"] for stream in record["streams"].values()) == pytest.approx(1)
    steps = [loss["step"] for loss in record["losses"]]
    for stream in record["streams"].values():
        assert {step for step, _ in stream["losses"]} <= {*steps}
    assert all(0 <= share <= 1 for _, share in record["new_token_mass"])
    # The state that is best in both languages is kept, by their geometric mean.
    means = {look.step: math.prod(look.bits_per_byte.values()) for look in result.looks}
    assert result.best_step == min(means, key=means.get)
    # The rates follow the rows that are known, in each table.
    rows = sorted({*range(len(before[checkpoint.tables.input]))} - new)
    norms = before[checkpoint.tables.input][rows].float().norm(dim=1)
    size = float(norms[norms > 0].median()) / math.sqrt(before[checkpoint.tables.input].shape[1])
    assert result.settings.learning_rate == pytest.approx(0.5 * size)


def test_the_record_counts_what_is_learned(start, blocks) -> None:
    counts: Counter[int] = Counter()
    for _, ids, prompt in pieces_of(blocks):
        counts.update(ids[prompt:])
    record, new = streams.Mixture.of(blocks), sorted(new_rows(start))
    assert record.counts == counts
    assert record.rarer_than(5, new) == sum(counts[row] < 5 for row in new)
    assert record.median_count(new) == np.median([counts[row] for row in new]) > 0
    assert record.median_count([]) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shares": {"texts": 1}},
            "shares names the stream 'texts': the streams are text, answers",
        ),
        (
            {"shares": {"old_text": 1}, "old_text": []},
            "old_text has a share of 1 and would be empty",
        ),
        (
            {"shares": dict.fromkeys(STREAMS, 0)},
            "all shares are 0: give at least one stream a share",
        ),
    ],
)
def test_shares_that_leave_a_stream_empty_are_refused(options, message, start, tmp_path) -> None:
    with pytest.raises(CorpusError, match=message):
        pretrain(start, RU, tmp_path / "out", **mixture(start, train="new_rows", **options))
    assert not list(tmp_path.iterdir())


def test_answers_without_a_new_token_are_refused_as_answers(start, tmp_path) -> None:
    english = write_jsonl(tmp_path / "en.jsonl", [conversation("bus", "route")])
    options = {"answers": english, "shares": {"answers": 1}, "train": "new_rows"}
    with pytest.raises(CorpusError, match="answers has a share of 1 and would be empty"):
        pretrain(start, RU, tmp_path / "out", **mixture(start, **options))


def test_a_short_stream_is_not_read_again_and_again() -> None:
    """Eight passes at most; the rest of its share goes to the others, in proportion."""
    shares = {"text": 0.25, "answers": 0.15, "practice": 0.5, "old_text": 0.1}
    lengths = {"answers": 10_000, "practice": 500}
    with pytest.warns(LepWarning, match=r"practice has only 500 tokens .* 4\.0% instead of 50%"):
        limited = streams.within_passes(shares, lengths, 100_000)
    expected = {"text": 0.48, "answers": 0.288, "practice": 0.04, "old_text": 0.192}
    assert limited == pytest.approx(expected)
    with pytest.warns(LepWarning):  # the practice that is left over overfills the answers
        both = streams.within_passes(shares, {"answers": 2_500, "practice": 500}, 100_000)
    assert both == pytest.approx({**both, "answers": 0.2, "practice": 0.04})
    assert both["text"] / both["old_text"] == pytest.approx(2.5)
    assert sum(both.values()) == pytest.approx(1)
    assert streams.within_passes(shares, {"practice": 6_250}, 100_000) == shares
    alone = {"practice": 1.0}
    assert streams.within_passes(alone, {"practice": 5}, 100_000) == alone


@pytest.mark.parametrize("rate", [None, 1e-9])
def test_adapters_train_beside_new_rows_at_a_rate_of_their_own(start, tmp_path, rate) -> None:
    options = {"train": "new_rows+lora", "lora_rank": 4, "lora_rate": rate, "tokens": 4_000}
    pretrain(start, RU, tmp_path / "out", **mixture(start, **options))
    before, after, new = weights(start), weights(tmp_path / "out"), new_rows(start)
    factors, tables = saved_factors(tmp_path / "out"), Checkpoint(start).tables.names
    moved = changed(before, after) - {*tables}
    assert moved == {*factors} if rate is None else moved <= {*factors}
    for name in tables:
        moved = (before[name] != after[name]).any(1).nonzero().flatten().tolist()
        assert moved
        assert set(moved) <= new
    steps = 10  # of 384 tokens, after a warm-up of one
    for left, right in factors.values():
        assert left.shape[1] == right.shape[0] == 4
        assert 0 < left.abs().max() <= steps * (rate or 2e-4) * 8  # alpha / rank
