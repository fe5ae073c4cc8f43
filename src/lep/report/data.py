"""What the page of a run shows, gathered from the run's folder."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from lep.corpus.read import read_documents
from lep.evaluation.measures import NEW_MASS
from lep.evaluation.records import Score, TaskRecord, load_records
from lep.evaluation.table import COLUMNS, benchmark_table, cells, text_table
from lep.files import read_json
from lep.report.grid import grid_blocks, grid_text
from lep.report.paired import Contrast, Original
from lep.report.run_record import CellRecord, RunRecord, read_scores
from lep.settings import EvaluateSettings
from lep.tokenizer.idmap import ID_MAP_FILE, IdMap
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.tokenizer.write import CHANGES_FILE

SHOWN_CHARACTERS, SHOWN_ANSWERS, SHOWN_TOKENS = 700, 4, 60
LONGEST_CUT = 40  # characters of a word that are left out at the end
LOSS_FILES = {"pretrain": "pretrain.json", "direct": "pretrain.json"}
LOSS_FILES |= {"adapt": "pretrain.json", "calibrate": "tune.json", "tune": "tune.json"}
Table = dict[str, dict[str, Score]]  # scores by model and column


def run_table(folder: Path) -> str:
    """The table of instruct models of a finished run, and that of the benchmark if it was run."""
    run = RunRecord.load(folder)
    if run.is_grid:
        return grid_text(grid_blocks(folder, run))
    models = run.cells[0].instruct_models
    scores = {title: read_scores(folder, stage) for title, stage in models.items()}
    benchmark = benchmark_table(folder, models, run.cells[0].evaluate_settings)
    return text_table(scores) + (f"\n\n{benchmark}" if benchmark else "")


def model_table(folder: Path, models: dict[str, str], language: str) -> Table:
    """The scores of each model, given by its title and stage; the first one is the original.

    What new tokens take is shown in the languages beside the new `language`.
    """
    table: Table = {}
    for title, stage in models.items():
        scores = read_scores(folder, stage)
        masses = {
            f"{NEW_MASS} {score.language}": score
            for score in scores
            if score.metric == NEW_MASS and score.language != language
        }
        table[title] = cells(scores) | masses
    return table


def compared(
    folder: Path, models: dict[str, str], settings: EvaluateSettings
) -> dict[str, dict[str, Contrast]]:
    """Each model's columns of the table beside the first model, item by item."""
    records = {title: load_records(folder / s / "records.jsonl") for title, s in models.items()}
    columns = {key: title for title, key in COLUMNS.items()}
    table: dict[str, dict[str, Contrast]] = {title: {} for title in records}
    original = Original(next(iter(records.values()), ()), columns, settings)
    for title in list(records)[1:]:
        for (metric, language, task), contrast in original.contrasts(records[title]).items():
            table[title][f"{columns[metric, task]} {language}"] = contrast
    return table


def heads(columns: list[str]) -> list[tuple[str, list[str]]]:
    """Columns under common titles, for the two lines above a table.

    >>> heads(["copy ru", "copy en", "bits/byte ru"])
    [('copy', ['ru', 'en']), ('bits/byte', ['ru'])]
    """
    parts = [column.rsplit(" ", 1) for column in columns]
    return [(title, [p[1] for p in group]) for title, group in groupby(parts, key=itemgetter(0))]


def saving(table: Table, language: str) -> dict[str, float] | None:
    """Symbols per token of the original and of the last model in the new language, if measured."""
    column = f"symbols/token {language}"
    values = [row[column].value for row in table.values() if column in row]
    if len(values) < 2:
        return None
    before, after = values[0], values[-1]
    percent = 100 * (1 - before / after)
    return {"before": before, "after": after, "ratio": after / before, "percent": percent}


def segmentation(folder: Path, recipe: dict[str, Any]) -> list[list[tuple[str, bool]]]:
    """A held-out text as tokens of the original and the extended tokenizer; True for a new one."""
    heldout = folder / "corpus" / f"{recipe['language']}.heldout.jsonl"
    whole = next(read_documents([heldout])).text
    text = whole[:SHOWN_CHARACTERS]
    if text != whole:
        text = text[: max(text.rfind(" "), len(text) - LONGEST_CUT)]
    new = set(IdMap.load(folder / "tokenizer" / ID_MAP_FILE).new)
    before = pieces(load_tokenizer(recipe.get("base") or recipe["instruct"]), text)
    after = pieces(load_tokenizer(folder / "tokenizer"), text)
    return [[(piece, False) for _, piece in before], [(piece, i in new) for i, piece in after]]


def pieces(tokenizer: Any, text: str) -> Iterator[tuple[int, str]]:
    """(id, text) of each token; bytes that are no whole character are shown as numbers."""
    tokens = Vocabulary.of(tokenizer).tokens
    for index in tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids:
        token = tokens[index]
        yield index, (token.content if token else b"").decode(errors="backslashreplace")


def trainings(folder: Path, stages: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The record of each stage that trains, with the file that it is from."""
    names = {stage: LOSS_FILES.get(stage.partition("-")[0], "") for stage in stages}
    files = {stage: f"{stage}/lep/{name}" for stage, name in names.items() if name}
    return {
        stage: {"file": file} | read_json(folder / file)
        for stage, file in files.items()
        if (folder / file).is_file()
    }


def stage_memory(folder: Path, stages: Iterable[str]) -> dict[str, dict[str, float]]:
    """The most that the process held during each stage, in GB: of the machine, of a GPU if used."""
    files = {stage: folder / stage / "lep_stage.json" for stage in stages}
    manifests = {stage: read_json(file) for stage, file in files.items() if file.is_file()}
    memory = {stage: manifest.get("memory") for stage, manifest in manifests.items()}
    return {
        stage: {kind: size / 1e9 for kind, size in peaks.items() if isinstance(size, int)}
        for stage, peaks in memory.items()
        if isinstance(peaks, dict)  # anybody can have written it
    }


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
