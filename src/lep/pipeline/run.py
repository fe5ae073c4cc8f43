"""The run of a recipe or a grid: its stages in order, its record, its page and table."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lep.evaluation.records import load_scores
from lep.evaluation.table import benchmark_table, text_table
from lep.pipeline.recipe import Cell, Grid, Recipe
from lep.pipeline.stage import Places, Runner, Stage, made_stages
from lep.pipeline.stages import Plan, Planner
from lep.publish import publish_text
from lep.report.grid import grid_blocks, grid_text
from lep.report.page import write_report


@dataclass(frozen=True)
class GridPlan:
    """The plans of all cells of a recipe; what cells have in common is one stage."""

    cells: list[tuple[Cell, Plan]]
    places: Places

    @property
    def stages(self) -> list[Stage]:
        """Each stage once, in an order in which they can run."""
        return list(
            {stage.fingerprint: stage for _, found in self.cells for stage in found.stages}.values()
        )


def plan(recipe: Recipe | Grid, folder: Path) -> GridPlan:
    """Lay out the stages of a recipe under `folder`; checks the models, trains nothing."""
    cells = recipe.cells if isinstance(recipe, Grid) else [Cell({}, None, recipe)]
    places = Places(folder)
    found = [(cell, Planner(cell.recipe, places).plan()) for cell in cells]
    if cells[0].seed is not None:
        places.names |= _names(found, made_stages(folder))
    return GridPlan(found, places)


def _names(cells: list[tuple[Cell, Plan]], made: dict[str, str]) -> dict[str, str]:
    """A name for each stage of a grid, by fingerprint: its own with those values that all its cells share.

    A stage that is `made` keeps its name, whatever combinations or seeds were added or taken away since.

    >>> stage, other = Stage("a", print, {"x": 1}), Stage("a", print, {"x": 2})
    >>> plans = [Plan([s], {}, {}) for s in (stage, stage, other)]
    >>> cells = [Cell({"size": size}, seed, None) for size, seed in (("big", 0), ("big", 1), ("small", 0))]
    >>> sorted(_names(list(zip(cells, plans)), {}).values())
    ['a.big', 'a.small.seed-0']
    >>> sorted(_names(list(zip(cells, plans)), {stage.fingerprint: "a.small.seed-0"}).values())[0]
    'a.small.seed-0'
    """
    described = [cell.labels | {"seed": f"seed-{cell.seed}"} for cell, _ in cells]
    uses: dict[str, list[dict[str, str]]] = {}
    stages = {stage.fingerprint: stage for _, found in cells for stage in found.stages}
    for labels, (_, found) in zip(described, cells, strict=True):
        for stage in found.stages:
            uses.setdefault(stage.fingerprint, []).append(labels)
    names = {key: made[key] for key in uses if key in made}
    for key, where in uses.items():
        if key in names:
            continue
        parts = [stages[key].name]
        for axis in described[0]:
            values, every = ({labels[axis] for labels in side} for side in (where, described))
            parts += values if len(values) == 1 < len(every) else []
        name = ".".join(parts)
        names[key] = name if name not in names.values() else f"{name}.{key[:6]}"
    return names


def run(recipe: Recipe | Grid, folder: Path, say: Callable[[str], None] = print) -> Path:
    """Run what is not up to date, and return the report's path.

    A run that was killed continues where it was; one that is complete does nothing. Several processes that are given
    the same recipe and folder share the stages.
    """
    planned = plan(recipe, folder)
    runner = Runner(planned.places, say)
    runner.run_all(planned.stages)
    described: list[dict[str, Any]] = []
    for cell, found in planned.cells:
        models = {
            kind: {name: planned.places.name(stage) for name, stage in getattr(found, kind).items()}
            for kind in ("instruct_models", "base_models")
        }
        described.append(
            {"labels": cell.labels, "seed": cell.seed, "recipe": cell.recipe.model_dump(), **models}
        )
    single = planned.cells[0][0].seed is None
    record = {"seconds": runner.seconds} | (described[0] if single else {"cells": described})
    publish_text(folder / "run.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    report = write_report(folder)
    say(f"\nreport: {report}\n\n" + table(folder))
    return report


def table(folder: Path) -> str:
    """The table of instruct models of a finished run, and that of the benchmark where it was run."""
    record = json.loads((folder / "run.json").read_text())
    if "cells" in record:
        return grid_text(grid_blocks(folder, record))
    models = record["instruct_models"]
    scores = {name: load_scores(folder / stage / "scores.json") for name, stage in models.items()}
    benchmark = benchmark_table(folder, models)
    return text_table(scores) + (f"\n\n{benchmark}" if benchmark else "")
