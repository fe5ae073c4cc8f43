"""Joint training on a real model, its streams one by one, and two published ways beside it.

    python benchmarks/real.py RUN --output DIR [--arms ...] [--tokens 40000] [--seed 0]
    python benchmarks/real.py RUN --output DIR --data DATA [--arms ...]

The first command trains the arms, the second measures those that there are and prints the tables.

RUN is the folder of a finished `lep adapt`: its text, answers, practice tasks and initialised model
are those of all arms, so that an arm's training is all that differs. Arms, with equal tokens but
for the first three:

    original      the instruct model
    mean          new rows as `lep init` makes them, no training
    adapt         the model of RUN, as long as its recipe says
    mixture       the usual mixture
    text          text of the new language alone
    no-answers    the mixture without the original's answers, in both languages
    no-practice   the mixture without practice tasks
    less-practice the mixture with fewer practice tasks, and text instead
    no-old        the mixture without text and answers of the old language
    token-distillation, alm   see anchors.py

Models are measured on text that no arm was chosen on: Wikipedia and news (DATA/eval/ru and
DATA/bench), English text held out by RUN, tasks made from them, the first model's own answers to
users' prompts (DATA/bench), and RuBLiMP or other benchmarks; --characters, --items, --prompts and
--limit say how much, and 0 items or a limit of 0 leave tasks out. Differences from the original
have 95% intervals from a paired bootstrap over documents, prompts or items. What is finished is
read again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import anchors
import real_scores
from real_scores import BENCHMARKS, TABLES, Sizes, by_column, cell

import lep
from lep.checkpoint.reader import Checkpoint
from lep.settings import NewRowsSettings
from lep.training.data import batch_of

ALONE = {"answers": 0, "practice": 0, "old_text": 0, "old_answers": 0}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixture": {},
    "text": {"shares": ALONE},
    "no-answers": {"shares": {"answers": 0, "old_answers": 0}},
    "no-practice": {"shares": {"practice": 0}},
    "less-practice": {"shares": {"text": 0.52, "practice": 0.2}},
    "no-old": {"shares": {"old_text": 0, "old_answers": 0}},
}
GIVEN = {"mean": "init-instruct", "adapt": "adapt"}  # stages of the run
TRAINED = [*MIXTURES, *anchors.LOSSES]
ARMS = ["original", *GIVEN, *TRAINED]
LOOKS = 4
TRAINING = "lep/pretrain.json"
LOOKED_AT = {"text": "bits_per_byte", "repeated text": "copied_bits_per_byte"}
LEAST_SHARE = 0.01  # of the time of a run, for a line in the table of stages


class Run:
    """The folder of a `lep adapt`, and what its arms have in common."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        recipe = lep.load_recipe(folder / "recipe.yaml")
        self.original = Path(recipe.instruct or "")
        self.new, self.old = recipe.language, recipe.old_languages

    def text(self, language: str, side: str = "rest") -> str:
        return str(self.folder / "looks" / f"{language}.{side}.jsonl")

    def heldout(self, language: str) -> str:
        return str(self.folder / "corpus" / f"{language}.heldout.jsonl")

    def model(self, arm: str, output: Path) -> Path:
        if arm == "original":
            return self.original
        return self.folder / GIVEN[arm] if arm in GIVEN else output / arm


def train(run: Run, output: Path, arm: str, tokens: int, seed: int) -> None:
    folder = run.model(arm, output)
    if folder.exists():
        return
    if arm in anchors.LOSSES:
        corpus = anchors.Corpus(
            Checkpoint(run.model("mean", output)),
            Checkpoint(run.original),
            [Path(run.text(run.new))],
            run.folder / "adapt-answers" / "kept.jsonl",
        )
        batch = batch_of(NewRowsSettings(tokens=tokens))
        anchors.train(corpus, arm, folder, tokens=tokens, batch=batch, seed=seed)
        return
    settings = NewRowsSettings(
        tokens=tokens,
        seed=seed,
        checkpoints=LOOKS,
        eval_text={code: [run.text(code, "looks")] for code in (run.new, *run.old)},
        old_text=[run.text(code) for code in run.old],
        answers=str(run.folder / "adapt-answers"),
        practice_tasks=str(run.folder / "practice"),
        **MIXTURES[arm],
    )
    print(lep.pretrain(run.model("mean", output), [run.text(run.new)], folder, settings))


def cost(run: Run, output: Path, arm: str) -> tuple[str, str]:
    """Tokens an arm was trained on, and seconds without looks."""
    folder = run.model(arm, output) / "lep"
    for name in ("pretrain.json", "anchor.json"):
        if (folder / name).exists():
            record = json.loads((folder / name).read_text(encoding="utf-8"))
            seconds = record["seconds"] - record.get("look_seconds", 0)
            return f"{record['tokens']:,}", f"{seconds:,.0f}"
    return "-", "-"


