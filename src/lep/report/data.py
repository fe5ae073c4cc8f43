"""What the page of a run shows, gathered from the run's folder."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from lep.corpus.read import read_documents
from lep.evaluation.table import benchmark_table, cells, lower_is_better, text_table
from lep.report.grid import grid_blocks, grid_text
from lep.report.run_record import CellRecord, RunRecord, read_scores, scores_file
from lep.tokenizer.idmap import ID_MAP_FILE, IdMap
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.tokenizer.write import CHANGES_FILE

SHOWN_CHARACTERS = 700
SHOWN_ANSWERS = 4
SHOWN_TOKENS = 60
LOSS_FILES = {
    "pretrain": "pretrain.json",
    "direct": "pretrain.json",
    "calibrate": "tune.json",
    "tune": "tune.json",
}


def run_table(folder: Path) -> str:
    """The table of instruct models of a finished run, and that of the benchmark if it was run."""
    run = RunRecord.load(folder)
    if run.is_grid:
        return grid_text(grid_blocks(folder, run))
    models = run.cells[0].instruct_models
    scores = {title: read_scores(folder, stage) for title, stage in models.items()}
    benchmark = benchmark_table(folder, models)
    return text_table(scores) + (f"\n\n{benchmark}" if benchmark else "")


@dataclass(frozen=True)
class MarkedScore:
    """A score, the file that records it, and whether it is `better` or `worse` than the first model's."""

    score: dict[str, Any]
    file: str
    mark: str


@dataclass(frozen=True)
class ModelTable:
    """A row for each model, a column for each kind of score."""

    rows: dict[str, dict[str, MarkedScore]]

    @classmethod
    def read(cls, folder: Path, models: dict[str, str]) -> "ModelTable":
        """The table of models, given as title and stage; the first is what others are compared with."""
        scores = {title: cells(read_scores(folder, stage)) for title, stage in models.items()}
        first = next(iter(scores.values()))
        return cls(
            {
                title: {
                    column: MarkedScore(
                        score, scores_file(stage), mark(column, score, first.get(column, score))
                    )
                    for column, score in scores[title].items()
                }
                for title, stage in models.items()
            }
        )

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.rows.values() for column in row))


def mark(column: str, score: dict[str, Any], first: dict[str, Any]) -> str:
    """`better` or `worse` than the first model if the two intervals do not overlap."""
    if score["low"] <= first["high"] and first["low"] <= score["high"]:
        return ""
    return "worse" if (score["value"] > first["value"]) == lower_is_better(column) else "better"


def heads(columns: list[str]) -> list[tuple[str, list[str]]]:
    """Columns under common titles, for the two lines above a table.

    >>> heads(["copy ru", "copy en", "bits/byte ru"])
    [('copy', ['ru', 'en']), ('bits/byte', ['ru'])]
    """
    parts = [column.rsplit(" ", 1) for column in columns]
    return [(title, [p[1] for p in group]) for title, group in groupby(parts, key=itemgetter(0))]


def saving(table: ModelTable, language: str) -> dict[str, float]:
    """Symbols per token of the first model (the original) and of the last, in the new language."""
    column = f"symbols/token {language}"
    values = [row[column].score["value"] for row in table.rows.values() if column in row]
    before, after = values[0], values[-1]
    percent = 100 * (1 - before / after)
    return {"before": before, "after": after, "ratio": after / before, "percent": percent}


def segmentation(folder: Path, cell: CellRecord) -> dict[str, list[dict[str, Any]]]:
    """A held-out text of the new language as the tokens of the original and of the extended tokenizer."""
    heldout = folder / "corpus" / f"{cell.recipe['language']}.heldout.jsonl"
    text = next(read_documents([heldout])).text[:SHOWN_CHARACTERS].rsplit(" ", 1)[0]
    new = set(IdMap.load(folder / "tokenizer" / ID_MAP_FILE).new)
    before, after = (
        pieces(load_tokenizer(source), text)
        for source in (cell.recipe["base"], folder / "tokenizer")
    )
    return {
        "before": [{"text": piece, "new": False} for _, piece in before],
        "after": [{"text": piece, "new": index in new} for index, piece in after],
    }


def pieces(tokenizer: Any, text: str) -> Iterator[tuple[int, str]]:
    """(id, text) of each token; bytes that are no whole character are shown as numbers."""
    tokens = Vocabulary.of(tokenizer).tokens
    for index in tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids:
        token = tokens[index]
        yield index, (token.content if token else b"").decode(errors="backslashreplace")


def losses(folder: Path, stages: list[str]) -> dict[str, list[dict[str, float]]]:
    """The logged training losses of each stage that trains."""
    verbs = {stage: stage.partition("-")[0] for stage in stages}
    paths = {
        stage: folder / stage / "lep" / LOSS_FILES[verb]
        for stage, verb in verbs.items()
        if verb in LOSS_FILES
    }
    return {
        stage: json.loads(path.read_text())["losses"]
        for stage, path in paths.items()
        if path.exists()
    }


def fits(folder: Path, methods: list[str]) -> list[dict[str, Any]]:
    """A row for each method and table: how well the linear map explains the instruct model's rows."""
    files = {method: f"propagate-{method}/lep/propagation.json" for method in methods}
    return [
        {"method": method, "table": table, "file": file} | fit
        for method, file in files.items()
        for table, fit in json.loads((folder / file).read_text())["fit"].items()
    ]


def examples(folder: Path, cell: CellRecord) -> list[dict[str, Any]]:
    """A few held-out questions in the new language, of different tasks, with every model's answer."""
    questions: dict[str, dict[str, Any]] = {}
    for title, stage in cell.instruct_models.items():
        with (folder / stage / "records.jsonl").open(encoding="utf-8") as lines:
            for record in map(json.loads, lines):
                if record["kind"] == "task" and record["language"] == cell.recipe["language"]:
                    entry = questions.setdefault(
                        record["question"], {"record": record, "answers": {}}
                    )
                    answer = {"text": record["answer"], "exact": record["exact"]}
                    entry["answers"][title] = answer
    first_of_task = {entry["record"]["task"]: entry for entry in reversed(list(questions.values()))}
    return list(islice(reversed(list(first_of_task.values())), SHOWN_ANSWERS))


def changes(folder: Path) -> dict[str, Any]:
    """Counts of kept, new and dropped tokens, and the first new ones as they were learned, if they were."""
    record = json.loads((folder / "tokenizer" / CHANGES_FILE).read_text())
    return record | {"tokens": record.get("tokens", [])[:SHOWN_TOKENS]}
