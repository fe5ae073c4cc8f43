"""Benchmark tasks: what models are asked, how answers are scored, and what is refused."""

import json
import math
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_data import ITEMS, write_data
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from scipy.stats import binomtest
from transformers import MistralConfig, MistralForCausalLM

from lep.benchmark import backend, scoring
from lep.benchmark.backend import InMemory
from lep.benchmark.harness import Benchmark, BenchmarkRecord
from lep.benchmark.metrics import metric
from lep.benchmark.recorded import Output, Recorded
from lep.benchmark.scoring import continuation_nats
from lep.benchmark.tasks import FOLDER, groups, resolve, task_names
from lep.checkpoint.reader import Checkpoint
from lep.errors import CorpusError, LepError
from lep.evaluation import spans
from lep.evaluation.evaluate import evaluate
from lep.evaluation.measures import average, figure, measures, task_score
from lep.evaluation.records import load_records
from lep.evaluation.score import score_model
from lep.evaluation.table import comparison, comparison_table
from lep.inference.models import load_model
from lep.settings import BenchmarkSettings, EvaluateSettings
from lep.tokenizer.chat import chat_ids
from lep.transfer.initialise import initialise

LAB = Path(__file__).parent.parent / "lab" / "pair"
CHOICES = [
    "daru_rummlu",
    "daru_mmlu_ru",
    "daru_mmlu_en",
    "daru_parus",
    "daru_rcb",
    "daru_rwsd",
    "daru_ruopenbookqa",
    "daru_ruworldtree",
    "daru_rucola",
    "daru_sum_extractive",
    "rublimp",
    "arithmetic",
    "python_output",
]
WRITTEN = [
    "daru_multiq",
    "daru_use",
    "daru_sum_abstractive",
    "daru_copy_sentence_ru",
    "daru_copy_paragraph_ru",
    "daru_copy_sentence_en",
    "daru_copy_paragraph_en",
]


class Fake(LM):
    """Answers by a function of the request."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def loglikelihood(self, requests, **_):
        return [self.answer(request) for request in requests]

    generate_until = loglikelihood

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return "\n".join(message["content"] for message in chat_history)

    @property
    def tokenizer_name(self):
        return "fake"

    def written(self, text):
        return len(text)


def right(request):
    """What a model that knows everything would say."""
    doc = request.doc
    if request.request_type == "generate_until":
        if "form" in doc:
            return doc["answer"].split(",")[0] if doc["form"] == "text" else doc["answer"]
        return doc["answers"][0] if "answers" in doc else doc.get("summary", doc["text"])
    good = request.idx in doc.get("relevant", [doc.get("label", 0)])
    return (-1.0 if good else -1e6), good


def guess(request):
    number = random.Random(str(request.args)).random()
    return -1000 * number, False


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "sets")


@pytest.fixture(scope="session")
def lab_instruct() -> Checkpoint:
    return Checkpoint(LAB / "instruct")


def run(checkpoint, names, model, folder, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(checkpoint, names, BenchmarkSettings(**settings))
    return list(benchmark.records(lambda generates, chat: model, folder))


def by_task(records) -> dict:
    tasks = {}
    for m in measures(records):
        tasks.setdefault(m.task, []).append(m)
    return {task: task_score(parts) for task, parts in tasks.items()}


def test_the_groups_hold_the_paper_s_seventeen_tasks() -> None:
    assert [title for title, _ in groups().values()] == [
        "DaruMMLU",
        "DaruMERA",
        "DaruSum",
        "DaruCopy en",
        "DaruCopy ru",
    ]
    assert len(resolve(["darumeru"])) == 17
    assert sorted([*resolve(["darumeru"]), "rublimp", "arithmetic", "python_output"]) == sorted(
        [*CHOICES, *WRITTEN]
    )
    assert set(task_names()) == {*CHOICES, *WRITTEN}


def test_an_oracle_scores_all_and_prompts_end_where_the_answer_begins(
    lab_instruct, data, tmp_path
) -> None:
    records = run(
        lab_instruct, [*CHOICES, *WRITTEN], Fake(right), tmp_path, data=str(data), limit=ITEMS
    )
    scores = {task: figure(m, 10, 0).value for task, m in by_task(records).items()}
    exam = scores.pop("daru_use")
    assert scores == dict.fromkeys(scores, 1.0)
    assert len(scores) == 19
    assert exam == pytest.approx(
        6 * (1 + 3 + 1) / 3 / 34
    )  # of each variant two texts, two matchings, two choices
    prefixes = {"daru_mmlu_en": "Answer:", "daru_sum_extractive": "Самое важное:"}
    for record in records:
        if record.chat and record.choices:
            assert record.prompt.endswith(prefixes.get(record.task, "Ответ:"))
            assert record.shots == 0
            assert all(choice.startswith(" ") for choice in record.choices)
    copies = [r for r in records if r.task == "daru_copy_sentence_ru"]
    assert copies
    assert all(r.output == r.target and r.target in r.prompt for r in copies)


def chance(task: str, docs: list, draws: int) -> np.ndarray:
    """Scores of random answers, by the task's own metrics but without its code."""
    rng = np.random.default_rng(1)
    scores = []
    for _ in range(draws):
        items: dict[str, list] = {}
        for doc in docs:
            if task == "daru_sum_extractive":
                drawn = rng.permutation(len(doc["sentences"]))[: len(doc["relevant"])]
                items.setdefault("r_precision", []).append(
                    (doc["unit"], len({*drawn} & {*doc["relevant"]}) / len(drawn))
                )
                continue
            width = {
                "daru_parus": 2,
                "daru_rcb": 3,
                "daru_rwsd": 2,
                "daru_rucola": 2,
                "rublimp": 2,
            }.get(task, 4)
            label = doc.get("label", 0)
            choice = int(rng.integers(width))
            name = "both_orders" if task == "daru_parus" else "acc"
            items.setdefault(name, []).append((doc["unit"], float(choice == label)))
            second = {
                "daru_rcb": "f1_macro",
                "daru_ruopenbookqa": "f1_macro",
                "daru_ruworldtree": "f1_macro",
                "daru_rucola": "mcc",
            }
            if task in second:
                items.setdefault(second[task], []).append((doc["unit"], [label, choice]))
        scores.append(np.mean([metric(name)(each) for name, each in items.items()]))
    return np.array(scores)


