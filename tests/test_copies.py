"""Copy tasks share nothing with the text of the evaluation."""

import pytest
from conftest import SAMPLE

from lep.corpus.copies import copy_records, evaluated_runs, records_apart, runs_of
from lep.corpus.read import read_documents, write_records
from lep.errors import CorpusError

TEXT = [SAMPLE / "ru"]


def answers(records: list[dict]) -> list[str]:
    return [record["messages"][-1]["content"] for record in records]


def test_half_are_sentences_and_half_paragraphs() -> None:
    records = copy_records({"ru": TEXT}, 20, seed=0)
    assert [r["task"] for r in records] == ["copy_sentence"] * 10 + ["copy_paragraph"] * 10
    assert all(r["messages"][0]["content"].endswith(r["messages"][1]["content"]) for r in records)


def test_tasks_that_share_words_with_the_evaluation_are_left_out(tmp_path) -> None:
    every = answers(copy_records({"ru": TEXT}, 40, seed=0))
    longest = max(every, key=len)
    inside = " ".join(longest.split()[3:-3]).upper()  # its middle, in capitals
    evaluated = tmp_path / "evaluated.jsonl"
    write_records(evaluated, [{"id": "a", "text": f"Сначала другое. {inside}, потом третье."}])
    left = answers(copy_records({"ru": TEXT}, 40, seed=0, evaluation={"ru": [evaluated]}))
    assert longest not in left
    assert 0 < len(every) - len(left) <= 4  # and sentences inside it
    runs = evaluated_runs([evaluated])
    assert all(runs.isdisjoint(runs_of(text)) for text in left)


def test_a_short_sentence_overlaps_as_a_whole(tmp_path) -> None:
    text = "Он пришёл домой поздно. Она давно спала, и в доме было тихо."
    write_records(tmp_path / "evaluated.jsonl", [{"id": "a", "text": text}])
    runs = evaluated_runs([tmp_path / "evaluated.jsonl"])
    assert not runs.isdisjoint(runs_of("Он пришёл домой поздно."))
    assert runs.isdisjoint(runs_of("Он пришёл домой рано."))


@pytest.mark.parametrize(("shared", "stays"), [(7, True), (8, False)])
def test_eight_words_in_a_row_are_the_same_text(shared: int, stays: bool, tmp_path) -> None:
    """Counted without the runs of lep: of twelve words of a task, so many are in the evaluation."""
    words = [f"слово{chr(1072 + i)}" for i in range(12)]
    sentence = "Здесь " + " ".join(words) + "."
    others = [f"Вот {i} раз нечто совсем другое о доме номер {i} у реки." for i in range(30)]
    text, evaluated = tmp_path / "text.jsonl", tmp_path / "evaluated.jsonl"
    write_records(text, ({"id": str(i), "text": t} for i, t in enumerate([sentence, *others])))
    apart = ["Никто", "не", *words[2 : 2 + shared], "знает", "этого."]
    write_records(evaluated, [{"id": "a", "text": " ".join(apart)}])
    both = [[w.strip(".").lower() for w in t.split()] for t in (sentence, " ".join(apart))]
    grams = [{tuple(t[i : i + 8]) for i in range(len(t) - 7)} for t in both]
    assert grams[0].isdisjoint(grams[1]) == stays
    heldout = {"ru": [evaluated]}
    left = answers(records_apart({"ru": [text]}, ["copy_sentence"], 100, 0, heldout))
    assert (sentence in left) == stays


def test_the_same_text_is_refused() -> None:
    message = r"40 of 40 tasks \(ru\) are made of text that is evaluated on \(the first: '.+"
    with pytest.raises(CorpusError, match=message):
        copy_records({"ru": TEXT}, 40, seed=0, evaluation={"ru": TEXT})


def test_no_more_is_read_than_is_needed(monkeypatch) -> None:
    read = []

    def counting(paths):
        for document in read_documents(paths):
            read.append(document)
            yield document

    monkeypatch.setattr("lep.corpus.copies.read_documents", counting)
    copy_records({"ru": TEXT}, 2, seed=0)
    assert len(read) < len(list(read_documents(TEXT)))
