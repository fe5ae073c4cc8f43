"""Tables of a grid: one for each combination, means over the seeds with their intervals, each with its records."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lep.benchmark.tasks import task_names
from lep.evaluation.records import load_scores
from lep.evaluation.table import cells
from lep.statistics import student_half_width

COARSE = 1e-9  # what rounding leaves of a spread of zero
RAISED = ("copy", "exact match")  # columns that calibration and tuning are for


@dataclass(frozen=True)
class Cell:
    """A figure of a model: its value by the place of the record that holds it, one a seed (or one for all)."""

    values: dict[str, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def half(self) -> float | None:
        """Half the width of the 95% t-interval over the seeds; None where there is one value."""
        return interval(list(self.values.values()))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"

    def __sub__(self, other: "Cell") -> "Cell":
        """The difference, paired by seed; what does not depend on the seed is the same for each."""
        wide = max(self.values, other.values, key=len)
        sides = [
            list(each.values.values()) if len(each.values) == len(wide) else [each.mean] * len(wide)
            for each in (self, other)
        ]
        return Cell({place: a - b for place, a, b in zip(wide, *sides, strict=True)})

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out zero on that side, else 0.

        Also 0 of a single value, and where all seeds have the same one: that says how coarse a figure is (one item of
        forty), not how sure.
        """
        if self.half is None or self.half <= COARSE or abs(self.mean) <= self.half:
            return 0
        return 1 if self.mean > 0 else -1


@dataclass(frozen=True)
class Block:
    """All models of one combination of the axes' values."""

    labels: dict[str, str]
    seeds: list[int]
    models: dict[str, dict[str, Cell]]  # by column

    @property
    def title(self) -> str:
        return ", ".join(f"{axis} {value}" for axis, value in self.labels.items()) or "all"

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.models.values() for column in row))

    @property
    def changes(self) -> dict[str, dict[str, Cell]]:
        """What calibration and tuning changed in each model, by column, paired by seed."""
        return {
            name: {column: row[column] - self.models[before][column] for column in row}
            for name, row in self.models.items()
            if (before := name.rpartition(" + ")[0]) in self.models
        }

    def verdicts(self) -> list[str]:
        """For each kind of training after propagation: in which models it surely raised copying, and tasks."""
        said = []
        for kind in dict.fromkeys(name.rpartition(" + ")[2] for name in self.changes):
            rows = {
                n.rpartition(" + ")[0]: row
                for n, row in self.changes.items()
                if n.endswith(f" + {kind}")
            }
            for column in (c for c in self.columns if c.startswith(RAISED)):
                signs = {name: row[column].sign for name, row in rows.items() if column in row}
                words = {1: "raised", 0: "no sure change", -1: "lowered"}
                parts = (
                    f"{word}: {', '.join(name for name, sign in signs.items() if sign == which)}"
                    for which, word in words.items()
                    if which in signs.values()
                )
                said.append(f"{kind}, {column}: {'; '.join(parts)}")
        return said


def interval(values: list[float]) -> float | None:
    """Half the width of the 95% t-interval of the mean of the values; None for a single one."""
    return student_half_width(values) if len(values) > 1 else None


def grid_blocks(folder: Path, run: dict[str, Any], kind: str = "instruct_models") -> list[Block]:
    """The blocks of a grid's run, in its order; `kind` is also `base_models`."""
    blocks: list[Block] = []
    benchmark = task_names()
    for cell in run["cells"]:
        block = next((b for b in blocks if b.labels == cell["labels"]), None)
        if block is None:
            block = Block(cell["labels"], [], {})
            blocks.append(block)
        block.seeds.append(cell["seed"])
        for model, stage in cell[kind].items():
            place = f"{stage}/scores.json"
            row = block.models.setdefault(model, {})
            scores = load_scores(folder / place)
            shown = cells(scores) | {
                f"{s.task} {s.metric}": s for s in scores if s.task in benchmark
            }
            for column, score in shown.items():
                row.setdefault(column, Cell({})).values[place] = score.value
    return blocks


def grid_text(blocks: list[Block]) -> str:
    """The blocks as markdown tables."""
    return "\n\n".join(
        f"{block.title} (seeds {', '.join(map(str, block.seeds))})\n\n{markdown(block.models)}"
        for block in blocks
    )


def markdown(models: dict[str, dict[str, Cell]]) -> str:
    """A row a model, a column a figure."""
    columns = list(dict.fromkeys(column for row in models.values() for column in row))
    lines = ["| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(str(row[c]) if c in row else "-" for c in columns) + " |"
        for name, row in models.items()
    ]
    return "\n".join(lines)