def check_chance(checkpoint, names, data, folder, limit) -> None:
    benchmark = Benchmark(checkpoint, names, BenchmarkSettings(data=str(data), limit=limit))
    docs = {name: list(task.eval_docs) for name, task in benchmark.tasks.items()}
    chosen = {
        name: [docs[name][i] for i in benchmark.chosen(docs[name]) or range(len(docs[name]))]
        for name in names
    }
    scores = by_task(benchmark.records(lambda *_: Fake(guess), folder))
    for name in names:
        low, high = np.percentile(chance(name, chosen[name], 600), [0.5, 99.5])
        value = figure(scores[name], 10, 0).value
        assert low <= value <= high, (name, low, value, high)


@pytest.mark.slow
def test_random_likelihoods_score_as_chance_does(lab_instruct, data, tmp_path) -> None:
    check_chance(lab_instruct, CHOICES, data, tmp_path, limit=200)


def test_base_models_get_five_examples_of_the_prompt_split(data, tmp_path) -> None:
    records = run(
        Checkpoint(LAB / "base"),
        ["daru_parus", "daru_mmlu_ru"],
        Fake(guess),
        tmp_path,
        data=str(data),
    )
    assert {r.shots for r in records} == {5}
    assert not any(r.chat for r in records)
    prompt = next(r.prompt for r in records if r.task == "daru_parus")
    assert prompt.count("Ответ:") == 6
    first = json.loads((data / "parus" / "prompt.jsonl").read_text().splitlines()[0])
    assert prompt.startswith(first["inputs"]["premise"])
    examples = prompt.split("Ответ:")[:5]
    # none again with its options turned
    assert len({question.strip().partition(" ")[2] for question in examples}) == 5
    logic = next(r.prompt for r in records if r.task == "daru_mmlu_ru")
    # three of its subject and the question
    assert logic.count("Тема: логика") + logic.count("Тема: право") == 4
    assert "логика" not in logic or "право" not in logic


def test_choices_are_scored_at_the_next_token(data) -> None:
    """Of the prompt as it is asked: each choice of a task is one token, and another one."""
    model, checkpoint = load_model(LAB / "instruct")
    backend = InMemory(model, checkpoint, 4)
    names = [name for name in CHOICES if name.startswith("daru") and name != "daru_sum_extractive"]
    for name, task in Benchmark(checkpoint, names, BenchmarkSettings(data=str(data))).tasks.items():
        begun = f"<s><|user|> Да?<|end|><|assistant|>{task.config.gen_prefix}"
        pairs = [backend._encode_pair(begun, " " + choice) for choice in task.config.doc_to_choice]
        assert {len(continuation) for _, continuation in pairs} == {1}, name
        assert len({tuple(continuation) for _, continuation in pairs}) == len(pairs)
        assert len({tuple(context) for context, _ in pairs}) == 1


