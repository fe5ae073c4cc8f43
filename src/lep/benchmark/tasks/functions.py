"""Data of the tasks beside this file, and what becomes of a model's answers.

Records are read from the hub, or from FOLDER/NAME/SPLIT.jsonl (or .jsonl.zst) with the same fields when the metadata
name a folder as `data`. Each becomes one row or several, with an `id`, and the `unit` that scores are averaged over.
"""

import operator
import random
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, get_dataset_config_names, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from lm_eval.api.samplers import ContextSampler

from lep.benchmark.metrics import (
    METRICS,
    Metric,
    copied,
    exam_points,
    r_precision,
    rouge_recall,
    token_f1,
    token_ratio,
    words,
)
from lep.corpus.read import read_records
from lep.errors import CorpusError
from lep.tokenizer.load import load_tokenizer

DARUMERU, MMLU, CONVERTED = "RefalMachine/darumeru", "NLPCoreTeam/mmlu_ru", "refs/convert/parquet"
HUB_FAULTS = (
    DatasetNotFoundError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    ConnectionError,
    ValueError,
    RuntimeError,
)
LETTERS = "ABCD"
Row = dict[str, Any]
Rows = Callable[[Row], Iterator[Row]]


# --- reading ---


def _read(name: str, split: str, hub: tuple[str, str | None], data: str | None) -> list[Row]:
    """The records of a split, from the folder when there is one, else from the hub."""
    if data is not None:
        files = sorted(Path(data, name).glob(f"{split}.jsonl*"))
        if not files:
            raise CorpusError(
                f"{Path(data, name)} has no {split}.jsonl: write one record a line, or leave --data out"
            )
        return [record for _, record in read_records(files[0])]
    try:
        return _from_hub(load_dataset, *hub, split=split).to_list()
    except HUB_FAULTS as error:
        local = "test" if name == "rublimp" else split
        raise _not_on_the_hub(hub[0], f"{name}/{local}", error) from error


def _configs(name: str, hub: str) -> list[str]:
    """The configurations of a data set on the hub, one for each subject or phenomenon."""
    try:
        return _from_hub(get_dataset_config_names, hub)
    except HUB_FAULTS as error:
        raise _not_on_the_hub(hub, f"{name}/test", error) from error


def _from_hub(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Data sets whose makers wrote a loading script are taken as the hub converted them; scripts are never run."""
    try:
        return call(*arguments, **options)
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        return call(*arguments, **options, revision=CONVERTED)


def _not_on_the_hub(hub: str, place: str, error: Exception) -> CorpusError:
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CorpusError(
        f"the data set {hub} cannot be read from the hub ({why}): go online, or give --data FOLDER with "
        f"{place}.jsonl in it"
    )


def _rows(name: str, split: str, records: list[Row], make: Rows) -> Dataset:
    rows = []
    for number, record in enumerate(records, start=1):
        try:
            rows += [{"id": str(number), "unit": str(number)} | row for row in make(record)]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise CorpusError(
                f"record {number} of {name}/{split} has {what}; it has {', '.join(map(str, record))}: give "
                "the fields that docs/evaluation.md lists"
            ) from error
    if not rows:
        raise CorpusError(f"{name}/{split} holds no record")
    return Dataset.from_list(rows)


def darumeru(
    name: str,
    data: str | None = None,
    tokenizer: str | None = None,
    pretrained: str | None = None,
    **_: Any,
) -> DatasetDict:
    """A data set of the collection: `inputs` to ask about, `outputs` as the right answer."""
    make = COPIES if name.startswith("cp_") else DARUMERU_ROWS[name]
    found = {
        split: _rows(name, split, _read(name, split, (DARUMERU, name), data), make)
        for split in ("test", "prompt")
    }
    if name == "parus":  # as examples, a question in one order of its options
        found["prompt"] = found["prompt"].filter(lambda row: row["id"].endswith("/0"))
    if name.startswith("cp_"):
        model = [tokenizer or pretrained or ""]
        found = {
            split: rows.add_column("tokenizer", model * len(rows)) for split, rows in found.items()
        }
    return DatasetDict(found)


def rucola(data: str | None = None, **_: Any) -> DatasetDict:
    """RuCoLA: sentences with 1 for acceptable, 0 for not."""

    def make(record: Row) -> Iterator[Row]:
        yield {"sentence": record["sentence"], "label": int(record["label"])}

    splits = ("validation", "train")
    return DatasetDict(
        {
            s: _rows("rucola", s, _read("rucola", s, ("RussianNLP/rucola", "main"), data), make)
            for s in splits
        }
    )


def mmlu(language: str, data: str | None = None, **_: Any) -> DatasetDict:
    """All subjects of MMLU in one split; `part` is the original one."""

    def make(record: Row) -> Iterator[Row]:
        options = record[f"choices_{language}"]
        yield {
            "subject": record["subject"],
            "part": record["part"],
            "question": record[f"question_{language}"],
            **dict(zip("abcd", options, strict=True)),
            "label": int(record["answer"]),
        }

    if data is not None:
        records = [
            r | {"part": part}
            for part in ("test", "dev")
            for r in _read("mmlu_ru", part, ("", None), data)
        ]
    else:
        records = [
            record | {"part": part, "subject": subject}
            for subject, part in product(_configs("mmlu_ru", MMLU), ("test", "dev"))
            for record in _read("mmlu_ru", part, (MMLU, subject), None)
        ]
    return DatasetDict({"all": _rows("mmlu_ru", "all", records, make)})


def of_test(rows: Dataset) -> Dataset:
    return rows.select([i for i, part in enumerate(rows["part"]) if part == "test"])


def of_dev(rows: Dataset) -> Dataset:
    return rows.select([i for i, part in enumerate(rows["part"]) if part == "dev"])


class SameSubject(ContextSampler):
    """The first examples of the question's own subject, as MMLU has it."""

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **_: Any) -> list[Row]:
        return [row for row in self.df if row["subject"] == eval_doc["subject"]][:n]


