"""`run.json`, and the scores that it points to."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lep.errors import CheckpointError, foreign
from lep.evaluation.records import Score, load_scores
from lep.fields import file_part
from lep.files import read_json
from lep.publish import publish_text
from lep.settings import EvaluateSettings

RUN_RECORD, PAGE = "run.json", "report.html"


@dataclass(frozen=True)
class CellRecord:
    """A recipe as it ran, and its models: the stage that evaluates each, by the model's title."""

    labels: dict[str, str]
    seed: int | None  # None without a grid
    recipe: dict[str, Any]
    instruct_models: dict[str, str]
    base_models: dict[str, str]

    @property
    def evaluate_settings(self) -> EvaluateSettings:
        """The resamples and the seed of the recipe's evaluation."""
        given = self.recipe.get("evaluate") or {}
        names = [name for name in ("bootstrap", "seed") if name in given]
        return EvaluateSettings(**{name: given[name] for name in names})


@dataclass(frozen=True)
class RunRecord:
    """A finished run: seconds by stage, and its cells."""

    seconds: dict[str, float]
    cells: list[CellRecord]

    @property
    def is_grid(self) -> bool:
        return self.cells[0].seed is not None

    @classmethod
    def load(cls, folder: Path) -> "RunRecord":
        """Raises `CheckpointError` if the run is missing or not finished."""
        path, advice = folder / RUN_RECORD, "finish the run first (lep run RECIPE.yaml)"
        if not path.is_file():
            if (folder / PAGE).is_file():
                advice += f", or open {folder / PAGE}, the page of the run as far as it came"
            raise CheckpointError(f"{folder} has no {RUN_RECORD}: {advice}")
        values = read_json(path)
        with foreign(f"{path} is no record of a run", advice, CheckpointError):
            seconds, cells = values.pop("seconds"), values.get("cells", [values])
            record = TypeAdapter(cls).validate_python({"seconds": seconds, "cells": cells})
            for stage in seconds:
                file_part(stage)
            if not record.cells:
                raise ValueError("it has no cells")
            for cell in record.cells:
                kinds = {"language": str, "propagate": list}
                if missing := [k for k in kinds if not isinstance(cell.recipe.get(k), kinds[k])]:
                    raise ValueError(f"its recipe has no {missing[0]}")
                for stage in (*cell.instruct_models.values(), *cell.base_models.values()):
                    file_part(stage)
            return record

    def save(self, folder: Path) -> None:
        cells = [asdict(cell) for cell in self.cells]
        values = {"seconds": self.seconds} | ({"cells": cells} if self.is_grid else cells[0])
        publish_text(folder / RUN_RECORD, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_scores(folder: Path, stage: str) -> list[Score]:
    """The scores that a stage of the run wrote."""
    return load_scores(folder / stage / "scores.json")