GOLD = {  # raw record -> what its right choice says
    "parus": lambda r: r["inputs"][f"choice{r['outputs']}"],
    "rcb": lambda r: {
        "1": "следует из текста",
        "2": "противоречит тексту",
        "3": "Ни то, ни другое",
    }[r["outputs"]],
    "rwsd": lambda r: r["outputs"],
    "rummlu": lambda r: r["inputs"][f"option_{r['outputs'].lower()}"],
    "ruopenbookqa": lambda r: r["inputs"][f"option_{r['outputs'].lower()}"],
    "ruworldtree": lambda r: r["inputs"][f"option_{r['outputs'].lower()}"],
    "mmlu_ru": lambda r: r["choices_ru"][r["answer"]],
    "mmlu_en": lambda r: r["choices_en"][r["answer"]],
}


@pytest.mark.parametrize("name", sorted(GOLD))
def test_the_right_choice_is_the_one_that_the_record_says(lab_instruct, data, name) -> None:
    """From the raw file to the line of the prompt that the right choice stands for."""
    task = Benchmark(lab_instruct, [f"daru_{name}"], BenchmarkSettings(data=str(data))).tasks[
        f"daru_{name}"
    ]
    file = data / ("mmlu_ru" if "mmlu_" in name else name) / "test.jsonl"
    raw = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    docs = list(task.eval_docs)
    if name == "parus":  # once in each order of the options
        raw = [record for record in raw for _ in range(2)]
    seen = []
    for doc, record in zip(docs, raw, strict=True):
        choice = task.doc_to_choice(doc)[task.doc_to_target(doc)]
        (line,) = [
            line for line in task.doc_to_text(doc).splitlines() if line.startswith(f"{choice}. ")
        ]
        assert GOLD[name](record) in line
        seen.append(choice)
    assert len(set(seen)) == len(task.config.doc_to_choice)
    if name == "parus":
        assert all(a != b for a, b in zip(seen[::2], seen[1::2], strict=True))


