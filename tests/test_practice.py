"""Practice tasks: each new token comes equally often, and the original's own answers decide."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SAMPLE, TEMPLATE, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lep.calibration import practice
from lep.calibration.drawing import Drawing, Words
from lep.calibration.practice import practise
from lep.checkpoint.reader import Checkpoint
from lep.corpus.tasks import PROMPTS
from lep.errors import CheckpointError, CorpusError, OutputError
from lep.tokenizer.write import extend_tokenizer
from lep.transfer.initialise import initialise
from lep.transfer.mappings import saved_mappings

INSTRUCT, RU = ROOT / "lab" / "pair" / "instruct", {"ru": [SAMPLE / "ru"]}
SETTINGS = {"practice_tokens": 4_000, "practice": 1_000}


@pytest.fixture(scope="module", autouse=True)
def in_float32() -> Iterator[None]:
    """The tests compare with transformers in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lep.inference.models.multiplies_bf16", lambda: False)
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """The lab's instruct model with 200 new tokens."""
    folder = tmp_path_factory.mktemp("practice")
    extend_tokenizer(INSTRUCT, RU["ru"], 200, folder / "tokenizer")
    initialise(INSTRUCT, folder / "tokenizer", folder / "start")
    return folder / "start"


@pytest.fixture(scope="module")
def made(start) -> Path:
    practise(INSTRUCT, start, RU, start.parent / "practice", **SETTINGS)
    return start.parent / "practice"