def tables(
    run: Run,
    output: Path,
    scores: Path,
    given: tuple[Any, Any],
    arms: list[str],
    drawing: Path | None,
    against: str,
    beside: Path | None,
) -> None:
    """Score what is not scored yet, print a row for each arm that there is, and draw them.

    `given` is what every model is given, `scores` the folder that keeps their records. Rows are
    compared with the arm `against`, or with the scores in the folder `beside`.
    """
    columns = {}
    if beside:
        against = str(beside)
        columns[against] = by_column(real_scores.read(beside))
    for arm in (arm for arm in ARMS if arm in (*arms, "original", against)):
        model = run.model(arm, output)
        if model.exists():
            folder = scores / "scores" / arm
            columns[arm] = by_column(real_scores.scored(model, run.original, given, folder))
    reference = columns[against]
    for title, shown in TABLES.items():
        if not any(column.title in found for found in columns.values() for column in shown):
            continue
        head = ["arm", "tokens", "seconds", *(column.title for column in shown)]
        print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
        for arm, found in columns.items():
            is_reference = arm == against
            cells = [
                cell(c, found.get(c.title), reference.get(c.title), is_reference) for c in shown
            ]
            known = ("-", "-") if arm not in ARMS else cost(run, output, arm)
            print(f"| {' | '.join([arm, *known, *cells])} |")
    if drawing:
        real_scores.draw(columns, drawing)


def stages(run: Run) -> None:
    """Print where the time of `lep adapt` went."""
    records = [
        json.loads(file.read_text(encoding="utf-8")) for file in run.folder.glob("*/lep_stage.json")
    ]
    seconds = {record["stage"]: record["seconds"] for record in records}
    whole = sum(seconds.values())
    print("\nStages of the run\n\n| stage | seconds | share |\n|---|---|---|")
    for stage, taken in sorted(seconds.items(), key=lambda item: -item[1]):
        if taken >= LEAST_SHARE * whole:
            print(f"| {stage} | {taken:,.0f} | {taken / whole:.0%} |")
    print(f"| all | {whole:,.0f} | 100% |")


def curve(run: Run, drawing: Path | None) -> None:
    """Print, and draw, the looks of `lep adapt` at text of its own sources that is held out."""
    record = json.loads((run.model("adapt", run.folder) / TRAINING).read_text(encoding="utf-8"))
    per_step = record["tokens"] / record["steps"]
    languages = (run.new, *run.old)
    head = " | ".join(f"{code} {what}" for what in LOOKED_AT for code in languages)
    print(f"\nWhile `adapt` trained, bits a byte\n\n| tokens | {head} |")
    print("|---" * (1 + len(languages) * len(LOOKED_AT)) + "|")
    lines: dict[str, list[float]] = {}
    tokens = [round(look["step"] * per_step) for look in record["looks"]]
    for count, look in zip(tokens, record["looks"], strict=True):
        cells = []
        for what, field in LOOKED_AT.items():
            for code in languages:
                lines.setdefault(f"{code} {what}", []).append(look[field][code])
                cells.append(f"{look[field][code]:.4f}")
        print(f"| {count:,} | {' | '.join(cells)} |")
    if drawing:
        real_scores.draw_curve(tokens, lines, drawing)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="score the arms that there are on its items")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=ARMS)
    parser.add_argument("--against", choices=ARMS, default="original", help="what is compared with")
    parser.add_argument(
        "--beside", type=Path, help="scores of a model of another run to compare with"
    )
    parser.add_argument("--languages", nargs="+", default=["ru", "en"], help="to score")
    parser.add_argument("--benchmarks", nargs="*", choices=BENCHMARKS, default=["rublimp"])
    parser.add_argument("--scores", type=Path, help="folder for scores of other sizes")
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="SVG file to write: the arms")
    parser.add_argument("--curve", type=Path, help="SVG file to write: looks while adapt trained")
    for name, size in vars(Sizes()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    a = parser.parse_args()
    run = Run(a.run)
    a.output.mkdir(parents=True, exist_ok=True)
    if a.data:
        sizes = Sizes(**{name: getattr(a, name) for name in vars(Sizes())})
        scores, english = a.scores or a.output, run.heldout(run.old[0])
        given = real_scores.material(a.data, english, scores, sizes, a.languages, a.benchmarks)
        tables(run, a.output, scores, given, a.arms, a.figure, a.against, a.beside)
    if a.data or a.curve:
        stages(run)
        curve(run, a.curve)
        return
    for arm in (arm for arm in a.arms if arm in TRAINED):
        train(run, a.output, arm, a.tokens, a.seed)


if __name__ == "__main__":
    main()