def test_rucola_and_the_relevant_sentences_are_the_record_s(lab_instruct, data) -> None:
    names = ["daru_rucola", "daru_sum_extractive"]
    rucola, extractive = Benchmark(
        lab_instruct, names, BenchmarkSettings(data=str(data))
    ).tasks.values()
    lines = (data / "rucola" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    for doc, line in zip(rucola.eval_docs, lines, strict=True):
        assert rucola.doc_to_choice(doc)[rucola.doc_to_target(doc)] == str(
            json.loads(line)["label"]
        )
        assert "0 — нет, 1 — да" in rucola.doc_to_text(doc)
    lines = (data / "daru_treeway_eval" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    for doc, line in zip(extractive.eval_docs, lines, strict=True):
        chosen = [extractive.doc_to_choice(doc)[i] for i in extractive.doc_to_target(doc)]
        assert chosen == json.loads(line)["summary_sents"]


def test_conversations_begin_as_their_template_does(pair, monkeypatch) -> None:
    """A template without the BOS token is asked without it, although other texts begin with it."""
    model, checkpoint = load_model(pair["instruct"])
    bare = checkpoint.tokenizer.chat_template.replace("{{ bos_token }}", "")
    monkeypatch.setattr(checkpoint.tokenizer, "chat_template", bare)
    backend = InMemory(model, checkpoint, 2)
    messages = [{"role": "user", "content": "Да"}]
    text = backend.apply_chat_template(messages)
    assert not text.startswith("<s>")
    start = checkpoint.tokenizer.bos_token_id
    for chat, first in ((True, []), (False, [start])):
        backend.answering(True, chat)
        ids = backend.tok_batch_encode([text])[0][0].tolist()
        assert ids == first + chat_ids(checkpoint.tokenizer, messages, ask=True)
        seen = []
        monkeypatch.setattr(
            backend,
            "_loglikelihood_tokens",
            lambda r, *_, seen=seen, **__: seen.extend(r) or [(0, True)],
        )
        backend.loglikelihood([Instance("loglikelihood", {}, (text, " Нет"), 0)])
        assert seen[0][1] == ids


def test_likelihoods_in_memory_equal_one_token_at_a_time(lab_instruct, data, tmp_path) -> None:
    model, checkpoint = load_model(LAB / "instruct")
    records = run(
        checkpoint, ["daru_rwsd"], InMemory(model, checkpoint, 8), tmp_path, data=str(data), limit=4
    )
    for record in records:
        for choice, nats in record.choices.items():
            context = checkpoint.tokenizer.encode(record.prompt, add_special_tokens=False)
            whole = checkpoint.tokenizer.encode(record.prompt + choice, add_special_tokens=False)
            logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            expected = sum(logits[i - 1, whole[i]].item() for i in range(len(context), len(whole)))
            assert nats == pytest.approx(expected, rel=1e-4)
            # one beginning, not two
            assert whole[0] == checkpoint.tokenizer.bos_token_id != whole[1]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_what_questions_share_is_read_once(pair, batch_size, monkeypatch) -> None:
    """Against lm-evaluation-harness's scoring, with continuations of one and of several tokens."""
    model, checkpoint = load_model(pair["base"])
    rng = random.Random(0)

    def some(n):
        return [rng.randrange(300) for _ in range(n)]

    head, other = some(40), some(35)
    contexts = (
        [head + some(n) for n in (3, 9, 1, 4, 5)]
        + [other + some(2) for _ in range(4)]
        + [some(7), some(50), head]
    )
    requests = [(c, some(n)) for c in contexts for n in (1, 1, 4)]
    plain = HFLM(pretrained=model, tokenizer=checkpoint.tokenizer, batch_size=1, max_length=128)
    expected = plain._loglikelihood_tokens(
        [(None, *request) for request in requests], disable_tqdm=True
    )
    widths, real = [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda *a, **k: widths.append(k["input_ids"].shape[1]) or real(*a, **k)
    )
    answers = sorted(continuation_nats(model, requests, batch_size))
    assert {len(head) - 1, len(other)} <= set(widths)  # each is read by itself, once
    assert [number for number, *_ in answers] == list(range(len(requests)))
    assert [nats for _, nats, _ in answers] == pytest.approx(
        [nats for nats, _ in expected], rel=1e-4
    )
    assert [greedy for *_, greedy in answers] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("shared", [scoring.SHARED, ()])
def test_models_with_other_caches(shared, monkeypatch) -> None:
    """Mistral's keeps a window. An unknown cache is not shared, and questions are read whole."""
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=8,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(8)
    rng = random.Random(1)
    head = [rng.randrange(64) for _ in range(45)]
    requests = [
        (head + [rng.randrange(64) for _ in range(n)], [n, n + 1]) for n in (1, 3, 9, 4, 7, 12)
    ]
    expected = []
    for context, continuation in requests:
        logits = model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
        expected.append(
            sum(logits[len(context) - 1 + i, token].item() for i, token in enumerate(continuation))
        )
    monkeypatch.setattr(scoring, "SHARED", shared)
    widths, real = [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda *a, **k: widths.append(k["input_ids"].shape[1]) or real(*a, **k)
    )
    answers = sorted(continuation_nats(model, requests, 3))
    assert [nats for _, nats, _ in answers] == pytest.approx(expected, rel=1e-4)
    assert widths[0] == 45  # what all have in common
    assert max(widths[1:]) == (12 + 1 if shared else 45 + 12 + 1)
    assert len(widths) == 1 + 2  # six in batches of three
    monkeypatch.setattr(scoring, "MOST_CACHE" if shared else "MOST_LOGITS", 1)  # no room for two
    widths.clear()
    assert [nats for _, nats, _ in sorted(continuation_nats(model, requests, 3))] == pytest.approx(
        expected, rel=1e-4
    )
    assert len(widths) == 1 + 6


def test_a_perfect_copy_of_a_base_model_is_perfect() -> None:
    from lep.benchmark.tasks import functions

    doc = {"unit": "1", "text": "Снег идёт весь день.", "tokenizer": str(LAB / "base")}
    tokenizer = Checkpoint(LAB / "base").tokenizer
    for before in ("", " ", "\n", "\n\n "):
        text = before + doc["text"]
        output = Output(text, len(tokenizer(text, add_special_tokens=False)["input_ids"]))
        assert functions.copy_length(doc, [output])["length_ratio"] == ("1", 1.0)
    assert functions.copy_length(doc, [Output(doc["text"][:9], 4)])["length_ratio"][1] < 0.5
    assert functions.copy_length(doc, [Output("  ", 3)])["length_ratio"][1] == 0


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}"
            "{{ raise_exception('') if m.role == 'assistant' else m.content }}{% endfor %}",
            "cannot",
        ),
        (
            "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
            "cannot|changes how an answer begins",
        ),
    ],
)
def test_templates_that_cannot_begin_an_answer_are_refused(data, template, message) -> None:
    checkpoint = Checkpoint(LAB / "instruct")
    checkpoint.tokenizer.chat_template = template
    with pytest.raises(LepError, match=message):
        Benchmark(checkpoint, ["daru_rwsd"], BenchmarkSettings(data=str(data)))
    Benchmark(checkpoint, ["arithmetic"], BenchmarkSettings())  # is not asked as a chat


