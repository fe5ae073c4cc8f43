"""Evaluate several models into one folder, one table."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import write_records
from lep.evaluation.evaluate import evaluate, items
from lep.evaluation.table import text_table
from lep.publish import publishing
from lep.settings import EvaluateSettings


def compare(models: list[str], text: dict[str, list[str | Path]], output: Path, settings: EvaluateSettings) -> str:
    """Write `scores.json`, `records.jsonl` and `table.txt` for the models to `output`; returns the table.

    All models are opened and all tasks made before the first one is scored, so that faults show at once.
    """
    for model in models:
        Checkpoint(model).check()
    items(text, settings)
    scores, records = {}, []
    with publishing(output) as partial:
        for name, model in zip(short_names(models), models, strict=True):
            found = evaluate(model, text, settings)
            scores[name] = [asdict(score) for score in found.scores]
            records += [{"model": name} | record for record in found.records]
        (partial / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
        write_records(partial / "records.jsonl", records)
        table = text_table(scores)
        (partial / "table.txt").write_text(table + "\n")
    return table


def short_names(models: list[str]) -> list[str]:
    """The last part of each path, the whole path where two models would have the same name."""
    last = [Path(model).name or model for model in models]
    counts = Counter(last)
    return [name if counts[name] == 1 else model for name, model in zip(last, models, strict=True)]
