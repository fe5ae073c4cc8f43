"""`run.json`: which stage holds the scores of which model."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lep.errors import CheckpointError
from lep.publish import publish_text

RUN_FILE = "run.json"


@dataclass(frozen=True)
class CellRecord:
    """One cell of a grid, or a whole recipe: its models by title, each with the folder of its evaluation."""

    labels: dict[str, str]
    seed: int | None  # None without a grid
    recipe: dict[str, Any]
    instruct_models: dict[str, str]
    base_models: dict[str, str]


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
        """Raises `CheckpointError` when the run is missing or not finished."""
        path = folder / RUN_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no {RUN_FILE}: finish the run first (lep run RECIPE.yaml)"
            )
        values = json.loads(path.read_text(encoding="utf-8"))
        seconds = values.pop("seconds")
        return cls(seconds, [CellRecord(**cell) for cell in values.get("cells", [values])])

    def save(self, folder: Path) -> None:
        cells = [asdict(cell) for cell in self.cells]
        values = {"seconds": self.seconds} | ({"cells": cells} if self.is_grid else cells[0])
        publish_text(folder / RUN_FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def scores_file(stage: str) -> str:
    """The scores of an evaluated model, relative to the run folder."""
    return f"{stage}/scores.json"


def read_scores(folder: Path, stage: str) -> list[dict[str, Any]]:
    return json.loads((folder / scores_file(stage)).read_text(encoding="utf-8"))
