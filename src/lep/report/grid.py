"""Tables of a grid: one for each combination, with means over the seeds and their intervals."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lep.benchmark.tasks import task_names
from lep.evaluation.table import cells
from lep.report.run_record import RunRecord, read_scores
from lep.statistics import student_half_width

COARSE = 1e-9  # what rounding leaves of a spread of zero
RAISED = ("copy", "exact match")  # columns that calibration and tuning should raise
VERDICTS = {1: "raised", 0: "no sure change", -1: "lowered"}


@dataclass(frozen=True)
class Cell:
    """A figure of a model: its value by the file that records it, one per seed (or one for all)."""

    values: dict[str, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def half(self) -> float | None:
        """Half the width of the 95% t-interval over the seeds; None for a single value."""
        return student_half_width(list(self.values.values())) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"

    def __sub__(self, other: "Cell") -> "Cell":
        """The difference, paired by seed; a single value stands for every seed."""
        files = max(self.values, other.values, key=len)
        left, right = (
            each.values.values() if len(each.values) == len(files) else [each.mean] * len(files)
            for each in (self, other)
        )
        return Cell({file: a - b for file, a, b in zip(files, left, right, strict=True)})

    @property
    def sign(self) -> int:
        """1 or -1 if the interval excludes zero on that side, else 0.

        Also 0 for a single value, and if all seeds tie: that shows how coarse a figure is (one item
        of forty), not how certain.
        """
        if self.half is None or self.half <= COARSE or not abs(self.mean) > self.half:  # or NaN
            return 0
        return 1 if self.mean > 0 else -1


Rows = dict[str, dict[str, Cell]]  # by model and column


@dataclass(frozen=True)
class Block:
    """All models of one combination of the axes' values."""

    labels: dict[str, str]
    seeds: list[int]
    models: Rows

    @property
    def title(self) -> str:
        return ", ".join(f"{axis} {value}" for axis, value in self.labels.items()) or "all"

    @property
    def changes(self) -> Rows:
        """What calibration and tuning changed in each model, by column, paired by seed."""
        return {
            name: {c: row[c] - self.models[before][c] for c in row if c in self.models[before]}
            for name, row in self.models.items()
            if (before := name.rpartition(" + ")[0]) in self.models
        }

    def verdicts(self) -> list[str]:
        """For calibration and for tuning, the models in which copying and tasks rose or fell."""
        changes = {name.rpartition(" + ")[::2]: row for name, row in self.changes.items()}
        columns = [column for column in columns_of(self.models) if column.startswith(RAISED)]
        sentences = []
        for training in dict.fromkeys(after for _, after in changes):
            rows = {name: row for (name, after), row in changes.items() if after == training}
            for column in columns:
                models: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS.values()}
                for name in (name for name in rows if column in rows[name]):
                    models[VERDICTS[rows[name][column].sign]].append(name)
                parts = (
                    f"{verdict}: {', '.join(each)}" for verdict, each in models.items() if each
                )
                sentences.append(f"{training}, {column}: {'; '.join(parts)}")
        return sentences


def columns_of(models: dict[str, dict[str, Any]]) -> list[str]:
    """All columns of a table by rows, in the order in which they first appear."""
    return list(dict.fromkeys(column for row in models.values() for column in row))


def grid_blocks(folder: Path, run: RunRecord, *, base: bool = False) -> list[Block]:
    """The blocks of a grid's run, in its order: of its instruct models, or of its base models."""
    blocks: dict[tuple[str, ...], Block] = {}
    benchmark = task_names()
    for cell in run.cells:
        block = blocks.setdefault(tuple(cell.labels.values()), Block(cell.labels, [], {}))
        assert cell.seed is not None
        block.seeds.append(cell.seed)
        for title, stage in (cell.base_models if base else cell.instruct_models).items():
            row = block.models.setdefault(title, {})
            scores = read_scores(folder, stage)
            tasks = {f"{s.task} {s.metric}": s for s in scores if s.task in benchmark}
            for column, score in (cells(scores) | tasks).items():
                row.setdefault(column, Cell({})).values[f"{stage}/scores.json"] = score.value
    return list(blocks.values())


def grid_text(blocks: list[Block]) -> str:
    """The blocks as markdown tables."""
    return "\n\n".join(
        f"{block.title} (seeds {', '.join(map(str, block.seeds))})\n\n{markdown(block.models)}"
        for block in blocks
    )


def markdown(models: Rows) -> str:
    """A row for each model, a column for each figure."""
    columns = columns_of(models)
    rows = [[name, *(str(row.get(c, "-")) for c in columns)] for name, row in models.items()]
    head, *lines = (" | ".join(row) for row in [["model", *columns], *rows])
    rule = "|---" * (len(columns) + 1) + "|"
    return "\n".join([f"| {head} |", rule, *(f"| {line} |" for line in lines)])
