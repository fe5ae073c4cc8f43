"""Measure the lab pair on held-out text and write its model cards.

    python lab/score_pair.py --corpus runs/lab/corpus --pair lab/pair

The script scores both models and measures the instruct shift: the norm of the difference between
instruct and base over the norm of the base, for each table and for the whole body. It exits with an
error if a model misses a required score.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from lep.checkpoint.reader import Checkpoint
from lep.evaluation.score import Evaluation, score_model
from lep.settings import EvaluateSettings

# Least exact match, in both languages.
REQUIRED = {"copy_sentence": 0.9, "first_word": 0.95, "last_word": 0.95}

CARD = """\
---
license: apache-2.0
language: [en, ru]
---

# lab {name}

{what} It has a Llama architecture, {parameters:.1f}M parameters and a byte-level BPE vocabulary of
{vocabulary:,} tokens. `lab/make_pair.py` trained it from scratch for the demo, the tests and the
experiments of this project. It is far too small to be useful for anything else.

To reproduce it:

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
Data, by characters: four fifths English (encyclopaedia, novels, documentation), one fifth Russian
(novels, plays, documentation, news, answers of language models), from the corpora in the project's
data folder. Some documents repeat a few sentences, so that a model this small learns to copy."""

INSTRUCT_DATA = """\
Data: conversations generated from the training text in both languages (copy a sentence or a
paragraph; name the first, last or following word), and plain text. The loss covers only answers and
plain text."""


def shifts(pair: Path) -> dict[str, float]:
    """Norm of the difference between instruct and base over the norm of the base, by part."""
    base, instruct = Checkpoint(pair / "base"), Checkpoint(pair / "instruct")
    groups = {
        "input embeddings": [base.tables.input],
        "output embeddings": [base.tables.output or base.tables.input],
    }
    groups["body"] = [name for name in base.shard_of if name not in base.tables.names]
    result = {}
    for group, names in groups.items():
        before = torch.cat([base.tensor(name).double().flatten() for name in names])
        after = torch.cat([instruct.tensor(name).double().flatten() for name in names])
        result[group] = ((after - before).norm() / before.norm()).item()
    return result


def card(pair: Path, name: str, evaluation: Evaluation) -> str:
    """The text of the model card."""
    facts = json.loads((pair / name / "training.json").read_text(encoding="utf-8"))
    checkpoint = Checkpoint(pair / name)
    scores = "\n".join(
        f"| {s.metric} ({s.unit}) | {s.language} | {s.task or '-'} | {s.value:.3f} "
        f"| {s.low:.3f}–{s.high:.3f} | {s.count} |"
        for s in evaluation.scores
    )
    shift = ""
    if name == "instruct":
        rows = "\n".join(f"| {group} | {value:.3f} |" for group, value in shifts(pair).items())
        shift = (
            "\n## Shift from the base model\n\n"
            f"| part | norm of the difference over norm |\n|---|---|\n{rows}\n"
        )
    return CARD.format(
        name=name,
        scores=scores,
        shift=shift,
        vocabulary=len(checkpoint.vocabulary),
        tokens=facts["training_tokens"],
        what="The base model of the pair."
        if name == "base"
        else "The instruct model, tuned from the base with all parameters.",
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
        evaluation = score_model(arguments.pair / name, text, settings)
        (arguments.pair / name / "README.md").write_text(
            card(arguments.pair, name, evaluation), encoding="utf-8"
        )
        for s in evaluation.scores:
            print(
                f"{name:9}{s.metric:22}{s.language:4}{s.task or '-':16}{s.value:.3f} "
                f"({s.low:.3f}-{s.high:.3f})"
            )
            if s.metric == "exact match" and s.task in REQUIRED and s.value < REQUIRED[s.task]:
                missed.append(f"{s.language} {s.task}: {s.value:.3f} is below {REQUIRED[s.task]}")
    for group, value in shifts(arguments.pair).items():
        print(f"shift of the {group}: {value:.3f}")
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
