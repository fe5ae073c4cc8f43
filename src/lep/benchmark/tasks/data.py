"""Data sets of the benchmark tasks, from the hub or a folder, as rows for lm-evaluation-harness.

A folder has NAME/SPLIT.jsonl (or .jsonl.zst) with the fields of the hub's records; the metadata of
a task name it as `data`. A record becomes one row or two, each with an `id`, and the `unit` that
scores are averaged over.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, get_dataset_config_names, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from lm_eval.api.samplers import ContextSampler

from lep.corpus.read import read_records
from lep.errors import CorpusError, foreign

DARUMERU, MMLU, RUBLIMP = "RefalMachine/darumeru", "NLPCoreTeam/mmlu_ru", "RussianNLP/rublimp"
CONVERTED = "refs/convert/parquet"
REFUSALS = (DatasetNotFoundError, HfHubHTTPError, OfflineModeIsEnabled)
HUB_FAULTS = (*REFUSALS, ConnectionError, ValueError, RuntimeError)
Row = dict[str, Any]
Rows = Callable[[Row], Iterator[Row]]  # the rows of a record
Hub = tuple[str, str | None]  # data set and configuration


def darumeru(name: str, data: str | None = None, **metadata: Any) -> DatasetDict:
    """A data set of the collection: `inputs` to ask about, `outputs` as the right answer.

    The tokenizer that counts copies is `tokenizer`, or the `pretrained` model of plain `lm_eval`.
    """
    tokenizer = metadata.get("tokenizer") or metadata.get("pretrained") or ""
    copies = partial(_copies, tokenizer=tokenizer)
    rows = copies if name.startswith("cp_") else DARUMERU_ROWS[name]
    splits = _splits(name, ("test", "prompt"), (DARUMERU, name), data, rows)
    if name == "parus":  # as examples, each question in one order of its options
        splits["prompt"] = splits["prompt"].filter(lambda row: row["id"].endswith("/0"))
    return splits


def rucola(data: str | None = None, **_: Any) -> DatasetDict:
    """RuCoLA: sentences with 1 for acceptable, 0 for not."""
    return _splits("rucola", ("validation", "train"), ("RussianNLP/rucola", "main"), data, _rucola)


def gazeta(data: str | None = None, **_: Any) -> DatasetDict:
    """News articles by sentences, their summaries, and the sentences that say the most."""
    hub = ("dichspace/daru_treeway_eval", None)
    return _splits("daru_treeway_eval", ("test", "prompt"), hub, data, _gazeta)


def mmlu(language: str, data: str | None = None, **_: Any) -> DatasetDict:
    """All subjects of MMLU in one split, or `SameSubject` would not see the question."""
    records = [
        record | {"part": part} | ({"subject": subject} if subject else {})
        for subject in ([None] if data is not None else _configs("mmlu_ru", MMLU))
        for part in ("test", "dev")
        for record in _read("mmlu_ru", part, (MMLU, subject), data)
    ]
    return DatasetDict({"all": _rows("mmlu_ru", "all", records, partial(_mmlu, language))})


def of_test(rows: Dataset) -> Dataset:
    return rows.filter(lambda row: row["part"] == "test")


def of_dev(rows: Dataset) -> Dataset:
    return rows.filter(lambda row: row["part"] == "dev")


class SameSubject(ContextSampler):
    """The first examples of the question's own subject, as in MMLU."""

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **_: Any) -> list[Row]:
        return [row for row in self.df if row["subject"] == eval_doc["subject"]][:n]


def rublimp(data: str | None = None, **_: Any) -> DatasetDict:
    """RuBLiMP: a sentence and a minimal change that makes it wrong."""
    parts, split = ([None], "test") if data is not None else (_configs("rublimp", RUBLIMP), "train")
    records = [r for part in parts for r in _read("rublimp", split, (RUBLIMP, part), data)]
    return DatasetDict({"test": _rows("rublimp", "test", records, _rublimp)})


def _splits(
    name: str, splits: tuple[str, ...], hub: Hub, data: str | None, rows: Rows
) -> DatasetDict:
    return DatasetDict({s: _rows(name, s, _read(name, s, hub, data), rows) for s in splits})


def _read(name: str, split: str, hub: Hub, data: str | None) -> list[Row]:
    """The records of a split, from the folder if one is given, else from the hub."""
    if data is None:
        local = "test" if name == "rublimp" else split
        return _from_hub(f"{name}/{local}", load_dataset, *hub, split=split).to_list()
    folder = Path(data, name)
    files = sorted(file for file in folder.glob("*") if file.name.lower() in _names(split))
    if not files:
        raise CorpusError(
            f"{folder} has no {split}.jsonl: write one record a line, or leave --data out"
        )
    if len(files) > 1:
        both = " and ".join(file.name for file in files[:2])
        raise CorpusError(f"{folder} has {both}: leave one of them")
    return [record for _, record in read_records(files[0])]


def _names(split: str) -> set[str]:
    return {f"{split}.jsonl{compression}" for compression in ("", ".gz", ".zst")}


def _configs(name: str, hub: str) -> list[str]:
    """The configurations of a data set on the hub, one for each subject or phenomenon."""
    return _from_hub(f"{name}/test", get_dataset_config_names, hub)


