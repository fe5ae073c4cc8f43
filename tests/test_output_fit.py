"""New output rows fitted to the original's states: segmentation, states, loss, and the fit."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from conftest import SAMPLE, sample_texts, save_model, weights
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from lep.checkpoint.reader import Checkpoint
from lep.settings import STREAMS
from lep.tokenizer.write import extend_tokenizer, optimize_tokenizer
from lep.training.data import collate
from lep.training.output_fit import OldSegmentation, States, fitted_rows, original_states
from lep.training.pretrain import pretrain
from lep.training.trainable_rows import SplitTable, new_token_rows, row_features, split_tables
from lep.transfer.initialise import initialise

RU, EN = [str(SAMPLE / "ru")], [str(SAMPLE / "en")]


@pytest.fixture(scope="module", params=["untied", "tied"])
def start(byte_level, request, tmp_path_factory) -> Path:
    """A model with 60 new tokens, the original beside it."""
    folder = tmp_path_factory.mktemp("distillation")
    save_model(folder / "model", byte_level, tied=request.param == "tied")
    extend_tokenizer(folder / "model", [SAMPLE / "ru"], 60, folder / "tokenizer")
    initialise(folder / "model", folder / "tokenizer", folder / "start")
    return folder / "start"


@pytest.fixture(scope="module")
def blocks(start) -> tuple[list[dict], list[list[int]], list[list[str]]]:
    """Two blocks of texts, with the texts' original ids, and the texts."""
    texts = [text[:200] for text in sample_texts("ru")[:3] + sample_texts("en")[:2]]
    after, before = (AutoTokenizer.from_pretrained(f) for f in (start, start.parent / "model"))
    new, old = ([t(text)["input_ids"] for text in texts] for t in (after, before))
    assert sum(map(len, new)) < sum(map(len, old))
    rows = [[0, 3], [1, 2, 4]]
    blocks = [
        {
            "input_ids": [*chain(*(new[i] for i in row))],
            "lengths": [len(new[i]) for i in row],
            "prompt_tokens": [1] * len(row),
            "streams": [0 if i < 3 else [*STREAMS].index("old_text") for i in row],
        }
        for row in rows
    ]
    return blocks, [[old[i] for i in row] for row in rows], [[texts[i] for i in r] for r in rows]


def segmentation_of(start: Path) -> OldSegmentation:
    checkpoint = Checkpoint(start)
    found = OldSegmentation.of(checkpoint, new_token_rows(checkpoint))
    assert found is not None
    return found


def test_a_batch_is_read_in_the_ids_of_the_original(start, blocks) -> None:
    batch = collate(blocks[0])
    inputs, _ = segmentation_of(start).expanded(batch["input_ids"], batch["position_ids"])
    for read, positions, old in zip(*inputs.values(), blocks[1], strict=True):
        ids = [*chain(*old)]
        assert read[: len(ids)].tolist() == ids
        assert positions[: len(ids)].tolist() == [*chain(*(range(len(each)) for each in old))]


def test_states_and_loss_are_those_of_the_original_and_of_the_new_rows(start, blocks) -> None:
    checkpoint = Checkpoint(start)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).eval()
    head = model.get_output_embeddings().weight.detach().clone()
    *_, table = split_tables(model, new_token_rows(checkpoint)).values()  # the output's
    weights = torch.arange(1.0, 1 + len(STREAMS))
    states = original_states(model, table, segmentation_of(start), [collate(blocks[0])], weights)
    original = AutoModelForCausalLM.from_pretrained(start.parent / "model", dtype=torch.float32)
    after, before = (AutoTokenizer.from_pretrained(f) for f in (start, start.parent / "model"))
    hidden, nats, weighed = [], [], []
    for olds, texts, block in zip(blocks[1], blocks[2], blocks[0], strict=True):
        for old, text, stream in zip(olds, texts, block["streams"], strict=True):
            with torch.no_grad():
                given = original.eval().get_decoder()(torch.tensor([old])).last_hidden_state[0]
            new = after(text)["input_ids"]
            begun = [before.decode(old[: end + 1]) for end in range(len(old))]
            ends = [begun.index(after.decode(new[: end + 1])) for end in range(len(new) - 1)]
            hidden.append(given[ends])
            logits = given[ends] @ head.T
            nats.append(cross_entropy(logits, torch.tensor(new[1:]), reduction="none"))
            weighed += [stream + 1.0] * (len(new) - 1)
    torch.testing.assert_close(states.hidden, torch.cat(hidden), rtol=1e-3, atol=1e-4)
    found = states.nats(table.new.detach())
    torch.testing.assert_close(found, torch.cat(nats), rtol=1e-3, atol=1e-3)
    assert states.weights.tolist() == weighed


