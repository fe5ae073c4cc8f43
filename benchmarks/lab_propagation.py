"""Every method of propagation on the models that `benchmarks/lab_pair.py` trained.

    LEP_DATA=$PWD/runs/lab/corpus python benchmarks/lab_pair.py --tuned-seeds 0      (once)
    python benchmarks/lab_propagation.py [--auto]

For each seed, every method propagates that seed's adapted base, and the result is scored on the
experiment's held-out text. `--auto` also chooses a method for each seed, on training text and on
prompts generated from it. Finished steps are skipped. The script prints means with 95% t-intervals
over the seeds, and the choices.
"""

import argparse
import json
import shutil
from pathlib import Path

from lab_pair import gather

from lep.pipeline.recipe_file import load_recipe
from lep.pipeline.stages import write_evaluation
from lep.propagation import METHODS
from lep.report.grid import markdown
from lep.selection.auto import propagate_auto
from lep.settings import PropagateSettings, SelectSettings
from lep.transfer.propagate import propagate

ROOT = Path(__file__).parent.parent
PAIR = ROOT / "lab" / "pair"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/lab-ru"))
    parser.add_argument("--output", type=Path, default=Path("runs/lab-propagation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--auto", action="store_true")
    arguments = parser.parse_args()
    recipe = load_recipe(ROOT / "recipes" / "lab-ru.yaml", ["calibrate=null", "tune=null"])
    folders = []
    for seed in arguments.seeds:
        run, out = arguments.runs / f"seed-{seed}", arguments.output / f"seed-{seed}"
        out.mkdir(parents=True, exist_ok=True)
        text = {code: [run / "corpus" / f"{code}.heldout.jsonl"] for code in ("ru", "en")}
        stages = {}
        for method in METHODS:
            stages[method] = method
            if not (out / method / "scores.json").exists():
                model = out / "model"
                shutil.rmtree(model, ignore_errors=True)
                settings = PropagateSettings(method=method)
                propagate(PAIR / "base", PAIR / "instruct", run / "pretrain", model, settings)
                write_evaluation(model, text, out / method, recipe.evaluate)
                shutil.rmtree(model)
        for name, stage in (
            ("original instruct", "evaluate-instruct"),
            ("untrained", "evaluate-init-instruct"),
        ):
            source = run if (run / stage).exists() else arguments.runs / "seed-0"
            shutil.copytree(source / stage, out / stage, dirs_exist_ok=True)
            stages[name] = stage
        if arguments.auto and not (out / "auto").exists():
            train = {code: [run / "corpus" / f"{code}.train.jsonl"] for code in ("ru", "en")}
            prompts = arguments.runs / "seed-0" / "tasks" / "prompts.jsonl"
            selection = propagate_auto(
                PAIR / "base",
                PAIR / "instruct",
                run / "pretrain",
                out / "auto",
                train,
                prompts,
                select=SelectSettings(),
            )
            tables = [selection.table(half) for half in ("choose", "report")]
            (out / "auto.txt").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
        (out / "run.json").write_text(
            json.dumps({"instruct_models": stages}) + "\n", encoding="utf-8"
        )
        folders.append(out)
    table = markdown(gather(folders, "instruct_models"))
    print(f"\n{len(folders)} seeds; mean ± 95% t-interval over the seeds\n\n{table}\n")
    for folder in folders:
        if (folder / "auto").exists():
            record = json.loads(
                (folder / "auto" / "lep" / "selection.json").read_text(encoding="utf-8")
            )
            print(
                f"{folder.name}: chosen {record['chosen']}; "
                f"on the other half {record['best on the other half']}"
            )


if __name__ == "__main__":
    main()
