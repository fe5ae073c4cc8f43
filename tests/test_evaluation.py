"""Metrics against slow definitions; likelihoods against one token at a time."""

import json
import math
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import sem
from scipy.stats import t as student_t
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from lep.benchmark.metrics import common_subsequence, copied
from lep.corpus.read import read_documents
from lep.errors import LepError, OutputError, TokenizerError
from lep.evaluation.evaluate import evaluate
from lep.evaluation.records import Score, TextRecord, load_records, load_scores
from lep.evaluation.score import Material, bits_per_byte, score_model, summarise, task_record
from lep.evaluation.spans import answer_nats
from lep.evaluation.table import comparison, comparison_table, text_table
from lep.hub import short_names
from lep.inference.generate import answers
from lep.inference.likelihood import sequence_nats
from lep.inference.models import Description, context_of, load_model
from lep.settings import EvaluateSettings
from lep.statistics import estimate
from lep.tokenizer.chat import chat_ids

TEXT = Path(__file__).parent.parent / "lab" / "text" / "train"
SETTINGS = EvaluateSettings(items=2, characters=1500, bootstrap=200, window_characters=300)


def slow_subsequence(a: str, b: str) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
            )
    return table[-1][-1]


@given(st.text("abcд", max_size=20), st.text("abcд", max_size=20))
def test_common_subsequence(a: str, b: str) -> None:
    assert common_subsequence(a, b) == slow_subsequence(a, b)


def test_copy_scores() -> None:
    text = "а" * 99 + "б"
    assert copied(text[:-1], text)
    assert not copied(text[:-2], text)


def test_estimate_is_the_ratio_of_sums_and_covers_it() -> None:
    by_hand = estimate([1.0, 3.0], [1.0, 1.0])
    assert (by_hand.value, by_hand.count) == (2.0, 2)
    half = student_t.ppf(0.975, 1) * sem([1.0, 3.0])
    assert (by_hand.low, by_hand.high) == pytest.approx((2 - half, 2 + half), rel=0.05)
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(100):  # mean 0.5 of uniform numbers
        drawn = estimate(torch.rand(60, generator=generator).tolist(), resamples=300, seed=seed)
        covered += drawn.low <= 0.5 <= drawn.high
    assert 85 <= covered <= 100
    values = torch.randn(400, generator=generator)
    normal = estimate(values.tolist())
    assert (normal.high - normal.low) / 2 == pytest.approx(
        1.96 * values.std().item() / 20, rel=0.15
    )


@pytest.mark.parametrize("count", [2, 3, 5, 10, 20])
def test_intervals_of_few_documents_cover_nothing_more_often_than_they_say(count) -> None:
    """Documents of unequal length whose bits do not differ on the whole: 95% cover 0."""
    rng = np.random.default_rng(count)
    covered = 0
    for seed in range(300):
        size = rng.integers(200, 4000, count).astype(float)
        found = estimate(size * rng.normal(0, 0.05, count), size, resamples=200, seed=seed)
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 300 <= 0.99


def test_an_interval_of_shares_is_one_of_shares() -> None:
    found = estimate([0.0, 0.5, 1.0], shares=True)
    assert (found.low, found.high) == (0.0, 1.0)


def test_bits_per_byte_is_one_line(pair) -> None:
    result = bits_per_byte(str(pair["base"]), [TEXT / "ru"], characters=1500, bootstrap=50)
    records = score_model(
        pair["base"], {"text": [TEXT / "ru"]}, EvaluateSettings(tasks=[], characters=1500)
    ).records
    expected = sum(r.nats for r in records) / sum(r.bytes for r in records) / math.log(2)
    assert result.value == pytest.approx(expected)
    assert result.low < result.value < result.high
    assert result.windows == len(records)
    assert str(result) == (
        f"{result.value:.4f} bits per byte (95% interval {result.low:.4f} to {result.high:.4f} "
        f"over {result.windows} windows of one document)"
    )
    with pytest.raises(LepError, match="did you mean 'characters'"):
        bits_per_byte(pair["base"], [TEXT / "ru"], character=1500)