def test_templates_are_asked_without_a_chain_of_thought(pair, data, monkeypatch) -> None:
    """When tasks are checked, in memory, and before a server scores choices."""
    model, checkpoint = load_model(pair["instruct"])
    thinks = "{% if enable_thinking is not defined %}{{ raise_exception('thinks') }}{% endif %}"
    template = thinks + checkpoint.tokenizer.chat_template
    monkeypatch.setattr(checkpoint.tokenizer, "chat_template", template)
    Benchmark(checkpoint, ["daru_rwsd"], BenchmarkSettings(data=str(data)))
    monkeypatch.setattr(backend, "_served", lambda url: {})
    server = backend.Server(checkpoint, "m", "http://localhost:1/v1").answering(False, True)
    messages = [{"role": "user", "content": "Да"}, {"role": "assistant", "content": "Ответ:"}]
    for conversation, ask in ((messages[:1], True), (messages, False)):
        texts = [
            m.apply_chat_template(conversation, ask)
            for m in (server, InMemory(model, checkpoint, 1))
        ]
        assert texts[0] == texts[1]
    assert texts[0].endswith("Ответ:")


def test_batches_change_nothing(lab_instruct, data, tmp_path) -> None:
    model, checkpoint = load_model(LAB / "instruct")
    names = ["daru_rucola", "daru_copy_sentence_ru"]
    one, many = (
        run(
            checkpoint,
            names,
            InMemory(model, checkpoint, size),
            tmp_path / str(size),
            data=str(data),
            limit=8,
        )
        for size in (1, 8)
    )
    assert [r.scores for r in one] == [r.scores for r in many]
    assert [r.output for r in one] == [r.output for r in many]


def test_tokens_of_an_answer_are_counted_as_written(lab_instruct, data, tmp_path) -> None:
    model, checkpoint = load_model(LAB / "instruct")
    records = run(
        checkpoint,
        ["daru_copy_sentence_en"],
        InMemory(model, checkpoint, 3),
        tmp_path,
        data=str(data),
        limit=6,
    )
    for record in records:
        ids = checkpoint.tokenizer.encode(record.output, add_special_tokens=False)
        assert 0.8 <= record.tokens / len(ids) <= 1.25  # greedy writing need not be the shortest