def _from_hub(file: str, call: Callable[..., Any], hub: str, *names: Any, **options: Any) -> Any:
    """The result of `call`; `file` is what a folder would need instead.

    For data sets with a loading script, the hub's conversion is read; scripts are never run.
    """
    try:
        try:
            return call(hub, *names, **options)
        except RuntimeError as error:
            if "script" not in str(error):
                raise
            return call(hub, *names, **options, revision=CONVERTED)
    except HUB_FAULTS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(
            f"the data set {hub} cannot be read from the hub ({reason}): go online, or give "
            f"--data FOLDER with {file}.jsonl in it"
        ) from error


def _rows(name: str, split: str, records: list[Row], rows: Rows) -> Dataset:
    result = []
    for number, record in enumerate(records, start=1):
        try:
            result += [{"id": str(number), "unit": str(number)} | row for row in rows(record)]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            fault = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise CorpusError(
                f"record {number} of {name}/{split} has {fault}; it has "
                f"{', '.join(map(str, record))}: give the fields that docs/evaluation.md lists"
            ) from error
    if not result:
        raise CorpusError(f"{name}/{split} holds no record")
    seen = Counter[str]()
    for row in result:  # two records with one id are two records
        seen[row["id"]] += 1
        if seen[row["id"]] > 1:
            row["id"] = f"{row['id']} ({seen[row['id']]})"
    with foreign(f"the records of {name}/{split} differ in form", "mend the data", CorpusError):
        return Dataset.from_list(result)


def _copies(record: Row, tokenizer: str) -> Iterator[Row]:
    yield {"text": record["inputs"]["text"], "tokenizer": tokenizer}


def _rucola(record: Row) -> Iterator[Row]:
    yield {"sentence": record["sentence"], "label": int(record["label"])}


def _gazeta(record: Row) -> Iterator[Row]:
    sentences, summary = record["src_sents"], record["summary_sents"]
    if not (relevant := record["extractive_summary"]):
        raise ValueError("an empty extractive_summary")
    row = {"text": " ".join(sentences), "summary": " ".join(summary)}
    yield row | {"sentences": list(sentences), "relevant": list(relevant)}


def _mmlu(language: str, record: Row) -> Iterator[Row]:
    row = {"subject": record["subject"], "part": record["part"], "label": int(record["answer"])}
    row |= zip("abcd", record[f"choices_{language}"], strict=True)
    yield row | {"question": record[f"question_{language}"]}


def _rublimp(record: Row) -> Iterator[Row]:
    pair = [record["source_sentence"], record["target_sentence"]]
    yield {"pair": pair, "phenomenon": record["phenomenon"]}


def _choice(columns: dict[str, str], labels: list[str], record: Row) -> Iterator[Row]:
    """Columns of the row from `inputs`, and the label as its index in `labels`."""
    inputs, output = record["inputs"], str(record["outputs"]).strip().lower()
    row = {column: inputs[name] for column, name in columns.items()}
    yield row | {"label": labels.index(output)}


def _multiq(record: Row) -> Iterator[Row]:
    inputs, answers = record["inputs"], [answer["segment"] for answer in record["outputs"]]
    text = f"{inputs['support_text']}\n{inputs['main_text']}"
    yield {"text": text, "question": inputs["question"], "answers": answers}


def _parus(record: Row) -> Iterator[Row]:
    """A question twice, in both orders of its options."""
    inputs, meta, right = record["inputs"], record["meta"], int(record["outputs"]) - 1
    unit, options = str(meta["id"]), (inputs["choice1"], inputs["choice2"])
    row = {"unit": unit, "premise": inputs["premise"], "relation": meta["task"]}
    for order in (0, 1):
        first, second = options[order], options[1 - order]
        question = {"first": first, "second": second, "label": right ^ order}
        yield row | question | {"id": f"{unit}/{order}"}


def _use(record: Row) -> Iterator[Row]:
    inputs, meta, answer = record["inputs"], record["meta"], str(record["outputs"])
    names = ("task", "text", "additional_text", "choices")
    parts = [str(inputs[name]) for name in names if inputs.get(name)]
    if not parts:
        raise KeyError("task")
    row = {"unit": str(meta["variant"]), "question": "\n".join(parts), "answer": answer}
    yield row | {"form": meta["type"], "number": str(meta["id_task"])}


OPTIONS = {letter: f"option_{letter}" for letter in "abcd"}
SPANS = {"text": "text", "thing": "span1_text", "word": "span2_text"}
QUESTION = {"question": "question", **OPTIONS}
DARUMERU_ROWS: dict[str, Rows] = {
    "multiq": _multiq,
    "parus": _parus,
    "rcb": partial(_choice, {"premise": "premise", "hypothesis": "hypothesis"}, list("123")),
    "rwsd": partial(_choice, SPANS, ["да", "нет"]),
    "use": _use,
    "rummlu": partial(_choice, {"question": "text", **OPTIONS}, list("abcd")),
    "ruopenbookqa": partial(_choice, QUESTION, list("abcd")),
    "ruworldtree": partial(_choice, QUESTION, list("abcd")),
}
