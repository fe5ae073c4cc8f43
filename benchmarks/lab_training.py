"""What to train on the lab pair: all rows of the base, its new rows, or the instruct model's.

    LEP_DATA=$PWD/runs/lab/corpus python benchmarks/lab_pair.py --tuned-seeds 0      (once)
    python benchmarks/lab_training.py [--seeds 0 1 2] [--tokens 2000000]

Each seed has three arms with the same tokens and settings. `embeddings` and `new_rows` train the
base and then propagate (`conversion` and `new-rows`; also `residual` if all rows were trained).
`direct` trains the new rows of the instruct model, without propagation. The script prints bits per
byte of text held out from training at eight points, and the scores of the finished instruct models
on the experiment's held-out text. Finished steps are skipped.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path

from lab_pair import gather

from lep.pipeline.recipe_file import load_recipe
from lep.pipeline.stages import write_evaluation
from lep.report.grid import markdown
from lep.settings import PretrainSettings, PropagateSettings
from lep.training.pretrain import pretrain
from lep.transfer.initialise import initialise
from lep.transfer.propagate import propagate

ROOT = Path(__file__).parent.parent
PAIR = ROOT / "lab" / "pair"
ARMS = {"embeddings": "base", "new_rows": "base", "direct": "instruct"}
METHODS = {
    "embeddings": ("conversion", "residual", "new-rows"),
    "new_rows": ("conversion", "new-rows"),
}
# The last documents of the training file are held out, to evaluate during training.
LOOK_SECTIONS = 60


def split_training_text(source: Path, folder: Path) -> tuple[Path, Path]:
    """Write all but the last sections, and the last ones, to two files."""
    train, look = folder / f"{source.name}.train.jsonl", folder / f"{source.name}.look.jsonl"
    if not look.exists():
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        train.write_text("".join(lines[:-LOOK_SECTIONS]), encoding="utf-8")
        look.write_text("".join(lines[-LOOK_SECTIONS:]), encoding="utf-8")
    return train, look


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/lab-ru"))
    parser.add_argument("--output", type=Path, default=Path("runs/lab-training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    arguments = parser.parse_args()
    recipe = load_recipe(ROOT / "recipes" / "lab-ru.yaml", ["calibrate=null", "tune=null"])
    first = arguments.runs / "seed-0"
    text = {code: [first / "corpus" / f"{code}.heldout.jsonl"] for code in ("ru", "en")}
    arguments.output.mkdir(parents=True, exist_ok=True)
    split = {
        code: split_training_text(first / "corpus" / f"{code}.train.jsonl", arguments.output)
        for code in text
    }
    for name in ("base", "instruct"):
        if not (arguments.output / name).exists():
            initialise(PAIR / name, first / "tokenizer", arguments.output / name)
    folders, curves = [], {}
    for seed in arguments.seeds:
        out = arguments.output / f"seed-{seed}"
        out.mkdir(exist_ok=True)
        stages = {}
        for name, stage in (
            ("original instruct", "evaluate-instruct"),
            ("untrained", "evaluate-init-instruct"),
        ):
            shutil.copytree(first / stage, out / stage, dirs_exist_ok=True)
            stages[name] = stage
        for arm, start in ARMS.items():
            settings = PretrainSettings(
                tokens=arguments.tokens,
                learning_rate=arguments.learning_rate,
                weight_decay=0,
                block_size=512,
                batch_tokens=8_192,
                precision="float32",
                seed=seed,
                train="embeddings" if arm == "embeddings" else "new_rows",
                eval_text={code: [str(look)] for code, (_, look) in split.items()},
            )
            if not (out / arm).exists():
                pretrain(arguments.output / start, [split["ru"][0]], out / arm, settings)
            record = json.loads((out / arm / "lep" / "pretrain.json").read_text(encoding="utf-8"))
            curves.setdefault(arm, []).append(
                [{"step": look["step"]} | look["bits_per_byte"] for look in record["looks"]]
            )
            for method in METHODS.get(arm, ("",)):
                name = f"{arm} + {method}" if method else arm
                stages[name] = f"evaluate-{arm}-{method}".strip("-")
                if (out / stages[name] / "scores.json").exists():
                    continue
                model = out / "model" if method else out / arm
                if method:
                    shutil.rmtree(model, ignore_errors=True)
                    chosen = PropagateSettings(method=method)
                    propagate(PAIR / "base", PAIR / "instruct", out / arm, model, chosen)
                write_evaluation(model, text, out / stages[name], recipe.evaluate)
                if method:
                    shutil.rmtree(model)
        (out / "run.json").write_text(
            json.dumps({"instruct_models": stages}) + "\n", encoding="utf-8"
        )
        folders.append(out)
    print(f"\n{len(folders)} seeds, {arguments.tokens:,} tokens; ", end="")
    print("mean ± 95% t-interval over the seeds\n")
    print(markdown(gather(folders, "instruct_models")))
    print("\nbits per byte of text held out from training, by step (ru, en)\n")
    for arm, runs in curves.items():
        looks = []
        for points in zip(*runs, strict=True):
            ru, en = (statistics.fmean(point[code] for point in points) for code in text)
            looks.append(f"{points[0]['step']}: {ru:.3f}, {en:.3f}")
        print(f"{arm}: {'; '.join(looks)}")


if __name__ == "__main__":
    main()