def gazeta(data: str | None = None, **_: Any) -> DatasetDict:
    """News articles by sentences, their summaries, and which sentences say the most."""

    def make(record: Row) -> Iterator[Row]:
        if not record["extractive_summary"]:
            raise ValueError("an empty extractive_summary")
        yield {
            "text": " ".join(record["src_sents"]),
            "sentences": list(record["src_sents"]),
            "summary": " ".join(record["summary_sents"]),
            "relevant": list(record["extractive_summary"]),
        }

    hub, splits = ("dichspace/daru_treeway_eval", None), ("test", "prompt")
    return DatasetDict(
        {
            s: _rows("daru_treeway_eval", s, _read("daru_treeway_eval", s, hub, data), make)
            for s in splits
        }
    )


def rublimp(data: str | None = None, **_: Any) -> DatasetDict:
    """RuBLiMP: a sentence and a minimal change that makes it wrong."""

    def make(record: Row) -> Iterator[Row]:
        yield {
            "pair": [record["source_sentence"], record["target_sentence"]],
            "phenomenon": record["phenomenon"],
        }

    if data is not None:
        records = _read("rublimp", "test", ("", None), data)
    else:
        hub, parts = "RussianNLP/rublimp", _configs("rublimp", "RussianNLP/rublimp")
        records = [
            record for part in parts for record in _read("rublimp", "train", (hub, part), None)
        ]
    return DatasetDict({"test": _rows("rublimp", "test", records, make)})


# --- records of the collection as rows ---


def _multiq(record: Row) -> Iterator[Row]:
    inputs = record["inputs"]
    gold = [answer["segment"] for answer in record["outputs"]]
    yield {
        "text": f"{inputs['support_text']}\n{inputs['main_text']}",
        "question": inputs["question"],
        "answers": gold,
    }


def _parus(record: Row) -> Iterator[Row]:
    inputs, unit, right = record["inputs"], str(record["meta"]["id"]), int(record["outputs"]) - 1
    options = inputs["choice1"], inputs["choice2"]
    for order in (0, 1):
        yield {
            "id": f"{unit}/{order}",
            "unit": unit,
            "premise": inputs["premise"],
            "relation": record["meta"]["task"],
            "first": options[order],
            "second": options[1 - order],
            "label": right ^ order,
        }


def _rcb(record: Row) -> Iterator[Row]:
    inputs = record["inputs"]
    yield {
        "premise": inputs["premise"],
        "hypothesis": inputs["hypothesis"],
        "label": int(record["outputs"]) - 1,
    }


def _rwsd(record: Row) -> Iterator[Row]:
    inputs = record["inputs"]
    yield {
        "text": inputs["text"],
        "thing": inputs["span1_text"],
        "word": inputs["span2_text"],
        "label": ["да", "нет"].index(str(record["outputs"]).strip().lower()),
    }


