"""Arms of `real.py` with several seeds: means over the seeds with 95% t-intervals.

    python benchmarks/real_seeds.py SCORES SCORES SCORES [--against mixture]

Each SCORES is the folder of one seed's scores (`real.py --scores`); it holds `scores/original` and
the arms. A cell has the ratio to the original's value, or the difference from it; the second table
has the same beside the arm `--against`, paired by seed.
"""

import argparse
import math
from pathlib import Path

import real_scores
from real_scores import TABLES, Column, by_column

from lep.evaluation.measures import Measure
from lep.statistics import student_half_width

Scores = dict[str, dict[str, Measure]]  # by arm and column


def scores(folder: Path) -> Scores:
    return {
        arm.name: by_column(real_scores.read(arm)) for arm in sorted((folder / "scores").iterdir())
    }


def spread(column: Column, pairs: list[tuple[Measure, Measure]]) -> str:
    """The mean over the seeds of a ratio or a difference; ratios are averaged as logarithms."""
    values = [real_scores.compared(column, *pair)[0] for pair in pairs]
    if not column.ratio:
        mean, half = sum(values) / len(values), student_half_width(values)
        return f"{mean:+.{column.digits}f} ({mean - half:+.3f} to {mean + half:+.3f})"
    logs = [math.log(value) for value in values]
    mean, half = sum(logs) / len(logs), student_half_width(logs)
    shown = [f"{math.exp(x):.{column.digits}f}" for x in (mean, mean - half, mean + half)]
    return f"x{shown[0]} ({shown[1]} to {shown[2]})"


def table(seeds: list[Scores], against: str) -> str:
    """A row for each arm that every seed has."""
    arms = [arm for arm in seeds[0] if all(arm in each for each in seeds) and arm != against]
    columns = [
        column
        for columns in TABLES.values()
        for column in columns
        if all(column.title in each[arm] for each in seeds for arm in (*arms, against))
    ]
    lines = [["arm", *(column.title for column in columns)], ["---"] * (1 + len(columns))]
    for arm in arms:
        cells = [
            spread(
                column, [(each[arm][column.title], each[against][column.title]) for each in seeds]
            )
            for column in columns
        ]
        lines.append([arm, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scores", nargs="+", type=Path)
    parser.add_argument("--against", default="mixture")
    a = parser.parse_args()
    seeds = [scores(folder) for folder in a.scores]
    for against in ("original", a.against):
        print(f"\nBeside {against}, {len(seeds)} seeds\n\n{table(seeds, against)}")


if __name__ == "__main__":
    main()
