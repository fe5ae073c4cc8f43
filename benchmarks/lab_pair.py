"""The experiment on the lab pair: every method, several seeds, one table with intervals over the seeds.

    python lab/make_pair.py --data DATA                       (once: writes runs/lab/corpus)
    LEP_DATA=$PWD/runs/lab/corpus python benchmarks/lab_pair.py

Runs `recipes/lab-ru.yaml` once for each seed (what is finished is not run again) and prints a markdown table of the
mean over the seeds with its 95% t-interval; `lab_pair.json` in the output folder holds every figure.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

from lep.evaluation.table import cells
from lep.pipeline.recipe import load_recipe
from lep.pipeline.run import run

# 97.5th percentile of Student's t by degrees of freedom
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
RECIPE = Path(__file__).parent.parent / "recipes" / "lab-ru.yaml"


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95% interval over seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def gather(folders: list[Path], kind: str) -> dict[str, dict[str, list[float]]]:
    """`{model: {column: [value of each seed]}}`."""
    found: dict[str, dict[str, list[float]]] = {}
    for folder in folders:
        for name, stage in json.loads((folder / "run.json").read_text())[kind].items():
            for column, score in cells(json.loads((folder / stage / "scores.json").read_text())).items():
                found.setdefault(name, {}).setdefault(column, []).append(score["value"])
    return found


def markdown(found: dict[str, dict[str, list[float]]]) -> str:
    """A table: mean ± half width over the seeds; a plain number where the seeds cannot differ."""
    columns = list(dict.fromkeys(column for row in found.values() for column in row))
    lines = ["| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in found.items():
        values = []
        for column in columns:
            mean, half = interval(row[column]) if column in row else (math.nan, math.nan)
            same = math.isnan(half) or half == 0
            values.append("-" if math.isnan(mean) else f"{mean:.3f}" if same else f"{mean:.3f} ± {half:.3f}")
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/lab-ru"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table-only", action="store_true", help="print the table of the runs that are there")
    parser.add_argument("--tuned-seeds", type=int, default=1, help="how many of the seeds are calibrated and tuned")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE for the recipe")
    arguments = parser.parse_args()
    folders = [arguments.output / f"seed-{seed}" for seed in arguments.seeds]
    for number, (seed, folder) in enumerate(zip(arguments.seeds, folders, strict=True)):
        if not arguments.table_only:
            tuned = number < arguments.tuned_seeds
            stages = [f"{stage}.seed={seed}" if tuned else f"{stage}=null" for stage in ("calibrate", "tune")]
            run(load_recipe(RECIPE, [*arguments.settings, f"pretrain.seed={seed}", *stages]), folder)
    found = {kind: gather(folders, kind) for kind in ("instruct_models", "base_models")}
    (arguments.output / "lab_pair.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{len(folders)} seeds; mean ± 95% t-interval over the seeds\n")
    for table in found.values():
        print(markdown(table) + "\n")


if __name__ == "__main__":
    main()
