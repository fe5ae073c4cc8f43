"""Train the adapted model on the original instruct model's own answers, and on copying."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lep.calibration.answers import ANSWERS, COUNTS, KEPT
from lep.checkpoint.reader import Checkpoint
from lep.corpus.files import Text
from lep.corpus.read import read_messages, read_records
from lep.errors import CheckpointError, CorpusError
from lep.files import read_json
from lep.settings import CalibrateSettings
from lep.training.results import TuneResult
from lep.training.samples import Records
from lep.training.tune import CALIBRATION, NEW_ROWS, copy_tasks, train_adapter


def calibrate(
    model: str | Path,
    answers: str | Path,
    output: str | Path,
    settings: CalibrateSettings | None = None,
    copies: Records | None = None,
    *,
    text: Text | None = None,
    heldout: Text | None = None,
    merge: bool = True,
    **options: Any,
) -> TuneResult:
    """Tune `model` on the folder of `answer` and on copy tasks, and write it to `output`.

    `copy_tasks` of each language are made from `text`, {language: files}, and share no text with
    `heldout`; or `copies` are given as records. `lep/tune.json` counts the answers by outcome,
    `lep/answers.jsonl` holds them all with their grades. With `merge=False` the adapter is left
    beside the model, in `adapter/`.

    Raises `CorpusError` for a folder without answers and for copy tasks without text,
    `CheckpointError` for a model without a chat template.
    """
    answers, output = Path(answers), Path(output)
    settings = CalibrateSettings.given(settings, options)
    if not (answers / KEPT).exists():
        raise CorpusError(f"{answers} holds no {KEPT}: give a folder that lep answer wrote")
    if not Checkpoint(model).check().tokenizer.chat_template:
        raise CheckpointError(
            f"{model} has no chat template, so it cannot be calibrated: give an instruct model"
        )
    if copies is None:
        copies = copy_tasks(settings, text, heldout)
    counts = read_json(answers / COUNTS, CorpusError)
    facts = {"answers": counts, "copy_tasks": len(copies)}
    every = [record for _, record in read_records(answers / ANSWERS)]
    scope = replace(NEW_ROWS if settings.train == "new_rows" else CALIBRATION, merge=merge)
    kept = read_messages(answers / KEPT)
    if counts.get("kept") != len(kept):
        raise CorpusError(
            f"{answers / KEPT} holds {len(kept):,} answers, and {COUNTS} says that "
            f"{counts.get('kept')} were kept: copy the folder again"
        )
    return train_adapter(model, kept + copies, output, settings, scope, facts=facts, answers=every)
