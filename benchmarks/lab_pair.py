"""The experiment on the lab pair: every method, several seeds, one table with intervals.

    python lab/make_pair.py --data DATA                       (once: writes runs/lab/corpus)
    LEP_DATA=$PWD/runs/lab/corpus python benchmarks/lab_pair.py

The script runs `recipes/lab-ru.yaml` once for each seed, skipping finished stages, and prints a
markdown table of means over the seeds with 95% t-intervals. `lab_pair.json` in the output folder
holds every figure.
"""

import argparse
import json
from pathlib import Path

from lep.evaluation.records import load_scores
from lep.evaluation.table import cells
from lep.pipeline.run import run_recipe
from lep.report.grid import Cell, markdown

RECIPE = Path(__file__).parent.parent / "recipes" / "lab-ru.yaml"


def gather(folders: list[Path], group: str) -> dict[str, dict[str, Cell]]:
    """The figures of a group of models, by model and column; each folder is the run of one seed."""
    models: dict[str, dict[str, Cell]] = {}
    for folder in folders:
        for name, stage in json.loads((folder / "run.json").read_text(encoding="utf-8"))[
            group
        ].items():
            path = folder / stage / "scores.json"
            row = models.setdefault(name, {})
            for column, score in cells(load_scores(path)).items():
                row.setdefault(column, Cell({})).values[str(path)] = score.value
    return models


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/lab-ru"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--table-only", action="store_true", help="print the table of existing runs"
    )
    parser.add_argument(
        "--tuned-seeds", type=int, default=1, help="how many seeds to calibrate and tune"
    )
    parser.add_argument("settings", nargs="*", help="KEY=VALUE for the recipe")
    arguments = parser.parse_args()
    folders = [arguments.output / f"seed-{seed}" for seed in arguments.seeds]
    for number, (seed, folder) in enumerate(zip(arguments.seeds, folders, strict=True)):
        if not arguments.table_only:
            tuned = number < arguments.tuned_seeds
            stages = [
                f"{stage}.seed={seed}" if tuned else f"{stage}=null"
                for stage in ("calibrate", "tune")
            ]
            settings = [*arguments.settings, f"pretrain.seed={seed}", *stages]
            print(run_recipe(RECIPE, folder, overrides=settings))
    groups = {group: gather(folders, group) for group in ("instruct_models", "base_models")}
    values = {
        group: {
            name: {column: list(cell.values.values()) for column, cell in row.items()}
            for name, row in models.items()
        }
        for group, models in groups.items()
    }
    (arguments.output / "lab_pair.json").write_text(
        json.dumps(values, indent=1) + "\n", encoding="utf-8"
    )
    print(f"\n{len(folders)} seeds; mean ± 95% t-interval over the seeds\n")
    for models in groups.values():
        print(markdown(models) + "\n")


if __name__ == "__main__":
    main()