def test_items_longer_than_the_context_are_counted_and_left_out(
    lab_instruct, data, tmp_path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    file = tmp_path / "data" / "rwsd" / "test.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    long = json.loads(lines[0])
    long["inputs"]["text"] = "слово " * 2000
    file.write_text(
        "\n".join([json.dumps(long, ensure_ascii=False), *lines[1:]]) + "\n", encoding="utf-8"
    )
    records = run(
        lab_instruct, ["daru_rwsd"], Fake(right), tmp_path / "a", data=str(tmp_path / "data")
    )
    assert [r.too_long for r in records] == [True] + [None] * (ITEMS - 1)
    (measure,) = measures(records)
    assert (len(measure.values), measure.left_out) == (ITEMS - 1, 1)
    rows = comparison({"m": records}, 10, 0)
    assert rows[-1].left_out == {"m": 1}
    nothing = [r for r in records if r.too_long]
    assert figure(measures(nothing)[0], 10, 0) is None


def test_a_limit_takes_whole_units_the_same_for_every_model(lab_instruct, data) -> None:
    benchmark = Benchmark(lab_instruct, ["daru_parus"], BenchmarkSettings(data=str(data), limit=7))
    docs = list(benchmark.tasks["daru_parus"].eval_docs)
    taken = [docs[i]["unit"] for i in benchmark.chosen(docs)]
    assert len(taken) == 8
    assert all(taken.count(unit) == 2 for unit in taken)
    other = Benchmark(
        Checkpoint(LAB / "base"), ["daru_parus"], BenchmarkSettings(data=str(data), limit=7)
    )
    assert other.chosen(docs) == benchmark.chosen(docs) is not None


def test_answers_are_kept_as_they_come_and_not_asked_for_again(
    lab_instruct, data, tmp_path
) -> None:
    def tired(request):
        seen.append(request.args)
        if len(seen) > 30:
            raise KeyboardInterrupt
        return guess(request)

    class Slow(Fake):
        def loglikelihood(self, requests, **_):
            for request in requests:
                answer = self.answer(request)
                self.cache_hook.add_partial("loglikelihood", request.args, answer)
                yield answer

    seen: list = []
    with pytest.raises(KeyboardInterrupt):
        run(lab_instruct, ["daru_rcb"], Slow(tired), tmp_path / "a", data=str(data))
    kept = tmp_path / "a" / "daru_rcb.jsonl"
    assert len(kept.read_text().splitlines()) == 30
    with kept.open("a") as file:
        file.write('["половина строки')
    kept.write_bytes(kept.read_bytes()[:-1])  # what a kill leaves: half a letter
    before = len(seen)
    again: list = []
    records = run(
        lab_instruct,
        ["daru_rcb"],
        Slow(lambda r: again.append(r.args) or guess(r)),
        tmp_path / "a",
        data=str(data),
    )
    assert len(again) == ITEMS * 3 - (before - 1)
    # the half line is gone, and all answers are there
    assert records == run(lab_instruct, ["daru_rcb"], Fake(None), tmp_path / "a", data=str(data))
    assert records == run(lab_instruct, ["daru_rcb"], Fake(guess), tmp_path / "b", data=str(data))


def scored(task, item, value, *, unit="", metric="acc"):
    """An item of a task with its score; without a value it is longer than the context."""
    unit = unit or item
    return BenchmarkRecord(
        task=task,
        language="ru",
        id=item,
        unit=unit,
        chat=False,
        shots=0,
        prompt="",
        target="",
        too_long=True if value is None else None,
        scores=None if value is None else {metric: (unit, value)},
    )


def test_differences_are_paired_over_common_units() -> None:
    rng = random.Random(0)
    base = [float(rng.random() < 0.5) for _ in range(400)]
    first = [scored("daru_rwsd", str(i), value) for i, value in enumerate(base)]
    second = [
        scored("daru_rwsd", str(i), value if i % 20 else 1 - value) for i, value in enumerate(base)
    ]
    rows = {row.title: row for row in comparison({"a": first, "b": second}, 400, 0)}
    row = rows["daru_rwsd"]
    alone, paired = row.figures["b"].estimate(), row.differences["b"].estimate()
    assert paired.high - paired.low < 0.6 * (
        alone.high - alone.low
    )  # 95% of the answers are the same
    assert row.differences["b"].value == pytest.approx(
        row.figures["b"].value - row.figures["a"].value
    )
    one, two = measures(first)[0], measures(second[:100])[0]
    assert figure(two, 50, 0, one).count == 100


def test_the_average_over_tasks_counts_each_task_the_same() -> None:
    records = [scored("daru_rwsd", str(i), 1.0) for i in range(10)]
    records += [scored("daru_rummlu", str(i), float(i % 2)) for i in range(200)]
    figures = [figure(m, 300, 0) for m in measures(records)]
    mean = average(figures).estimate()
    assert mean.value == 0.75
    certain = 1 - binomtest(10, 10).proportion_ci(method="wilson").low  # of ten right of ten
    second = figures[1].estimate()
    below, above = math.hypot(certain, 0.5 - second.low) / 2, (second.high - 0.5) / 2
    assert (mean.value - mean.low, mean.high - mean.value) == pytest.approx((below, above))


def test_an_average_with_a_single_item_has_no_interval() -> None:
    """It is as little known as that task, however sure the others are."""
    records = [scored("daru_rwsd", "0", 0.5)]
    records += [scored("daru_rummlu", str(i), float(i % 2)) for i in range(200)]
    mean = average([figure(m, 300, 0) for m in measures(records)]).estimate()
    assert mean.value == 0.5
    assert not mean.has_interval


def test_evaluate_runs_the_benchmark_of_a_recipe(pair, data) -> None:
    settings = EvaluateSettings(
        tasks=[], bootstrap=20, benchmark={"tasks": ["daru_rwsd"], "data": str(data), "limit": 5}
    )
    evaluation = score_model(pair["instruct"], {}, settings)
    assert {(s.task, s.count) for s in evaluation.scores} == {("daru_rwsd", 5)}
    assert all(r.prompt and r.choices and r.scores for r in evaluation.records)


def test_compare_prints_groups_and_differences_and_goes_on_after_a_fault(
    data, tmp_path, monkeypatch
) -> None:
    settings = EvaluateSettings(
        bootstrap=50,
        benchmark={"tasks": ["daru_rwsd", "daru_rcb", "arithmetic"], "data": str(data), "limit": 6},
    )
    models = [str(LAB / "instruct"), str(LAB / "base")]
    batches: list = []
    real = InMemory.loglikelihood

    def stop(self, requests, **kwargs):
        batches.append(len(requests))
        if len(batches) == 5:
            raise KeyboardInterrupt
        return real(self, requests, **kwargs)

    monkeypatch.setattr(InMemory, "loglikelihood", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, {}, tmp_path / "out", settings)
    table = evaluate(models, {}, tmp_path / "out", settings).table
    assert len(batches) == 7  # three tasks of two models, one of them twice
    lines = {line.split(" | ")[0].strip(): line for line in table.splitlines()}
    assert {
        "Micro-Avg (2 of 17 tasks)",
        "DaruMERA (2 of 8)",
        "daru_rwsd",
        "arithmetic",
    } <= lines.keys()
    assert lines["daru_rcb"].count("[") == 3
    assert table == evaluate(models, {}, tmp_path / "whole", settings).table
    assert len(load_records(tmp_path / "out" / "records.jsonl")) == 2 * 18
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "comparison.json",
        "records.jsonl",
        "scores.json",
        "table.txt",
    ]


