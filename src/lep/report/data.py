"""What the page of a run shows, gathered from the run's folder."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from lep.corpus.read import read_documents
from lep.evaluation.records import Score, TaskRecord, load_records
from lep.evaluation.table import benchmark_table, cells, lower_is_better, text_table
from lep.files import read_json
from lep.report.grid import grid_blocks, grid_text
from lep.report.run_record import CellRecord, RunRecord, read_scores
from lep.settings import EvaluateSettings
from lep.tokenizer.idmap import ID_MAP_FILE, IdMap
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.tokenizer.write import CHANGES_FILE

SHOWN_CHARACTERS, SHOWN_ANSWERS, SHOWN_TOKENS = 700, 4, 60
LOSS_FILES = {"pretrain": "pretrain.json", "direct": "pretrain.json"}
LOSS_FILES |= {"calibrate": "tune.json", "tune": "tune.json"}
Table = dict[str, dict[str, Score]]  # scores by model and column


def run_table(folder: Path) -> str:
    """The table of instruct models of a finished run, and that of the benchmark if it was run."""
    run = RunRecord.load(folder)
    if run.is_grid:
        return grid_text(grid_blocks(folder, run))
    models = run.cells[0].instruct_models
    scores = {title: read_scores(folder, stage) for title, stage in models.items()}
    benchmark = benchmark_table(folder, models, evaluate_settings(run.cells[0]))
    return text_table(scores) + (f"\n\n{benchmark}" if benchmark else "")


def evaluate_settings(cell: CellRecord) -> EvaluateSettings:
    """The resamples and the seed of the recipe's evaluation."""
    given = cell.recipe.get("evaluate") or {}
    return EvaluateSettings(
        **{name: given[name] for name in ("bootstrap", "seed") if name in given}
    )


def model_table(folder: Path, models: dict[str, str]) -> Table:
    """The scores of each model, given by its title and stage; the first one is the original."""
    return {title: cells(read_scores(folder, stage)) for title, stage in models.items()}


def mark(score: Score, column: str, table: Table) -> str:
    """`better` or `worse` than the first model if the two intervals do not overlap.

    Empty for a single unit, which has no interval.
    """
    first = next(iter(table.values())).get(column, score)
    if min(score.count, first.count) < 2:
        return ""
    if not (score.low > first.high or score.high < first.low):  # nor if one is not a number
        return ""
    return "worse" if (score.value > first.value) == lower_is_better(column) else "better"


def heads(columns: list[str]) -> list[tuple[str, list[str]]]:
    """Columns under common titles, for the two lines above a table.

    >>> heads(["copy ru", "copy en", "bits/byte ru"])
    [('copy', ['ru', 'en']), ('bits/byte', ['ru'])]
    """
    parts = [column.rsplit(" ", 1) for column in columns]
    return [(title, [p[1] for p in group]) for title, group in groupby(parts, key=itemgetter(0))]


def saving(table: Table, language: str) -> dict[str, float]:
    """Symbols per token of the first model (the original) and of the last, in the new language."""
    column = f"symbols/token {language}"
    before, *_, after = (row[column].value for row in table.values() if column in row)
    percent = 100 * (1 - before / after)
    return {"before": before, "after": after, "ratio": after / before, "percent": percent}


def segmentation(folder: Path, recipe: dict[str, Any]) -> list[list[tuple[str, bool]]]:
    """A held-out text as tokens of the original and the extended tokenizer; True for a new one."""
    heldout = folder / "corpus" / f"{recipe['language']}.heldout.jsonl"
    text = next(read_documents([heldout])).text[:SHOWN_CHARACTERS].rsplit(" ", 1)[0]
    new = set(IdMap.load(folder / "tokenizer" / ID_MAP_FILE).new)
    before = pieces(load_tokenizer(recipe["base"]), text)
    after = pieces(load_tokenizer(folder / "tokenizer"), text)
    return [[(piece, False) for _, piece in before], [(piece, i in new) for i, piece in after]]


def pieces(tokenizer: Any, text: str) -> Iterator[tuple[int, str]]:
    """(id, text) of each token; bytes that are no whole character are shown as numbers."""
    tokens = Vocabulary.of(tokenizer).tokens
    for index in tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids:
        token = tokens[index]
        yield index, (token.content if token else b"").decode(errors="backslashreplace")


def losses(folder: Path, stages: Iterable[str]) -> dict[str, list[dict[str, float]]]:
    """The logged training losses of each stage that trains."""
    names = {stage: LOSS_FILES.get(stage.partition("-")[0], "") for stage in stages}
    files = {stage: folder / stage / "lep" / name for stage, name in names.items()}
    return {s: read_json(f)["losses"] for s, f in files.items() if f.is_file()}


def fits(folder: Path, methods: list[str]) -> list[dict[str, Any]]:
    """For each method and table, how well the linear map explains the instruct model's rows."""
    files = {method: f"propagate-{method}/lep/propagation.json" for method in methods}
    return [
        {"method": method, "table": table, "file": file} | fit
        for method, file in files.items()
        for table, fit in read_json(folder / file)["fit"].items()
    ]


def examples(folder: Path, cell: CellRecord) -> list[dict[str, Any]]:
    """A held-out question of some tasks in the new language, with each model's record of it."""
    questions: dict[str, dict[str, TaskRecord]] = {}
    by_task: dict[str, str] = {}
    for title, stage in cell.instruct_models.items():
        for record in load_records(folder / stage / "records.jsonl"):
            if isinstance(record, TaskRecord) and record.language == cell.recipe["language"]:
                questions.setdefault(record.question, {})[title] = record
                by_task.setdefault(record.task, record.question)
    chosen = list(by_task.values())[:SHOWN_ANSWERS]
    return [{"question": question, "answers": questions[question]} for question in chosen]


def changes(folder: Path) -> dict[str, Any]:
    """Counts of kept, new and dropped tokens, and the first that were learned."""
    record = read_json(folder / "tokenizer" / CHANGES_FILE)
    return record | {"tokens": record.get("tokens", [])[:SHOWN_TOKENS]}
