"""One language pack for two differently tuned instruct models of the lab pair.

    LEP_DATA=$PWD/runs/lab/corpus python benchmarks/lab_pair.py --tuned-seeds 0      (once)
    python benchmarks/lab_pack.py

The second instruct model is the first one, tuned further (all projections and the head) on tasks
generated from English training text. Two packs are applied to both models: one of all rows that the
adapted base learned, one of its new rows alone. Each model is scored before and after on the
experiment's held-out text. Finished steps are skipped.
"""

import argparse
import json
import shutil
from pathlib import Path

from lab_pair import gather

from lep.corpus.read import read_documents, write_records
from lep.corpus.tasks import make_tasks
from lep.pipeline.recipe_file import load_recipe
from lep.pipeline.stages import write_evaluation
from lep.report.grid import markdown
from lep.settings import TuneSettings
from lep.training.tune import tune
from lep.transfer.language_pack import apply_pack, make_pack

ROOT = Path(__file__).parent.parent
PAIR = ROOT / "lab" / "pair"
TASKS = 300
SETTINGS = TuneSettings(
    learning_rate=1e-3, batch_size=32, epochs=1, copy_tasks=0, precision="float32"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/lab-ru/seed-0"))
    parser.add_argument("--output", type=Path, default=Path("runs/lab-pack"))
    arguments = parser.parse_args()
    run, out = arguments.run, arguments.output
    out.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(ROOT / "recipes" / "lab-ru.yaml", ["calibrate=null", "tune=null"])
    text = {code: [run / "corpus" / f"{code}.heldout.jsonl"] for code in ("ru", "en")}
    tuned = out / "tuned"
    if not tuned.exists():
        documents = read_documents([run / "corpus" / "en.train.jsonl"])
        items = make_tasks(documents, "en", list(recipe.evaluate.tasks), count=TASKS, seed=7)
        write_records(out / "tasks.jsonl", [item.record() for item in items])
        tune(PAIR / "instruct", out / "tasks.jsonl", tuned, SETTINGS)
    stages = {}
    for rows, new_only in (("all rows", False), ("new rows", True)):
        pack = out / f"{rows.replace(' ', '-')}.lep"
        if not pack.exists():
            make_pack(PAIR / "base", run / "pretrain", pack, new_only=new_only)
        for name, model in (("instruct", PAIR / "instruct"), ("tuned", tuned)):
            before, after = f"evaluate-{name}", f"evaluate-{name}-{pack.stem}"
            stages |= {name: before, f"{name} + pack, {rows}": after}
            if not (out / before / "scores.json").exists():
                write_evaluation(model, text, out / before, recipe.evaluate)
            if not (out / after / "scores.json").exists():
                shutil.rmtree(out / "applied", ignore_errors=True)
                cosines = apply_pack(pack, model, out / "applied").cosines
                print(f"{name}, {rows}: mean cosine with the base", cosines, flush=True)
                write_evaluation(out / "applied", text, out / after, recipe.evaluate)
                shutil.rmtree(out / "applied")
    (out / "run.json").write_text(
        json.dumps({"instruct_models": dict(sorted(stages.items()))}) + "\n", encoding="utf-8"
    )
    sizes = {pack.name: pack.stat().st_size for pack in sorted(out.glob("*.lep"))}
    print(f"\nbytes of the packs: {sizes}\n\n{markdown(gather([out], 'instruct_models'))}")


if __name__ == "__main__":
    main()
