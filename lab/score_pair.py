"""Measure the lab pair on held-out text and write its model cards.

    python lab/score_pair.py --corpus runs/lab/corpus --pair lab/pair

Scores both models, and the instruct shift: the norm of the difference between instruct and base over the norm of
the base, for each table and for the body as a whole. Exits with an error when a required score is missed.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from lep.checkpoint.reader import Checkpoint
from lep.evaluation.score import Evaluation, score_model
from lep.settings import EvaluateSettings

REQUIRED = {
    "copy_sentence": 0.9,
    "first_word": 0.95,
    "last_word": 0.95,
}  # exact match, in both languages

CARD = """\
---
license: apache-2.0
language: [en, ru]
---

# lab {name}

{what} A Llama architecture of {parameters:.1f}M parameters with a byte-level BPE vocabulary of {vocabulary:,} tokens,
trained from nothing by `lab/make_pair.py` for the demo, the tests and the experiments of this project. It is far
too small to be useful for anything else.

Made with:

    python lab/make_pair.py --data DATA --output lab/pair
    python lab/score_pair.py --corpus runs/lab/corpus --pair lab/pair

Training: {tokens:,} tokens in {minutes:.0f} minutes on two CPU cores, peak learning rate {rate:g}.
{data}

## Measured on held-out text

| metric | language | task | value | 95% interval | n |
|---|---|---|---|---|---|
{scores}
{shift}"""

BASE_DATA = """\
Data: four fifths English (encyclopaedia, novels, documentation), one fifth Russian (novels, plays, documentation, news,
answers of language models), by characters, of the corpora that the project's data folder names. In a part of the
documents a few sentences are repeated on the spot, so that a model this small learns to copy."""

INSTRUCT_DATA = """\
Data: conversations made from the training text (copy a sentence or a paragraph, first, last and following word) in
both languages, and plain text; the loss is taken on answers and on plain text only."""


def shifts(pair: Path) -> dict[str, float]:
    """Norm of the instruct model's difference from the base over the base's norm."""
    base, instruct = Checkpoint(pair / "base"), Checkpoint(pair / "instruct")
    groups = {
        "input embeddings": [base.tables.input],
        "output embeddings": [base.tables.output or base.tables.input],
    }
    groups["body"] = [name for name in base.shard_of if name not in base.tables.names]
    found = {}
    for group, names in groups.items():
        before = torch.cat([base.tensor(name).double().flatten() for name in names])
        after = torch.cat([instruct.tensor(name).double().flatten() for name in names])
        found[group] = ((after - before).norm() / before.norm()).item()
    return found


def card(pair: Path, name: str, found: Evaluation) -> str:
    """The model card's text."""
    facts = json.loads((pair / name / "training.json").read_text())
    checkpoint = Checkpoint(pair / name)
    scores = "\n".join(
        f"| {s.metric} ({s.unit}) | {s.language} | {s.task or '-'} | {s.value:.3f} | {s.low:.3f}–{s.high:.3f} "
        f"| {s.count} |"
        for s in found.scores
    )
    shift = ""
    if name == "instruct":
        rows = "\n".join(f"| {group} | {value:.3f} |" for group, value in shifts(pair).items())
        shift = f"\n## Shift from the base model\n\n| part | norm of the difference over norm |\n|---|---|\n{rows}\n"
    return CARD.format(
        name=name,
        scores=scores,
        shift=shift,
        vocabulary=len(checkpoint.vocabulary),
        tokens=facts["training_tokens"],
        what="The base model of the pair."
        if name == "base"
        else "The instruct model, tuned in full from the base.",
        parameters=sum(checkpoint.tensor(t).numel() for t in checkpoint.shard_of) / 1e6,
        minutes=facts["seconds"] / 60,
        rate=facts["learning_rate"],
        data=BASE_DATA if name == "base" else INSTRUCT_DATA,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=Path("runs/lab/corpus"))
    parser.add_argument("--pair", type=Path, default=Path("lab/pair"))
    parser.add_argument("--items", type=int, default=400)
    arguments = parser.parse_args()
    text: dict[str, list[str | Path]] = {
        c: [arguments.corpus / f"{c}.heldout.jsonl"] for c in ("en", "ru")
    }
    settings, missed = EvaluateSettings(items=arguments.items, batch_size=100), []
    for name in ("base", "instruct"):
        found = score_model(arguments.pair / name, text, settings)
        (arguments.pair / name / "README.md").write_text(
            card(arguments.pair, name, found), encoding="utf-8"
        )
        for s in found.scores:
            print(
                f"{name:9}{s.metric:22}{s.language:4}{s.task or '-':16}{s.value:.3f} ({s.low:.3f}-{s.high:.3f})"
            )
            if s.metric == "exact match" and s.task in REQUIRED and s.value < REQUIRED[s.task]:
                missed.append(f"{s.language} {s.task}: {s.value:.3f} is below {REQUIRED[s.task]}")
    for group, value in shifts(arguments.pair).items():
        print(f"shift of the {group}: {value:.3f}")
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