def test_records_come_back_from_disk_as_they_were(pair, tmp_path) -> None:
    evaluation = score_model(pair["instruct"], {"ru": [TEXT / "ru"]}, SETTINGS)
    evaluation.write(tmp_path)
    assert load_records(tmp_path / "records.jsonl") == evaluation.records
    assert load_scores(tmp_path / "scores.json") == evaluation.scores
    lines = [json.loads(x) for x in (tmp_path / "records.jsonl").read_text("utf-8").splitlines()]
    known = ["kind", "language", "id", "group", "nats", "tokens", "characters", "bytes"]
    assert all(list(line) == known for line in lines if line["kind"] == "text")
    word = next(line for line in lines if line.get("task") == "first_word")
    assert list(word) == [
        "kind",
        "language",
        "task",
        "question",
        "expected",
        "answer",
        "finished",
        "exact",
        "nats",
        "bytes",
    ]


def test_windows_of_a_document_are_drawn_together() -> None:
    """Windows of one author are alike: an interval over windows would claim too many texts."""
    generator = torch.Generator().manual_seed(0)
    records = [
        TextRecord(
            language="ru", id=f"{d}#{w}", group=f"{d}", nats=level, tokens=1, characters=1, bytes=1
        )
        for d, level in enumerate(torch.rand(30, generator=generator).tolist())
        for w in range(10)
    ]
    wide, narrow = (
        next(s for s in summarise(group, SETTINGS) if s.metric == "bits per byte")
        for group in (records, [replace(record, group=None) for record in records])
    )
    assert wide.value == pytest.approx(narrow.value)
    assert (wide.count, narrow.count) == (30, 300)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(10**0.5, rel=0.25)
    alone = [replace(record, group="all") for record in records]
    assert next(s for s in summarise(alone, SETTINGS) if s.metric == "bits per byte").count == 300


def test_what_follows_the_end_of_a_turn_is_no_part_of_an_answer(pair, monkeypatch) -> None:
    model, checkpoint = load_model(pair["instruct"])
    conversations = [
        [{"role": "user", "content": "Дом?"}, {"role": "assistant", "content": "Река"}]
    ]
    plain = answer_nats(model, checkpoint, conversations, 2, "")[0]
    template = checkpoint.tokenizer.chat_template
    monkeypatch.setattr(
        checkpoint.tokenizer, "chat_template", template.replace("<|end|>'", "<|end|>\n'")
    )
    assert (
        chat_ids(checkpoint.tokenizer, conversations[0])[-1]
        != checkpoint.vocabulary.added_ids()["<|end|>"]
    )
    ids = chat_ids(checkpoint.tokenizer, conversations[0])[:-1]
    start = len(chat_ids(checkpoint.tokenizer, conversations[0][:1], ask=True))
    assert answer_nats(model, checkpoint, conversations, 2, "")[0] == pytest.approx(
        sequence_nats(model, [(ids, start)], 1)[0], rel=1e-6
    )
    assert plain > 0
    thinks = "{% if add_generation_prompt %}{{ '<|assistant|>hm' }}{% endif %}"
    head = template.partition("{% if add_generation_prompt %}")[0]
    monkeypatch.setattr(checkpoint.tokenizer, "chat_template", head + thinks)
    assert answer_nats(model, checkpoint, conversations, 2, "") == {}


def test_a_base_model_with_a_template_is_not_asked_through_it(pair) -> None:
    kinds = [
        {
            record.kind
            for record in score_model(
                pair["instruct"], {"ru": [TEXT / "ru"]}, SETTINGS, base=base
            ).records
        }
        for base in (False, True)
    ]
    assert kinds == [{"text", "task"}, {"text"}]