@pytest.mark.parametrize("helps", [True, False])
def test_a_fit_finds_the_map_or_leaves_the_rows(helps) -> None:
    """States of words that the true rows say, and features that tell these rows or nothing."""
    torch.manual_seed(0)
    known, new, width, count = 40, 60, 16, 6_000
    old, base = torch.randn(known, width), torch.randn(new, width)
    features = torch.randn(new, 4)
    true = base + features @ torch.randn(4, width) * helps
    hidden = torch.randn(count, width)
    logits = hidden @ torch.cat([old, true]).T
    words = torch.distributions.Categorical(logits=logits).sample()
    labels = torch.where(words < known, -1, words - known)
    own = logits.gather(1, words.clamp(max=known - 1)[:, None])[:, 0]
    lse = logits[:, :known].logsumexp(1)
    states = States(hidden, labels, own, lse, torch.ones(count))
    table = SplitTable(torch.cat([old, base]), torch.arange(known, known + new), features)
    rows, record = fitted_rows(table, states, 1.0, 0)
    best = states.nats(true).mean().item()
    at_first = states.nats(base).mean().item()
    assert record.states == count
    assert record.after <= record.before
    if helps:
        assert states.nats(rows).mean().item() < best + 0.1 * (at_first - best)
    else:
        assert states.nats(rows).mean().item() < best + 0.02


def test_a_training_begins_with_the_fit_and_says_so(start, tmp_path) -> None:
    options = {"train": "new_rows", "tokens": 12_000, "block_size": 96, "old_text": EN}
    fitted = {}
    for wanted in (True, False):
        output = tmp_path / str(wanted)
        result = pretrain(start, RU, output, **options, learning_rate=1e-9, fit_output=wanted)
        record = json.loads((output / "lep" / "pretrain.json").read_text())
        fitted[wanted] = record.get("output_fit")
        before, after = weights(start), weights(output)
        checkpoint = Checkpoint(start)
        new = new_token_rows(checkpoint)
        kinds = checkpoint.tables.by_kind()
        for kind, name in kinds.items():
            moved, fits = (after[name] - before[name]).float().abs().amax(1), kind == [*kinds][-1]
            assert bool((moved[new[kind]] > 1e-3).any()) == (wanted and fits)
            moved[new[kind]] = 0
            assert not moved.any()
    assert fitted[False] is None
    assert fitted[True]["after"] < fitted[True]["before"]
    assert "output rows fitted to" not in str(result)
    # Rows that have been trained already are left alone.
    again = pretrain(tmp_path / "True", RU, tmp_path / "again", **options, learning_rate=1e-9)
    assert again.output_fit is None


def test_a_vocabulary_in_place_has_no_original(byte_level, tmp_path) -> None:
    save_model(tmp_path / "model", byte_level)
    optimize_tokenizer(tmp_path / "model", RU, 450, 500, tmp_path / "tokenizer", in_place=True)
    initialise(tmp_path / "model", tmp_path / "tokenizer", tmp_path / "start")
    checkpoint = Checkpoint(tmp_path / "start")
    rows = new_token_rows(checkpoint)
    features = row_features(checkpoint, rows)
    assert all(torch.isfinite(each).all() for each in features.values())
    segmentation = OldSegmentation.of(checkpoint, rows)
    contents = checkpoint.vocabulary.contents
    if segmentation is not None:  # every piece of every new token was kept
        for row in rows["input"].tolist():
            start, stop = segmentation.offsets[row : row + 2].tolist()
            pieces = segmentation.pieces[start:stop].tolist()
            assert b"".join(contents[piece] for piece in pieces) == contents[row]
