"""Train the adapted model on the original instruct model's own answers, and on copying."""

import json
from dataclasses import replace
from pathlib import Path

from lep.calibration.answers import ANSWERS, COUNTS, KEPT
from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import read_messages, read_records
from lep.errors import CheckpointError, CorpusError
from lep.settings import CalibrateSettings
from lep.training.results import TuneResult
from lep.training.samples import Records
from lep.training.tune import CALIBRATION, NEW_ROWS, train_adapter


def calibrate(
    model: str | Path,
    answers: Path,
    output: Path,
    settings: CalibrateSettings,
    copies: Records | None = None,
    *,
    merge: bool = True,
) -> TuneResult:
    """Tune `model` on answers that `write_answers` left in a folder, and on copy tasks; write the result to `output`.

    `lep/tune.json` counts what was kept and dropped, `lep/answers.jsonl` holds all answers with their grades.

    Raises `CorpusError` for a folder without answers, `CheckpointError` for a model without a chat template.
    """
    if not (answers / KEPT).exists():
        raise CorpusError(f"{answers} holds no {KEPT}: give a folder that lep answer wrote")
    if not Checkpoint(model).check().tokenizer.chat_template:
        raise CheckpointError(
            f"{model} has no chat template, so it cannot be calibrated: give an instruct model"
        )
    kept, copies = read_messages(answers / KEPT), copies or []
    counts = {"answers": json.loads((answers / COUNTS).read_text()), "copy_tasks": len(copies)}
    every = [record for _, record in read_records(answers / ANSWERS)]
    scope = replace(NEW_ROWS if settings.train == "new_rows" else CALIBRATION, merge=merge)
    return train_adapter(model, kept + copies, output, settings, scope, facts=counts, answers=every)