def test_a_comparison_begins_again_when_its_text_changed(pair, tmp_path, monkeypatch) -> None:
    from lep.evaluation import evaluate as module

    def killed(*_, **__):
        raise KeyboardInterrupt

    settings = SETTINGS.model_copy(update={"tasks": []})
    text = {"ru": [tmp_path / "a.txt"]}
    (tmp_path / "a.txt").write_text("Снег пошёл ночью.\n" * 20, encoding="utf-8")
    models = [str(pair["base"])] * 2
    with monkeypatch.context() as patched:
        patched.setattr(module, "comparison", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(models, text, tmp_path / "out", settings)
    (tmp_path / "a.txt").write_text("Река стала.\n" * 20, encoding="utf-8")
    with pytest.raises(OutputError, match="holds the saved state of an unfinished run") as refused:
        evaluate(models, text, tmp_path / "out", settings)
    shutil.rmtree(str(refused.value).partition(" holds")[0])
    evaluate(models, text, tmp_path / "out", settings)
    records = load_records(tmp_path / "out" / "records.jsonl")
    assert {r.bytes for r in records} == {len(("Река стала.\n" * 20).encode())}


def test_windows_stay_within_memory(monkeypatch) -> None:
    from lep.inference import likelihood

    batches: list[list[tuple[int, list[int], int]]] = []

    def sums(model: object, batch: list, new: object) -> torch.Tensor:
        batches.append(batch)
        return torch.ones(len(batch), 2, dtype=torch.float64)

    monkeypatch.setattr(likelihood, "_batch_sums", sums)
    sequences = [([0] * 2_000, 1)] * 40
    for rows, wanted in ((128_256, None), (1_000, 2)):  # a small vocabulary is bounded by the size
        config = SimpleNamespace(vocab_size=rows, max_position_embeddings=None)
        config.get_text_config = lambda config=config: config
        gpu = SimpleNamespace(device=torch.device("cuda"), config=config)
        batches.clear()
        assert likelihood.sequence_nats(gpu, sequences, 32) == [1.0] * 40
        assert all(
            len(batch) * 2_000 * rows <= likelihood.MOST_LOGITS
            for batch in batches
            if len(batch) > 1
        )
        assert wanted in (None, len(batches))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_likelihood_equals_one_token_at_a_time(pair, batch_size) -> None:
    model, _ = load_model(pair["base"])
    torch.manual_seed(3)
    sequences = [
        (torch.randint(0, 500, (n,)).tolist(), scored)
        for n, scored in ((5, 1), (40, 10), (17, 0), (3, 2))
    ]
    expected = []
    for ids, scored in sequences:
        logits = model(torch.tensor([ids])).logits.double()[0]
        expected.append(
            -sum(
                logits[i - 1].log_softmax(0)[ids[i]].item() for i in range(max(scored, 1), len(ids))
            )
        )
    assert sequence_nats(model, sequences, batch_size) == pytest.approx(expected, rel=1e-5)


def test_long_sequences_are_scored_to_the_last_token(pair, monkeypatch) -> None:
    model, _ = load_model(pair["base"])
    ids = torch.randint(0, 500, (100,), generator=torch.Generator().manual_seed(4)).tolist()
    monkeypatch.setattr(model.config, "max_position_embeddings", 32)
    got = sequence_nats(model, [(ids, 1)], 4)
    expected, position, stop = 0.0, 1, 32
    while position < 100:
        begin = max(0, stop - 32)
        logits = model(torch.tensor([ids[begin:stop]])).logits.double()[0].log_softmax(-1)
        expected -= sum(logits[i - 1 - begin, ids[i]].item() for i in range(position, stop))
        position, stop = stop, min(100, stop + 16)
    assert got == [pytest.approx(expected, rel=1e-5)]


def test_greedy_answers_do_not_depend_on_the_batch(pair) -> None:
    model, checkpoint = load_model(pair["instruct"])
    prompts = [[{"role": "user", "content": "word " * n}] for n in (1, 9, 4)]
    one, three = (
        {
            a.index: a
            for batch in answers(
                model, checkpoint.tokenizer, prompts, max_new_tokens=6, batch_size=size
            )
            for a in batch
        }
        for size in (1, 3)
    )
    for index, answer in one.items():
        assert answer.nats == pytest.approx(three[index].nats, rel=1e-5)
        assert answer == replace(three[index], nats=answer.nats)
    ids = checkpoint.tokenizer.apply_chat_template(
        prompts[1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    for _ in range(6):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert one[1].text == checkpoint.tokenizer.decode(ids[0, -6:], skip_special_tokens=True).strip()


def test_base_models_cannot_be_asked(pair) -> None:
    model, checkpoint = load_model(pair["base"])
    with pytest.raises(TokenizerError, match="has no chat template"):
        next(
            answers(
                model,
                checkpoint.tokenizer,
                [[{"role": "user", "content": "a"}]],
                max_new_tokens=2,
                batch_size=1,
            )
        )


def test_evaluate_records_and_scores(pair) -> None:
    text = {"ru": [TEXT / "ru"], "en": [TEXT / "en"]}
    evaluation = score_model(pair["instruct"], text, SETTINGS)
    windows = [r for r in evaluation.records if r.kind == "text" and r.language == "ru"]
    joined = sum(r.characters for r in windows)
    assert 1500 <= joined < 1500 + 2000
    scores = {(s.metric, s.language, s.task): s for s in evaluation.scores}
    bits = scores["bits per byte", "ru", None]
    expected = sum(r.nats for r in windows) / sum(r.bytes for r in windows) / math.log(2)
    assert bits.value == pytest.approx(expected)
    assert bits.low < bits.value < bits.high
    assert bits.value > 1  # a random model knows nothing
    assert scores["exact match", "ru", None].count == 10
    assert scores["exact match", "ru", "copy_sentence"].count == 2


@pytest.mark.parametrize(
    ("given", "exact", "whole"),
    [
        ("Снег пошёл ночью.", 1.0, 1.0),
        ("Снег пошёл ночью", 0.0, 0.0),
        ("Снег пошёл ночью. Так.", 0.0, 1.0),
        (unicodedata.normalize("NFD", "Снег пошёл ночью."), 1.0, 1.0),
        ("", 0, 0),
    ],
)
def test_answers_are_scored_against_the_right_one(given, exact, whole) -> None:
    from lep.corpus.tasks import TaskItem
    from lep.inference.generate import Answer

    item = TaskItem("copy_sentence", "ru", "Снег пошёл ночью.", "Повтори", "Снег пошёл ночью.")
    record = task_record(item, Answer(0, given, [1, 2, 3], True), 7.0, len)
    assert (record.exact, record.copied) == (exact, whole)
    scores = {s.metric: s for s in summarise([record] * 3, SETTINGS) if s.task}
    assert scores["exact match"].value == exact
    assert scores["answer bits per byte"].value == pytest.approx(
        7 / math.log(2) / len("Снег пошёл ночью.".encode())
    )


def test_text_windows_are_the_same_for_every_tokenizer(pair, adapted) -> None:
    text = {"ru": [TEXT / "ru"]}
    settings = SETTINGS.model_copy(update={"tasks": []})
    first, second = (score_model(m, text, settings).records for m in (pair["base"], adapted))
    assert [(r.id, r.bytes) for r in first] == [(r.id, r.bytes) for r in second]
    assert sum(r.tokens for r in first) > sum(r.tokens for r in second)


def test_what_new_tokens_take_where_an_old_one_is_right(pair, adapted, tmp_path) -> None:
    """By a softmax of each window on its own; new tokens are those beyond the old vocabulary."""
    settings = SETTINGS.model_copy(update={"tasks": []})
    text = {"en": [TEXT / "en"]}
    folder = adapted.parent / "initialised"
    evaluation = score_model(folder, text, settings)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first_new = len(AutoTokenizer.from_pretrained(pair["base"]))
    assert len(tokenizer) > first_new
    masses, counts = [], []
    windows = Material.of(text, settings).windows["en"]
    for window, record in zip(windows, evaluation.records, strict=True):
        ids = tokenizer(window.text, add_special_tokens=False)["input_ids"]
        given = torch.tensor([[tokenizer.bos_token_id, *ids]])
        taken = model(given).logits[0, :-1].softmax(-1)[:, first_new:].sum(-1)
        old = torch.tensor(ids) < first_new
        masses.append(taken[old].sum().item())
        counts.append(int(old.sum()))
        assert record.old_tokens == counts[-1]
        assert record.new_mass == pytest.approx(masses[-1], rel=1e-4)
    score = next(s for s in evaluation.scores if s.metric == "new token mass")
    assert score.value == pytest.approx(sum(masses) / sum(counts), rel=1e-4)
    assert 0 < score.low <= score.value <= score.high < 1
    evaluation.write(tmp_path)
    assert load_records(tmp_path / "records.jsonl") == evaluation.records
    table = comparison_table(comparison({"m": evaluation.records}, 50, 0), ["m"])
    assert f"new token mass en    | {score.value:.3f} [" in table


def test_compare_writes_table_and_records(pair, tmp_path) -> None:
    text, output = {"ru": [TEXT / "ru"]}, tmp_path / "out"
    comparison = evaluate([pair["base"], pair["instruct"]], text, str(output), SETTINGS)
    table = comparison.table
    assert str(comparison) == f"{table}\n\nall scores and records: {output}"
    assert table.splitlines()[1].startswith("base ")
    assert table.splitlines()[1].rstrip().endswith("-")  # a base model cannot be asked
    assert (tmp_path / "out" / "table.txt").read_text() == table + "\n"
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert all(
        {"value", "low", "high", "count", "unit"} <= score.keys() for score in scores["instruct"]
    )


def test_names_in_the_table() -> None:
    assert short_names(["a/base", "b/instruct"]) == ["base", "instruct"]
    assert short_names(["a/model", "b/model"]) == ["a/model", "b/model"]
    assert short_names(["a/model", "a/model"]) == ["a/model", "a/model (2)"]
    assert short_names(["m", "m", "m (2)"]) == ["m", "m (3)", "m (2)"]
    assert short_names(["a/model@http://localhost:8000/v1", "b"]) == ["model", "b"]


def test_the_table_has_a_block_for_each_language() -> None:
    """With every measure, as a run ends: narrow enough for a terminal."""

    def scores(value: float) -> list[Score]:
        measures = [("symbols per token", None), ("bits per byte", None), ("exact match", None)]
        measures += [("exact match", "copy_sentence"), ("exact match", "copy_paragraph")]
        measures += [("answer bits per byte", None)]
        return [
            Score(metric, code, task, "share", value, 0, 1, 9)
            for metric, task in measures
            for code in ("en", "ru")
        ]

    table = text_table({"original instruct": scores(1.0), "mine": scores(0.25)[:2]})
    russian, english = (block.splitlines() for block in table.split("\n\n"))
    titles = "symbols/token bits/byte copy copy paragraph exact match answer bits/byte"
    for (head, original, mine), code in ((russian, "ru"), (english, "en")):
        assert head.split() == [code, *titles.split()]
        assert original.split() == ["original", "instruct", *["1.000"] * 6]
        assert mine.split() == ["mine", "0.250", *["-"] * 5]
        assert len(head) == len(original) == len(mine) < 100
    assert text_table({"mine": []}) == ""


def test_heldout_text_is_read_in_a_fixed_order(pair) -> None:
    text = {"ru": [TEXT / "ru"]}
    first, again = (Material.of(text, SETTINGS).windows["ru"] for _ in range(2))
    assert first == again
    assert first[0].id.split("#")[0] in {d.id for d in read_documents([TEXT / "ru"])}


def test_the_context_is_found_under_every_name(tmp_path, byte_level) -> None:
    """GPT-2 calls it n_positions, and a model that says nothing has its class's default."""
    for folder, config in (
        ("gpt2", GPT2Config(vocab_size=500, n_positions=32, n_embd=16, n_layer=1, n_head=2)),
        ("llama", LlamaConfig(vocab_size=500, max_position_embeddings=77)),
    ):
        config.save_pretrained(tmp_path / folder)
        PreTrainedTokenizerFast(tokenizer_object=byte_level).save_pretrained(tmp_path / folder)
    sizes = [context_of(Description(tmp_path / name)) for name in ("gpt2", "llama")]
    assert sizes == [32, 77]
