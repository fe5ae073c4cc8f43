"""What the page shows, gathered from the folder of a run."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from lep.corpus.read import read_documents
from lep.errors import CheckpointError
from lep.evaluation.records import Score, TaskRecord, load_records, load_scores
from lep.evaluation.table import cells, lower_is_better
from lep.tokenizer.idmap import ID_MAP_FILE, IdMap
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.tokenizer.write import CHANGES_FILE

SHOWN_CHARACTERS = 700
SHOWN_ANSWERS = 4
SHOWN_TOKENS = 60


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a run folder; raises `CheckpointError` when the run is not there or not finished."""
    if not (folder / "run.json").is_file():
        raise CheckpointError(
            f"{folder} has no run.json: finish the run first (lep run RECIPE.yaml)"
        )
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def model_tables(folder: Path, run: dict[str, Any], kind: str) -> dict[str, Any]:
    """Rows and columns of the table of `instruct_models` or `base_models`, each cell with its record's place."""
    rows: dict[str, dict[str, Any]] = {}
    first: dict[str, Score] = {}
    for name, stage in run[kind].items():
        place = f"{stage}/scores.json"
        scores = cells(load_scores(folder / place))
        first = first or scores
        rows[name] = {
            column: asdict(score)
            | {"place": place, "mark": mark(column, score, first.get(column, score))}
            for column, score in scores.items()
        }
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return {"columns": columns, "rows": rows}


def mark(column: str, score: Score, first: Score) -> str:
    """`better` or `worse` than the first model where the two intervals have nothing in common."""
    if score.low <= first.high and first.low <= score.high:
        return ""
    return "worse" if (score.value > first.value) == lower_is_better(column) else "better"


def heads(columns: list[str]) -> list[tuple[str, list[str]]]:
    """Columns under common titles: what stands in the two lines above a table.

    >>> heads(["copy ru", "copy en", "bits/byte ru"])
    [('copy', ['ru', 'en']), ('bits/byte', ['ru'])]
    """
    parts = [column.rsplit(" ", 1) for column in columns]
    return [
        (title, [last for _, last in group]) for title, group in groupby(parts, key=itemgetter(0))
    ]


def saving(table: dict[str, Any], language: str) -> dict[str, float]:
    """Symbols per token of the first model (the original) and of the last, in the new language."""
    rows = [row for row in table["rows"].values() if f"symbols/token {language}" in row]
    before, after = (row[f"symbols/token {language}"]["value"] for row in (rows[0], rows[-1]))
    return {
        "before": before,
        "after": after,
        "ratio": after / before,
        "percent": 100 * (1 - before / after),
    }


def coloured(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """A held-out text of the new language cut into tokens by the original and by the extended tokenizer."""
    language = run["recipe"]["language"]
    document = next(read_documents([folder / "corpus" / f"{language}.heldout.jsonl"]))
    text = document.text[:SHOWN_CHARACTERS].rsplit(" ", 1)[0]
    original = load_tokenizer(run["recipe"]["base"])
    extended = load_tokenizer(folder / "tokenizer")
    new = set(IdMap.load(folder / "tokenizer" / ID_MAP_FILE).new)
    return {
        "before": [{"text": piece, "new": False} for _, piece in pieces(original, text)],
        "after": [{"text": piece, "new": index in new} for index, piece in pieces(extended, text)],
    }


def pieces(tokenizer: Any, text: str) -> Iterator[tuple[int, str]]:
    """(id, text) of each token; bytes that are no whole character are shown as numbers."""
    tokens = Vocabulary.of(tokenizer).tokens
    for index in tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids:
        token = tokens[index]
        yield index, (token.content if token else b"").decode(errors="backslashreplace")


def losses(folder: Path, run: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """The logged training losses of each stage that trains."""
    files = {
        "pretrain": "pretrain.json",
        "direct": "pretrain.json",
        "calibrate": "tune.json",
        "tune": "tune.json",
    }
    places = {
        stage: folder / stage / "lep" / files[stage.partition("-")[0]]
        for stage in run["seconds"]
        if stage.partition("-")[0] in files
    }
    return {
        stage: json.loads(place.read_text())["losses"]
        for stage, place in places.items()
        if place.exists()
    }


def fits(folder: Path, methods: list[str]) -> list[dict[str, Any]]:
    """One row for each method and table: how well the linear map explains the instruct model's rows."""
    rows = []
    for method in methods:
        place = f"propagate-{method}/lep/propagation.json"
        for table, fit in json.loads((folder / place).read_text())["fit"].items():
            rows.append({"method": method, "table": table, "place": place} | fit)
    return rows


def examples(folder: Path, run: dict[str, Any]) -> list[dict[str, Any]]:
    """A few held-out questions in the new language with the answer of every model."""
    found: dict[str, dict[str, Any]] = {}
    for name, stage in run["instruct_models"].items():
        for record in load_records(folder / stage / "records.jsonl"):
            if isinstance(record, TaskRecord) and record.language == run["recipe"]["language"]:
                entry = found.setdefault(record.question, {"record": record, "answers": {}})
                entry["answers"][name] = {"text": record.answer, "exact": record.exact}
    first_of_task = {entry["record"].task: entry for entry in reversed(list(found.values()))}
    return list(islice(reversed(list(first_of_task.values())), SHOWN_ANSWERS))


def changes(folder: Path) -> dict[str, Any]:
    """What became of the tokenizer."""
    return json.loads((folder / "tokenizer" / CHANGES_FILE).read_text())


def new_tokens(folder: Path) -> list[str]:
    """The first of the new tokens, in the order in which they were learned; none of a replaced vocabulary."""
    return changes(folder).get("tokens", [])[:SHOWN_TOKENS]