def _use(record: Row) -> Iterator[Row]:
    inputs, meta = record["inputs"], record["meta"]
    parts = [
        inputs[name] for name in ("task", "text", "additional_text", "choices") if inputs.get(name)
    ]
    if not parts:
        raise KeyError("task")
    yield {
        "unit": str(meta["variant"]),
        "question": "\n".join(map(str, parts)),
        "answer": str(record["outputs"]),
        "kind": meta["type"],
        "number": str(meta["id_task"]),
    }


def _four_options(question: str) -> Rows:
    def make(record: Row) -> Iterator[Row]:
        inputs = record["inputs"]
        options = {letter: inputs[f"option_{letter}"] for letter in LETTERS.lower()}
        yield {"question": inputs[question], **options, "label": LETTERS.index(record["outputs"])}

    return make


def COPIES(record: Row) -> Iterator[Row]:
    yield {"text": record["inputs"]["text"]}


DARUMERU_ROWS: dict[str, Rows] = {
    "multiq": _multiq,
    "parus": _parus,
    "rcb": _rcb,
    "rwsd": _rwsd,
    "use": _use,
    "rummlu": _four_options("text"),
    "ruopenbookqa": _four_options("question"),
    "ruworldtree": _four_options("question"),
}


# --- tasks that are made, not read ---

ITEMS, SHOTS = 500, 8
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def arithmetic(**_: Any) -> DatasetDict:
    """Sums, differences and products of numbers up to 99, each with three near misses; the same ones every time."""

    def make(rng: random.Random) -> tuple[str, str, list[str]]:
        sign, a, b = rng.choice("+-*"), rng.randint(2, 99), rng.randint(2, 99)
        right = _OPERATIONS[sign](a, b)
        near = rng.sample([right + step for step in (-11, -10, -9, -2, -1, 1, 2, 9, 10, 11)], 3)
        return f"{a} {sign} {b} =", str(right), [str(number) for number in near]

    return _made(make)


def python_output(**_: Any) -> DatasetDict:
    """Short Python expressions, each with its value and three others."""

    def make(rng: random.Random) -> tuple[str, str, list[str]]:
        start, stop, times = rng.randint(0, 3), rng.randint(4, 8), rng.randint(2, 4)
        word = "".join(rng.choice("abcdexyz") for _ in range(rng.randint(3, 5)))
        kinds: list[tuple[str, Any, list[Any]]] = [
            (
                f"list(range({start}, {stop}))",
                list(range(start, stop)),
                [
                    list(range(start, stop + 1)),
                    list(range(start + 1, stop)),
                    list(range(start + 1, stop + 1)),
                ],
            ),
            (
                f"[x * {times} for x in range({stop})]",
                [x * times for x in range(stop)],
                [
                    [x * times for x in range(stop + 1)],
                    [x + times for x in range(stop)],
                    list(range(stop)),
                ],
            ),
            (f"'{word}'[::-1]", word[::-1], [word, word[1:], word[::-1].upper()]),
            (
                f"'{word}'.upper() * {times}",
                word.upper() * times,
                [word.upper() * (times + 1), word * times, word.upper() * (times - 1)],
            ),
            (
                f"len('{word}') + {start}",
                len(word) + start,
                [len(word) + start + 1, len(word) + start - 1, f"{word}{start}"],
            ),
            (
                f"sorted('{word}')",
                sorted(word),
                [sorted(word, reverse=True), sorted(word.upper()), sorted(word)[1:]],
            ),
        ]
        text, value, wrong = rng.choice(kinds)
        return f">>> {text}\n", repr(value), [repr(each) for each in wrong]

    return _made(make)


def _made(make: Callable[[random.Random], tuple[str, str, list[str]]]) -> DatasetDict:
    rng, seen = random.Random(0), set()
    rows: list[Row] = []
    while len(rows) < ITEMS + SHOTS:
        question, right, wrong = make(rng)
        if question not in seen and len({right, *wrong}) == 4:
            label = rng.randrange(4)
            choices = [*wrong[:label], right, *wrong[label:]]
            rows.append(
                {
                    "id": question,
                    "unit": question,
                    "question": question,
                    "choices": choices,
                    "label": label,
                }
            )
            seen.add(question)
    return DatasetDict(
        {"prompt": Dataset.from_list(rows[:SHOTS]), "test": Dataset.from_list(rows[SHOTS:])}
    )