def new_tokens(start: Path) -> set[int]:
    return set(saved_mappings(Checkpoint(start))["input"].new_rows().tolist())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_kept_tasks_are_what_the_original_answers(made) -> None:
    """By `generate` of transformers, one task at a time."""
    tokenizer = AutoTokenizer.from_pretrained(INSTRUCT)
    model = AutoModelForCausalLM.from_pretrained(INSTRUCT, dtype=torch.float32)
    for record in random.Random(0).sample(lines(made / "kept.jsonl"), 6):
        question, answer = record["messages"]
        ids = tokenizer.apply_chat_template(
            [question], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        written = model.generate(ids, do_sample=False, max_new_tokens=100)[0, ids.shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True).strip() == answer["content"]


def test_counts_are_those_of_the_tasks(start, made) -> None:
    tokenizer = AutoTokenizer.from_pretrained(start)
    counts: Counter[int] = Counter()
    tokens = 0
    for record in lines(made / "kept.jsonl"):
        ids = tokenizer.apply_chat_template(record["messages"], return_dict=False)
        prompt = tokenizer.apply_chat_template(
            record["messages"][:1], add_generation_prompt=True, return_dict=False
        )
        counts.update(set(ids[len(prompt) :]))
        tokens += len(ids)
    facts, new = json.loads((made / "practice.json").read_text()), new_tokens(start)
    assert facts["kept"] == len(lines(made / "kept.jsonl"))
    assert facts["tokens"] == tokens
    assert 4_000 <= tokens < 4_200
    assert facts["new_tokens"] == len(new) == 200
    assert facts["below"] == sum(counts[index] < 1_000 for index in new)
    assert facts["tasks"] > facts["kept"]


def test_each_new_token_comes_equally_often(start) -> None:
    checkpoint = Checkpoint(start)
    texts = (path.read_text(encoding="utf-8") for path in sorted(RU["ru"][0].iterdir()))
    words = replace(Words.count(checkpoint, "ru", texts, new_tokens(start)), sentences=[])
    drawing = Drawing(words, "ru", 0)
    tokenizer = AutoTokenizer.from_pretrained(start)
    counts: Counter[int] = Counter()
    for item in islice(drawing, 400):
        counts.update(set(tokenizer(" " + item.answer, add_special_tokens=False)["input_ids"]))
        words_of_text = item.text.rstrip(".").split()
        before = (
            {"word_after": words_of_text[words_of_text.index(item.answer) - 1]}
            if item.task == "word_after"
            else {}
        )
        assert item.question == PROMPTS["ru"][item.task].format(
            text=item.text, word=before.get(item.task, "")
        )
    usual = sorted(counts[index] for index in words.of_token)
    assert usual[len(usual) // 20] >= usual[len(usual) // 2] / 3  # text itself: a hundredth


def test_a_killed_run_continues_with_the_same_tasks(start, made, tmp_path, monkeypatch) -> None:
    real, calls = practice.greedy_matches, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(practice, "TASKS_AT_ONCE", 32)
    whole = practise(INSTRUCT, start, RU, tmp_path / "whole", practice_tokens=2_500)
    monkeypatch.setattr(practice, "greedy_matches", killed)
    with pytest.raises(KeyboardInterrupt):
        practise(INSTRUCT, start, RU, tmp_path / "out", practice_tokens=2_500)
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="unfinished run with other settings"):
        practise(INSTRUCT, start, RU, tmp_path / "out", practice_tokens=3_000)
    again = practise(INSTRUCT, start, RU, tmp_path / "out", practice_tokens=2_500)
    assert (again.tasks, again.kept) == (whole.tasks, whole.kept)
    for name in ("kept.jsonl", "practice.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(calls) == 2 + whole.tasks // 32 - 1
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"kept.jsonl", "practice.json"}


def test_tasks_that_the_original_cannot_do_are_drawn_less(start) -> None:
    words = Words({"да": [7]}, {7: ["да"]}, ["да", "нет"], [1, 1], [])
    drawing = Drawing(words, "ru", 0)
    items = list(islice(drawing, 600))
    before = Counter(item.task for item in items)["copy_paragraph"]
    for some in (items[:20], items[20:]):  # all tasks so far count
        drawing.learn(some, [item.task != "copy_paragraph" for item in some])
    counts = Counter(item.task for item in islice(drawing, 600))
    assert counts["copy_paragraph"] < before / 5
    assert counts["copy_sentence"] > 3 * before / 2


def test_practice_where_words_have_no_spaces(start) -> None:
    """Clauses between marks are drawn and put together with marks, and copied whole."""
    clauses = ["这条河从山里流出来", "最后流进大海", "天气很好"]
    tokens = {clause: [number] for number, clause in enumerate(clauses)}
    of_token = {number: [clause] for number, clause in enumerate(clauses)}
    words = Words(tokens, of_token, clauses, [1, 1, 1], [])
    items = list(islice(Drawing(words, "zh", 0), 60))
    assert {item.task for item in items} == {"copy_sentence", "copy_paragraph"}
    for item in items:
        assert item.answer[-1] == "。"
        assert set(item.answer[:-1].split("，")) <= set(clauses)
        assert item.question.endswith(item.answer)


def test_nothing_is_learned_from_an_original_that_can_do_nothing(start) -> None:
    words = Words({"да": [7]}, {7: ["да"]}, ["да", "нет"], [1, 1], [])
    drawing = Drawing(words, "ru", 0)
    before = dict(drawing.weights)
    items = list(islice(drawing, 50))
    drawing.learn(items, [0] * 50)
    assert drawing.weights == before


def test_what_cannot_be_practised_is_refused(start, byte_level, tmp_path) -> None:
    with pytest.raises(CorpusError, match="text has ru, en: give --text LANGUAGE=PATH once"):
        practise(INSTRUCT, start, RU | {"en": [SAMPLE / "en"]}, tmp_path / "out")
    with pytest.raises(CheckpointError, match="does not say which of its tokens are new"):
        practise(INSTRUCT, INSTRUCT, RU, tmp_path / "out")
    with pytest.raises(CorpusError, match="none of the 200 new tokens"):
        practise(INSTRUCT, start, {"en": [SAMPLE / "en"]}, tmp_path / "out")
    save_model(tmp_path / "random", byte_level, template=TEMPLATE)
    with pytest.raises(CorpusError, match=r"right answer to none of \d+ practice tasks"):
        practise(tmp_path / "random", start, RU, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["random"]


@pytest.mark.slow
def test_tasks_of_old_languages_are_added_from_their_sentences(start, made, tmp_path) -> None:
    en = {"en": [SAMPLE / "en"]}
    result = practise(INSTRUCT, start, RU, tmp_path / "out", old=en, **SETTINGS)
    old = lines(tmp_path / "out" / "kept.jsonl")[result.kept :]
    assert result.old_tasks == len(old) == pytest.approx(result.kept / 2, abs=4)
    text = "".join(path.read_text(encoding="utf-8") for path in (SAMPLE / "en").iterdir())
    text = " ".join(text.split())
    for record in old:
        question, answer = (message["content"] for message in record["messages"])
        assert record["language"] == "en"
        assert answer in question
        assert answer in text
    new = lines(made / "kept.jsonl")
    assert lines(tmp_path / "out" / "kept.jsonl")[: result.kept] == new
