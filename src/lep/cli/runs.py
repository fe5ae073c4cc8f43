"""Verbs for runs, text and scores."""

import shlex
from pathlib import Path
from typing import Any, get_args

import lep
import lep.cli.lines as lines
from lep.cli.verb import app, say, verb
from lep.errors import LepError
from lep.settings import BuildSettings, ClusterSettings, EvaluateSettings, TaskName, Texts


@verb(app, output="Run folder (default: runs/NAME).")
def run(recipe: Path, changes: list[str] | None = None, /, output: Path | None = None) -> None:
    """Run a recipe. Finished stages are kept; processes with the same folder share the work."""
    from lep.pipeline.recipe import load_grid
    from lep.pipeline.run import run

    grid = load_grid(recipe, changes)
    run(grid, output or Path("runs", grid.name), say=say)


@verb(app)
def plan(
    recipe: Path, changes: list[str] | None = None, /, hours: float | None = None, gpu: str = "h100"
) -> None:
    """Estimate what a recipe takes and saves, before anything is loaded or written."""
    from lep.pipeline.forecast import make_plan
    from lep.pipeline.recipe import load_grid

    grid = load_grid(recipe, changes)
    forecast = make_plan(grid.cells[0].recipe, gpu, hours)
    if not grid.is_single:
        say(f"the first of {len(grid.cells)} combinations and seeds, which share stages:")
    say(forecast)
    if hours is not None:
        budget = ("pretrain.tokens=", "pretrain.epochs=")
        others = [change for change in changes or [] if not change.startswith(budget)]
        words = ["lep", "run", str(recipe), *others, f"pretrain.tokens={forecast.tokens}"]
        say(f"for these hours: {shlex.join(words)}")


@verb(app)
def report(folder: Path, /) -> str:
    """Write the report page of a run again."""
    from lep.report.page import write_report

    return f"report: {write_report(folder)}"


@verb(app)
def corpus(
    paths: list[str], /, output: Path, settings: BuildSettings, cluster: ClusterSettings
) -> Any:
    """Clean, deduplicate, weight and shuffle raw text."""
    executor, shared = cluster.executor, {"language"}
    if executor is None:
        if unused := cluster.model_fields_set - shared:
            raise LepError(f"--{unused.pop()} is for tasks: add --executor local or slurm")
        return lines.built(lep.build_corpus(paths, output, settings), output, settings)
    if unused := settings.model_fields_set - shared:
        advice = "give it to lep corpus --dedup exact on the result"
        raise LepError(f"--{unused.pop()} is not for --executor: {advice}")
    if executor == "slurm" and not cluster.partition:
        raise LepError("--executor slurm needs --partition: name one that sinfo lists")
    try:
        from lep.corpus.cluster import run_stages
    except ImportError as error:
        raise LepError("--executor needs datatrove: pip install 'lep[cluster]'") from error
    run_stages(paths, output, cluster)
    start = "When its jobs are done, mix" if executor == "slurm" else "Mix"
    return f"{start} and shuffle the result: lep corpus {output} --dedup exact --output ..."


@verb(app, text="LANGUAGE=PATH: held-out text (default: none).")
def evaluate(
    models: list[str], /, output: Path, settings: EvaluateSettings, text: Texts, tasks: str = ""
) -> Any:
    """Compare models: bits per byte, tokens, copying, benchmark tasks, answers, speed."""
    from lep.benchmark.tasks import EVERYTHING, groups, task_names

    names = [name for name in tasks.split(",") if name]
    known = {*get_args(TaskName), *task_names(), *groups(), EVERYTHING}
    if stray := [model for model in models if model in known and not Path(model).exists()]:
        advice = ",".join([*names, *stray])
        raise LepError(f"{stray[0]} is a task where a model is expected: write --tasks {advice}")
    return lep.compare(models, text, output, settings.with_tasks(names) if names else settings)