# --- what becomes of answers: {metric: (unit, value)} ---

Scores = dict[str, tuple[str, Any]]


def _likeliest(results: list[tuple[float, bool]]) -> int:
    return max(range(len(results)), key=lambda i: results[i][0])


def accuracy(doc: Row, results: list[tuple[float, bool]]) -> Scores:
    return {"acc": (doc["unit"], float(_likeliest(results) == doc["label"]))}


def accuracy_per_byte(doc: Row, results: list[tuple[float, bool]]) -> Scores:
    """Of choices of different lengths: the likeliest for its length, or short ones would win."""
    pairs = zip(results, doc["choices"], strict=True)
    return accuracy(
        doc, [(nats / len(choice.encode()), greedy) for (nats, greedy), choice in pairs]
    )


def accuracy_and_f1(doc: Row, results: list[tuple[float, bool]]) -> Scores:
    return accuracy(doc, results) | {"f1_macro": (doc["unit"], [doc["label"], _likeliest(results)])}


def accuracy_and_mcc(doc: Row, results: list[tuple[float, bool]]) -> Scores:
    return accuracy(doc, results) | {"mcc": (doc["unit"], [doc["label"], _likeliest(results)])}


def both_orders(doc: Row, results: list[tuple[float, bool]]) -> Scores:
    return {"both_orders": (doc["unit"], float(_likeliest(results) == doc["label"]))}


def good_first(doc: Row, results: list[tuple[float, bool]]) -> Scores:
    """Minimal pairs: the sentence that is right is the likelier one, as a whole."""
    return {"acc": (doc["unit"], float(results[0][0] > results[1][0]))}


def answer_overlap(doc: Row, results: list[str]) -> Scores:
    """Best over the right answers."""
    given = results[0].strip()
    return {
        "f1": (doc["unit"], max(token_f1(given, gold) for gold in doc["answers"])),
        "em": (doc["unit"], max(float(words(given) == words(gold)) for gold in doc["answers"])),
    }


def exam(doc: Row, results: list[str]) -> Scores:
    return {
        "grade": (
            doc["unit"],
            exam_points(doc["kind"], doc["number"], doc["answer"], results[0].strip()),
        )
    }


def summary(doc: Row, results: list[str]) -> Scores:
    return {
        f"rouge{n}_recall": (doc["unit"], rouge_recall(doc["summary"], results[0], n))
        for n in (1, 2)
    }


def best_sentences(doc: Row, results: list[tuple[float, bool]]) -> Scores:
    """Sentences ranked by log-likelihood per byte, which does not favour short ones nor any tokenizer."""
    pairs = zip(results, doc["sentences"], strict=True)
    likely = [nats / max(1, len(sentence.encode())) for (nats, _), sentence in pairs]
    return {"r_precision": (doc["unit"], r_precision(doc["relevant"], likely))}


@cache
def _length(model: str) -> Callable[[str], int]:
    """In tokens of the model, in characters where the run does not say which it is."""
    if not model:
        return len
    tokenizer = load_tokenizer(Path(model))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def copy_length(doc: Row, results: list[str]) -> Scores:
    """Tokens of the copy as it was written: a model that does not use its new tokens writes more of them."""
    length, copy = _length(doc["tokenizer"]), results[0].strip()
    written = getattr(results[0], "tokens", None)
    n = (
        length(copy)
        if written is None or not doc["tokenizer"]
        else written - _before(results[0], length)
    )
    return {
        "length_ratio": (doc["unit"], token_ratio(n, doc["text"].strip(), length) if copy else 0.0)
    }


def _before(text: str, length: Callable[[str], int]) -> int:
    """Tokens of the line ends that a base model writes before its answer."""
    space = text[: len(text) - len(text.lstrip())]
    return length(space[: space.rindex("\n") + 1]) if "\n" in space else 0


def copy_whole(doc: Row, results: list[str]) -> Scores:
    return {"copied": (doc["unit"], float(copied(results[0].strip(), doc["text"].strip())))}


average, f1_macro, mcc, paired, grade = (
    Metric(),
    METRICS["f1_macro"],
    METRICS["mcc"],
    METRICS["both_orders"],
    METRICS["grade"],
)