def test_prompts_show_what_an_adapted_model_still_does(pair, tmp_path, monkeypatch) -> None:
    initialise(pair["instruct"], pair["tokenizer"], tmp_path / "adapted")
    real = spans.answers

    def some_ended(model, tokenizer, *arguments, **options):
        new = len(tokenizer) - 1  # of the adapted vocabulary
        text = "да" if len(tokenizer) == len(Checkpoint(pair["instruct"]).tokenizer) else "нет"
        for batch in real(model, tokenizer, *arguments, **options):
            yield [
                replace(a, finished=a.index != 1, text="" if a.index == 2 else text, ids=[5, new])
                for a in batch
            ]

    monkeypatch.setattr(spans, "answers", some_ended)
    prompts = tmp_path / "prompts.jsonl"
    questions = [
        {"messages": [{"role": "user", "content": text}]}
        for text in ("Где дом?", "c d", "e f", "Снег идёт.")
    ]
    prompts.write_text("\n".join(json.dumps(each) for each in questions) + "\n")
    settings = EvaluateSettings(bootstrap=20, tasks=[], prompts=str(prompts), answer_tokens=8)
    models = [str(pair["instruct"]), str(pair["instruct"]), str(tmp_path / "adapted")]
    evaluate(models, {}, tmp_path / "out", settings)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    first, second, third = ({s["metric"]: s for s in each} for each in scores.values())
    assert first == second
    assert first["new tokens"]["value"] == 0
    assert third["new tokens"]["value"] == 0.5
    assert (
        first["original answers bits per byte"]["count"]
        == third["original answers bits per byte"]["count"]
        == 2
    )
    assert first["ends its turn"]["value"] == 0.75
    adapted = load_records(tmp_path / "out" / "records.jsonl")[-4:]
    assert [record.answer for record in adapted] == ["нет", "нет", "", "нет"]
    assert [record.original_answer for record in adapted] == ["да", "", "", "да"]
    with pytest.raises(LepError, match="name the original instruct model's folder first"):
        evaluate([str(pair["base"]), str(pair["instruct"])], {}, tmp_path / "other", settings)


def test_incomplete_units_are_left_out() -> None:
    def points(unit, item, value=1):
        return scored("daru_use", item, value, unit=unit, metric="grade")

    def order(unit, item, value):
        return scored("daru_parus", item, value, unit=unit, metric="both_orders")

    exam = [*(points("v", str(i)) for i in range(4)), points("w", "9")]
    shorter = [points("v", "0", None), *exam[1:]]
    rows = {row.title: row for row in comparison({"a": shorter, "b": exam}, 20, 0)}
    assert rows["daru_use"].figures["b"].value == pytest.approx((4 / 34 + 1 / 34) / 2)
    assert rows["daru_use"].figures["a"].value == pytest.approx(1 / 34)  # not (3 + 1) / 34 / 2
    assert rows["daru_use"].differences["b"].value == 0
    assert rows["daru_use"].differences["b"].count == 1
    assert rows["daru_use"].left_out == {"a": 4}
    assert "daru_use: 4 of a" in comparison_table([rows["daru_use"]], ["a", "b"])
    # one task of a variant is no whole one
    assert figure(measures(exam[-1:])[0], 10, 0).value == pytest.approx(1 / 34)
    pairs = [order("1", "1/0", 1.0), order("1", "1/1", None)]
    pairs += [order("2", "2/0", 1.0), order("2", "2/1", 0.0)]
    (measure,) = measures(pairs)
    assert figure(measure, 10, 0).value == 0  # half of the first pair says nothing
    assert figure(measure, 10, 0).count == 1


