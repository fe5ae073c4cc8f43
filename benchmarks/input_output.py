"""What new input rows cost, and what new output rows cost, each with the other's part intact.

    python benchmarks/input_output.py RUN [--models FOLDER ...] [--texts 8] [--answers 10]

RUN is the folder of a `lep adapt` that has answers and an initialised model, which is measured, and
so are `--models` with the same vocabulary. Body and known rows are frozen, so a model that reads
old tokens is the original. On the held-out text of RUN and on the original's own answers, in bits
per byte:

    original   old tokens are read and predicted
    adapted    new tokens are read and predicted
    output     old tokens are read, new ones predicted: what is above `original`, output rows cost
    first      old tokens are read, and the first old piece of each new token is predicted
    input      new tokens are read, and that piece predicted: what is above `first`, input rows cost
"""

import argparse
import math
from itertools import islice
from pathlib import Path

import torch
from anchors import BLOCK, Corpus, Sample, Student
from real import Run

from lep.checkpoint.reader import Checkpoint
from lep.inference.models import load_model
from lep.training.trainable_rows import new_token_rows, split_tables

BATCH = 4
COLUMNS = ("original", "adapted", "output", "first", "input")


@torch.no_grad()
def costs(student: Student, samples: list[Sample], original: Checkpoint) -> list[float]:
    """Bits per byte by `COLUMNS`."""
    nats, size = torch.zeros(len(COLUMNS)), 0
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        after = student.states([sample.new for sample in batch])
        before = student.states([sample.old for sample in batch])
        for row, sample in enumerate(batch):
            ends = torch.tensor(sample.ends[:-1])
            first, learned = sample.old[sample.ends[0] + 1 :], torch.tensor(sample.labels)
            pieces = torch.tensor(sample.old)[ends + 1]
            new, old = after[row, sample.first - 1 : len(sample.new) - 1], before[row, ends]
            each = before[row, sample.ends[0] : len(sample.old) - 1]
            nats += torch.stack(
                [
                    of_known(student, each, torch.tensor(first)),
                    student.nats(new, learned).sum(),
                    student.nats(old, learned).sum(),
                    of_known(student, old, pieces),
                    of_known(student, new, pieces),
                ]
            )
            contents = original.vocabulary.contents
            size += sum(len(contents[token] or b"") for token in first)
    return (nats / math.log(2) / size).tolist()


def of_known(student: Student, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats of old tokens among old tokens."""
    logs = (hidden @ student.table.kept.T).log_softmax(1)
    return -logs.gather(1, labels[:, None]).sum()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--answers", type=int, default=10)
    a = parser.parse_args()
    run = Run(a.run)
    start = run.model("mean", a.run)
    answers = a.run / "adapt-answers" / "kept.jsonl"
    corpus = Corpus(
        Checkpoint(start), Checkpoint(run.original), [Path(run.heldout(run.new))], answers
    )
    new = set(new_token_rows(corpus.start)["input"].tolist())
    asked = (sample for sample in corpus.conversations() if new.intersection(sample.labels))
    given = {
        "text": [*islice(corpus.texts(BLOCK), a.texts)],
        "answers": [*islice(asked, a.answers)],
    }
    print(f"| model | of | {' | '.join(COLUMNS)} |\n{'|---' * (2 + len(COLUMNS))}|")
    for folder in [start, *a.models]:
        model, _ = load_model(folder)
        model.requires_grad_(False)
        tables = split_tables(model, new_token_rows(corpus.start))
        student = Student(model, [*tables.values()][-1], torch.empty(0))
        for name, samples in given.items():
            cells = [f"{value:.4f}" for value in costs(student, samples, corpus.original)]
            print(f"| {folder.name} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
