"""The run of a recipe or a grid: its stages in order, its record, its report and table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lep.pipeline.cards import write_run_cards
from lep.pipeline.recipe import Cell, Grid, Recipe
from lep.pipeline.recipe_file import load_grid
from lep.pipeline.recipe_stages import RecipeStages, recipe_stages
from lep.pipeline.stage import RunFolder, Runner, Stage, built_stages
from lep.report.data import run_table
from lep.report.page import write_progress, write_report
from lep.report.run_record import CellRecord, RunRecord
from lep.report.verdict import run_verdict
from lep.result import Result


@dataclass(frozen=True)
class FinishedRun(Result):
    """A run: its folder, its page, and the table of its instruct models."""

    folder: Path
    report: Path
    table: str
    seconds: dict[str, float]  # by stage
    verdict: str | None = None  # what came out, in a line

    def __str__(self) -> str:
        return "\n\n".join(filter(None, (f"report: {self.report}", self.table, self.verdict)))


@dataclass(frozen=True)
class GridStages:
    """The stages of each cell, and their folder; what cells have in common is one stage."""

    cells: list[tuple[Cell, RecipeStages]]
    folder: RunFolder

    @property
    def all(self) -> list[Stage]:
        """Each stage once, in an order in which they can run."""
        return list({s.fingerprint: s for _, stages in self.cells for s in stages.all}.values())

    def record(self, seconds: dict[str, float]) -> RunRecord:
        cells, name = [], self.folder.name
        for cell, stages in self.cells:
            instruct = {title: name(stage) for title, stage in stages.instruct_models.items()}
            base = {title: name(stage) for title, stage in stages.base_models.items()}
            recipe = cell.recipe.model_dump()
            cells.append(CellRecord(cell.labels, cell.seed, recipe, instruct, base))
        return RunRecord(seconds, cells)


def run_recipe(
    recipe: str | Path | Recipe | Grid,
    output: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> FinishedRun:
    """Run every stage of a recipe that is not up to date, in `output` (default: runs/NAME).

    `overrides` are `section.key=value` strings; `say` gets a line about each stage. A killed run
    continues where it was. Processes with the same recipe and folder share the stages.

    Raises `RecipeError` for a fault in the recipe, and what the stages raise.
    """
    grid = load_grid(recipe, overrides)
    folder = Path(output or Path("runs", grid.name))
    stages = grid_stages(grid, folder)
    seconds: dict[str, float] = {}

    def watch(waiting: list[str]) -> None:
        write_progress(folder, stages.record(seconds), waiting)

    runner = Runner(stages.folder, say, watch, seconds)
    runner.run_all(stages.all)
    stages.record(runner.seconds).save(folder)
    page, table, verdict = write_report(folder), run_table(folder), run_verdict(folder)
    write_run_cards(folder)
    return FinishedRun(folder, page, table, runner.seconds, verdict)


def grid_stages(grid: Grid, folder: Path) -> GridStages:
    """The stages of a recipe under `folder`; checks models and data, runs nothing."""
    cells = [(cell, recipe_stages(cell.recipe)) for cell in grid.cells]
    names = {} if grid.is_single else stage_names(cells, built_stages(folder))
    return GridStages(cells, RunFolder(folder, names))


def stage_names(cells: list[tuple[Cell, RecipeStages]], built: dict[str, str]) -> dict[str, str]:
    """Names of a grid's stages by fingerprint, with the values that all its cells share.

    A stage that is `built` keeps its name when combinations or seeds are added or removed.

    >>> stage, other = Stage("a", print, {"x": 1}), Stage("a", print, {"x": 2})
    >>> seeds = (("big", 0), ("big", 1), ("small", 0))
    >>> cells = [Cell({"size": size}, seed, None) for size, seed in seeds]
    >>> pairs = [(c, RecipeStages({"m": s}, {})) for c, s in zip(cells, (stage, stage, other))]
    >>> sorted(stage_names(pairs, {}).values())
    ['a.big', 'a.small.seed-0']
    >>> sorted(stage_names(pairs, {stage.fingerprint: "a.small.seed-0"}).values())[0]
    'a.small.seed-0'
    """
    described = [cell.labels | {"seed": f"seed-{cell.seed}"} for cell, _ in cells]
    uses: dict[tuple[str, str], list[dict[str, str]]] = {}
    for labels, (_, stages) in zip(described, cells, strict=True):
        for stage in stages.all:
            uses.setdefault((stage.fingerprint, stage.name), []).append(labels)
    names = {key: built[key] for key, _ in uses if key in built}
    for (key, name), users in uses.items():
        if key not in built:
            for axis in described[0]:
                values, every = ({labels[axis] for labels in side} for side in (users, described))
                name = ".".join([name, *(values if len(values) == 1 < len(every) else ())])
            names[key] = f"{name}.{key[:6]}" if name in names.values() else name
    return names