def test_speed_is_measured_on_the_same_text(pair, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(f"Это {i} предложение о снеге и о зиме." * 4 for i in range(4)),
        encoding="utf-8",
    )
    settings = EvaluateSettings(
        bootstrap=20, tasks=[], speed=2, window_characters=150, characters=600
    )
    table = str(evaluate([pair["instruct"]], {"ru": [text]}, tmp_path / "out", settings))
    assert all(
        name in table
        for name in (
            "prefill ru",
            "generation ru",
            "time to first token ru",
            "context ru",
            "KV cache ru",
        )
    )
    records = load_records(tmp_path / "out" / "records.jsonl")
    speed = [record for record in records if record.kind == "speed"]
    assert len(speed) == 2
    config = json.loads((pair["instruct"] / "config.json").read_text())
    heads, size = (
        config["num_key_value_heads"],
        config["hidden_size"] // config["num_attention_heads"],
    )
    for record in speed:
        values = 2 * config["num_hidden_layers"] * heads * size * (record.tokens + 1)
        assert record.cache_bytes == values * 4  # float32


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["daru_rucolla"], r"did you mean 'daru_rucola'\?"),
        (["qwertyuiop"], "the valid ones are .*daru_rucola.*copy_sentence"),
    ],
)
def test_unknown_tasks_are_refused_with_the_nearest(names, message) -> None:
    with pytest.raises(LepError, match=message):
        resolve(names)


def test_what_data_lack_is_said(lab_instruct, data, tmp_path) -> None:
    with pytest.raises(CorpusError, match=r"rwsd has no test\.jsonl"):
        Benchmark(lab_instruct, ["daru_rwsd"], BenchmarkSettings(data=str(tmp_path)))
    folder = tmp_path / "rcb"
    shutil.copytree(data / "rcb", folder)
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    broken = json.loads(lines[1])
    del broken["inputs"]["hypothesis"]
    (folder / "test.jsonl").write_text(
        "\n".join([lines[0], json.dumps(broken)]) + "\n", encoding="utf-8"
    )
    with pytest.raises(
        CorpusError,
        match="record 2 of rcb/test has no field 'hypothesis'; it has inputs, outputs, meta",
    ):
        Benchmark(lab_instruct, ["daru_rcb"], BenchmarkSettings(data=str(tmp_path)))
    with pytest.raises(
        CorpusError, match=r"cannot be read from the hub .* give --data FOLDER with rcb/test\.jsonl"
    ):
        Benchmark(lab_instruct, ["daru_rcb"], BenchmarkSettings())


def test_data_sets_with_scripts_are_taken_as_the_hub_converted_them(monkeypatch) -> None:
    from lep.benchmark.tasks import data

    calls = []

    def hub(path, name, split, revision=None):
        calls.append((path, name, split, revision))
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found rucola.py")
        return Dataset.from_list([{"sentence": "Снег идёт.", "label": 1}])

    monkeypatch.setattr(data, "load_dataset", hub)
    splits = data.rucola()
    assert splits["validation"][0]["sentence"] == "Снег идёт."
    assert calls[1] == ("RussianNLP/rucola", "main", "validation", "refs/convert/parquet")


def test_base_models_are_not_asked_as_chat_models() -> None:
    with pytest.raises(LepError, match="has no chat template"):
        Benchmark(Checkpoint(LAB / "base"), ["arithmetic"], BenchmarkSettings(chat=True))


def test_nothing_to_measure_is_said(pair, tmp_path) -> None:
    with pytest.raises(LepError, match="nothing to measure"):
        evaluate([str(pair["base"])], {}, tmp_path / "out", EvaluateSettings())
    assert not (tmp_path / "out").exists()


def test_recorded_answers_know_their_tokens(tmp_path) -> None:
    class Request:
        args = ("q", {"max_gen_toks": 4})

    recorded = Recorded(Fake(lambda _: "да"), len, 100, tmp_path / "a.jsonl")
    (output,) = recorded.generate_until([Request()])
    recorded.close()
    assert (output, output.tokens) == ("да", None)
    assert Output("да", 3).tokens == 3


@pytest.mark.slow
def test_the_tasks_serve_plain_lm_eval(data, tmp_path) -> None:
    """As `docs/evaluation.md` tells a user of lm-evaluation-harness."""
    subprocess.run(
        [
            str(Path(sys.executable).with_name("lm_eval")),
            "run",
            "--model",
            "hf",
            "--model_args",
            f"pretrained={LAB / 'instruct'},dtype=float32",
            "--tasks",
            "daru_mera",
            "--include_path",
            str(FOLDER),
            "--metadata",
            json.dumps({"data": str(data)}),
            "--limit",
            "4",
            "--apply_chat_template",
            "--output_path",
            str(tmp_path),
            "--device",
            "cpu",
        ],
        check=True,
        capture_output=True,
    )
    results = json.loads(next(tmp_path.rglob("results*.json")).read_text())["results"]
    assert {"daru_rucola", "daru_use", "daru_parus"} <= results.keys()
    assert 0 <= results["daru_rucola"]["acc,none"] <= 1
