"""All ways to carry embeddings over, on the lab pair: what `benchmarks/lab_pair.py` trained, propagated and scored.

    LEP_DATA=$PWD/runs/lab/corpus python benchmarks/lab_pair.py --tuned-seeds 0      (once)
    python benchmarks/lab_propagation.py [--auto]

For each seed every method makes an instruct model of that seed's adapted base and is scored on the held-out text of
the experiment; `--auto` also lets each seed choose, on training text and prompts made from it. What is finished is not
done again. Prints means with 95% t-intervals over the seeds, and what was chosen.
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
                propagate(
                    PAIR / "base",
                    PAIR / "instruct",
                    run / "pretrain",
                    model,
                    PropagateSettings(method=method),
                )
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
            found = propagate_auto(
                PAIR / "base",
                PAIR / "instruct",
                run / "pretrain",
                out / "auto",
                train,
                prompts,
                select=SelectSettings(),
            )
            (out / "auto.txt").write_text(f"{found.table('choose')}\n\n{found.table('report')}\n")
        (out / "run.json").write_text(json.dumps({"instruct_models": stages}) + "\n")
        folders.append(out)
    table = markdown(gather(folders, "instruct_models"))
    print(f"\n{len(folders)} seeds; mean ± 95% t-interval over the seeds\n\n{table}\n")
    for folder in folders:
        if (folder / "auto").exists():
            record = json.loads((folder / "auto" / "lep" / "selection.json").read_text())
            print(
                f"{folder.name}: chosen {record['chosen']}; on the other half {record['best on the other half']}"
            )


if __name__ == "__main__":
    main()
