"""The losses of two published ways, beside transformers and dense arithmetic."""

import math
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SAMPLE, weights
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.append(str(ROOT / "benchmarks"))
import anchors
import input_output

from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import read_documents, write_records
from lep.inference.models import load_model
from lep.training.trainable_rows import new_token_rows, split_tables, table_layers
from lep.transfer.initialise import initialise


@pytest.fixture(scope="module")
def corpus(pair: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> anchors.Corpus:
    folder = tmp_path_factory.mktemp("anchors")
    initialise(pair["instruct"], pair["tokenizer"], folder / "start")
    texts = [document.text for document in read_documents([SAMPLE / "ru"])]
    sentences = [text[:60] for text in texts[:12]]
    turns = [("user", "Повтори: "), ("assistant", "")]
    write_records(
        folder / "answers.jsonl",
        ({"messages": [{"role": r, "content": p + s} for r, p in turns]} for s in sentences),
    )
    original, start = Checkpoint(pair["instruct"]), Checkpoint(folder / "start")
    return anchors.Corpus(start, original, [SAMPLE / "ru"], folder / "answers.jsonl")


@pytest.fixture
def student(corpus: anchors.Corpus) -> anchors.Student:
    model, checkpoint = load_model(corpus.start.folder)
    model.requires_grad_(False)
    split_tables(model, new_token_rows(checkpoint))
    contents = corpus.original.vocabulary.contents
    spaces = [index for index, content in enumerate(contents) if content and content[:1].isspace()]
    return anchors.Student(model, table_layers(model)["output"].table, torch.tensor(spaces))


def test_both_segmentations_end_at_the_same_places(corpus) -> None:
    new, old = (AutoTokenizer.from_pretrained(c.folder) for c in (corpus.start, corpus.original))
    kinds = {"text": list(corpus.texts(20))[:6], "answers": list(corpus.conversations())}
    for kind, samples in kinds.items():
        assert len(samples) >= 6, kind
        assert any(len(sample.new) < len(sample.old) for sample in samples)
        for sample in samples:
            assert len(sample.ends) == 1 + len(sample.labels)
            for position, end in enumerate(sample.ends, start=sample.first - 1):
                shown = [(new, sample.new[: position + 1]), (old, sample.old[: end + 1])]
                assert len({tokenizer.decode(ids) for tokenizer, ids in shown}) == 1


def test_snippets_with_rare_tokens_come_first(corpus) -> None:
    rows = set(new_token_rows(corpus.start)["input"].tolist())
    chosen = anchors.snippets(corpus, rows, 400)
    assert 1 <= len(chosen) <= 8
    first = rows.intersection(chosen[0].new)
    assert first
    assert all(len(sample.new) in (anchors.SNIPPET, anchors.SNIPPET + 1) for sample in chosen)


def test_teacher_chunks_are_the_original_models_likelihoods(corpus, student, monkeypatch) -> None:
    """Summed over the pieces of each new token, from the original model in transformers."""
    monkeypatch.setattr(anchors, "SPACE_PROBABILITY", -1.0)  # every token is a chunk
    batch = [*list(corpus.texts(12))[:2], next(corpus.conversations())]
    chunk, found = anchors._teacher_chunks(student, batch)
    assert chunk.tolist() == list(range(sum(len(sample.labels) for sample in batch)))
    original = AutoModelForCausalLM.from_pretrained(corpus.original.folder, dtype=torch.float32)
    expected = []
    for sample in batch:
        with torch.no_grad():
            logs = original.eval()(torch.tensor([sample.old])).logits[0].log_softmax(1)
        for begin, end in zip(sample.ends, sample.ends[1:], strict=False):
            places = range(begin + 1, end + 1)
            expected.append(sum(float(logs[p - 1, sample.old[p]]) for p in places))
    assert found.tolist() == pytest.approx(expected, abs=1e-3)


def test_costs_of_input_and_output_rows_are_those_of_transformers(corpus, student) -> None:
    """Each of the five from whole logits of the original and of the start, text by text."""
    samples = [*list(corpus.texts(12))[:5], next(corpus.conversations())]
    start, original = (
        AutoModelForCausalLM.from_pretrained(c.folder, dtype=torch.float32).eval()
        for c in (corpus.start, corpus.original)
    )
    known = original.get_output_embeddings().weight
    sums, size = torch.zeros(5), 0
    for sample in samples:
        with torch.no_grad():
            after, before = (
                model.get_decoder()(torch.tensor([ids])).last_hidden_state[0]
                for model, ids in ((start, sample.new), (original, sample.old))
            )
            new, old = after[sample.first - 1 : -1], before[sample.ends[:-1]]
            first = torch.tensor([sample.old[end + 1] for end in sample.ends[:-1]])
            rest = torch.tensor(sample.old[sample.ends[0] + 1 :])
            heads = (known, start.get_output_embeddings().weight)
            labels, states = torch.tensor(sample.labels), before[sample.ends[0] : -1]
            asked = [
                (states, heads[0], rest),
                (new, heads[1], labels),
                (old, heads[1], labels),
                (old, heads[0], first),
                (new, heads[0], first),
            ]
            sums += torch.stack([cross_entropy(h @ w.T, t, reduction="sum") for h, w, t in asked])
        tokenizer = AutoTokenizer.from_pretrained(corpus.original.folder)
        size += len(tokenizer.decode(rest, skip_special_tokens=True).encode())
    found = input_output.costs(student, samples, corpus.original)
    assert found == pytest.approx((sums / math.log(2) / size).tolist(), rel=1e-3)


def test_chunks_are_joined_until_a_space_is_expected(corpus, student, monkeypatch) -> None:
    monkeypatch.setattr(anchors, "SPACE_PROBABILITY", 2.0)  # never
    batch = list(corpus.texts(12))[:2]
    chunk, found = anchors._teacher_chunks(student, batch)
    assert len(found) == 2  # and never beyond a text
    assert chunk.tolist() == [0] * len(batch[0].labels) + [1] * len(batch[1].labels)


def test_the_gradient_of_alm_is_that_of_its_formula(corpus, student, monkeypatch) -> None:
    """From dense logits: both losses, the second as large as the first."""
    batch = list(corpus.texts(12))[:2]
    anchors.alm(student, batch).backward()
    found = student.table.new.grad.clone()
    student.table.new.grad = None
    chunk, teacher = anchors._teacher_chunks(student, batch)
    logits = [student.model(torch.tensor([sample.new])).logits[0] for sample in batch]
    nats = torch.cat(
        [
            cross_entropy(part[:-1], torch.tensor(sample.new[1:]), reduction="none")
            for part, sample in zip(logits, batch, strict=True)
        ]
    )
    sums = torch.zeros(len(teacher)).index_add(0, chunk, nats)
    x, y = teacher / 100 - 1e-6, -sums / 100 - 1e-6
    loss = -(x.exp() * y + (1 - x.exp()) * (1 - y.exp()).log()).mean()
    (slopes,) = torch.autograd.grad(loss, nats, retain_graph=True)
    scale = float(slopes.norm()) / math.sqrt(1 / len(nats))
    (expected,) = torch.autograd.grad(loss + scale * nats.mean(), student.table.new)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_token_distillation_is_zero_distance_where_nothing_is_merged(corpus, student) -> None:
    """With old ids on both sides, only the cross-entropy would be left, scaled to nothing."""
    (sample, *_) = corpus.texts(12)
    same = anchors.Sample(sample.old, sample.old, 1, list(range(len(sample.old))))
    assert anchors.token_distillation(student, [same]).item() == pytest.approx(0, abs=1e-9)
    assert anchors.token_distillation(student, [sample]).item() > 0


@pytest.mark.parametrize("name", anchors.LOSSES)
def test_a_training_moves_new_rows_alone_and_goes_on_after_a_kill(
    name, corpus, tmp_path, monkeypatch
) -> None:
    options = {"tokens": 900, "batch": 100, "seed": 0}
    anchors.train(corpus, name, tmp_path / "whole", **options)
    before, after = weights(corpus.start.folder), weights(tmp_path / "whole")
    known = len(AutoTokenizer.from_pretrained(corpus.original.folder))
    for tensor, values in before.items():
        moved = (values != after[tensor]).reshape(len(values), -1).any(1)
        assert not moved[:known].any()
        assert bool(moved.any()) == (len(values) > known and values.ndim == 2)
    monkeypatch.setattr(anchors, "SAVE_STEPS", 1)
    step, done = anchors.Run.step, []

    def killed(run: anchors.Run, loss: torch.Tensor) -> None:
        step(run, loss)
        done.append(run.done)
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(anchors.Run, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        anchors.train(corpus, name, tmp_path / "again", **options)
    assert not (tmp_path / "again").exists()
    anchors.train(corpus, name, tmp_path / "again", **options)
    assert done[:3] == [1, 2, 3]
    for tensor, values in weights(tmp_path / "again").items():
        torch.testing.assert_close(values, after[tensor])
