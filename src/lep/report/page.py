"""Write the pages of a run and of a comparison of tokenizers; each is one self-contained file."""

from pathlib import Path
from typing import Any

import jinja2

from lep import __version__
from lep.errors import CheckpointError, foreign
from lep.evaluation.table import benchmark_table
from lep.files import read_json
from lep.publish import publish_text
from lep.report import data
from lep.report.figure import line_figure
from lep.report.grid import columns_of, grid_blocks
from lep.report.paired import MARGIN
from lep.report.run_record import PAGE, RunRecord
from lep.report.summary import outcomes, serving
from lep.report.verdict import NAMES, judged_model, run_verdict
from lep.tokenizer.compare import Comparison

SIGNS = {"better": "▲", "same": "=", "worse": "▼", "unclear": "?"}  # by outcome


def write_report(folder: str | Path) -> Path:
    """Gather what a run left in its folder and write `report.html` there; returns its path.

    Raises `CheckpointError` for a run that is not finished.
    """
    folder, report = Path(folder), Path(folder, PAGE)
    run = RunRecord.load(folder)
    publish_text(report, (grid_page if run.is_grid else run_page)(folder, run))
    return report


def run_page(folder: Path, run: RunRecord) -> str:
    """The page of a single recipe: a verdict, a table, an example text, losses, fits, answers."""
    cell = run.cells[0]
    language, settings = cell.recipe["language"], cell.evaluate_settings
    sides = {"instruct": cell.instruct_models, "base": cell.base_models}
    with foreign(f"{folder} is no whole run", "run its recipe again", CheckpointError):
        tables = {side: data.model_table(folder, each, language) for side, each in sides.items()}
        compared = {side: data.compared(folder, each, settings) for side, each in sides.items()}
        trainings = data.trainings(folder, run.seconds)
        joint = {stage: record for stage, record in trainings.items() if "streams" in record}
        facts: dict[str, Any] = {
            "saving": data.saving(tables["instruct"] or tables["base"], language),
            "segmentation": data.segmentation(folder, cell.recipe),
            "examples": data.examples(folder, cell),
            "changes": data.changes(folder),
            "fits": data.fits(folder, cell.recipe["propagate"]),
            "losses": loss_figure(trainings),
            "joint": {stage: (record, stream_figure(record)) for stage, record in joint.items()},
            "benchmark": benchmark_table(folder, cell.instruct_models, settings),
            "counts": read_json(folder / "corpus" / "counts.json"),
            "verdict": run_verdict(folder),
            "memory": data.stage_memory(folder, run.seconds),
        }
        side = "instruct" if len(tables["instruct"]) > 1 else "base"
        if len(tables[side]) > 1:
            facts["outcomes"] = outcomes(compared[side][judged_model(folder, cell)])
            facts["serving"] = serving(folder, cell, tables[side])
    common = {"run": run, "cell": cell, "recipe": cell.recipe}
    return render("page.html", sides=sides, tables=tables, compared=compared, **facts, **common)


def write_progress(folder: Path, run: RunRecord, waiting: list[str]) -> None:
    """Write `report.html` of a run whose last stages are `waiting`: what is known so far."""
    recipe = run.cells[0].recipe
    is_cut = not run.is_grid and {"corpus", "tokenizer"} <= set(run.seconds)
    records = data.trainings(folder, run.seconds).values()
    page = render(
        "progress.html",
        run=run,
        recipe=recipe,
        waiting=waiting,
        segmentation=data.segmentation(folder, recipe) if is_cut else None,
        joint=[stream_figure(record) for record in records if "streams" in record],
        memory=data.stage_memory(folder, run.seconds),
    )
    publish_text(folder / PAGE, page)


def grid_page(folder: Path, run: RunRecord) -> str:
    """The page of a recipe with a grid: a table for each combination."""
    instruct, base = (grid_blocks(folder, run, base=base) for base in (False, True))
    values = {"recipe": run.cells[0].recipe, "verdict": run_verdict(folder)}
    values["memory"] = data.stage_memory(folder, run.seconds)
    return render("grid.html", run=run, instruct=instruct, base=base, **values)


def comparison_page(comparison: Comparison) -> str:
    """The result of `compare_tokenizers` as a page."""
    lines = [
        (f"{name}, {text}", zip(*points, strict=True))
        for name, texts in comparison.curves.items()
        for text, points in texts.items()
    ]
    curves = line_figure(lines, "new tokens", "symbols per token", points=True)
    return render("tokenizers.html", record=comparison, curves=curves)


def render(template: str, **values: Any) -> str:
    loader = jinja2.PackageLoader("lep.report", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True)
    environment.filters |= {"heads": data.heads, "columns": columns_of}
    environment.globals |= {"SIGNS": SIGNS, "NAMES": NAMES, "margin": f"{100 * MARGIN:g}"}
    return environment.get_template(template).render(version=__version__, **values)


def loss_figure(trainings: dict[str, dict[str, Any]]) -> str:
    """Training loss against optimizer steps, a line for each stage, as an HTML fragment."""
    lines = [
        (stage, ([entry[key] for entry in record["losses"]] for key in ("step", "loss")))
        for stage, record in trainings.items()
        if record.get("losses")
    ]
    return line_figure(lines, "optimizer step", "loss, nats per token")


def stream_figure(record: dict[str, Any]) -> str:
    """The loss of each stream of a joint training, as an HTML fragment."""
    streams = {name: stream["losses"] for name, stream in record["streams"].items()}
    lines = [
        (name.replace("_", " "), zip(*points, strict=True))
        for name, points in streams.items()
        if points
    ]
    return line_figure(lines, "optimizer step", "loss, nats per token")
