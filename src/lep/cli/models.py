"""Verbs that train models, or that make and inspect checkpoints."""

from pathlib import Path
from typing import Any, Literal

import lep
import lep.cli.lines as lines
from lep.cli.verb import app, saved, verb
from lep.errors import LepError
from lep.settings import (
    AnswerSettings,
    CalibrateSettings,
    CopySettings,
    InitSettings,
    PretrainSettings,
    PropagateSettings,
    PropagationName,
    SelectSettings,
    Texts,
    TuneSettings,
)


class MethodSettings(PropagateSettings):
    """The settings of `lep propagate`, where `auto` is a method too."""

    method: Literal[PropagationName, "auto"] = "conversion"  # type: ignore[assignment]


@verb(app)
def init(model: str, tokenizer: str, output: Path, settings: InitSettings) -> Any:
    """Give a model a new tokenizer; rows of new tokens are combined from known rows."""
    result = lep.initialise(model, tokenizer, output, settings)
    return f"{result.rows:,} rows: {result.copied:,} copied, {result.mixed:,} new"


@verb(app)
def pretrain(model: str, corpus: list[str], output: Path, settings: PretrainSettings) -> Any:
    """Train the embeddings and the head of a model on plain text."""
    return lines.pretrained(lep.pretrain(model, corpus, output, settings))


@verb(
    app,
    text="LANGUAGE=PATH: text in the new and an original language, for the method auto (default: none).",
    prompts="Prompts (jsonl with messages), for the method auto (default: none).",
    output="Folder to write; must not exist (default: none, with dry run).",
)
def propagate(
    base: str,
    instruct: str,
    adapted: str,
    settings: MethodSettings,
    select: SelectSettings,
    text: Texts,
    output: Path | None = None,
    prompts: str | None = None,
    dry_run: bool = False,
) -> Any:
    """Carry the adapted embeddings of a base model into its instruct model."""
    models, auto = (base, instruct, adapted), settings.method == "auto"
    if not auto and (text or prompts or select.model_fields_set):
        only = "--text, --prompts and their options are for --method auto"
        raise LepError(f"{only}: leave them out with --method {settings.method}")
    if auto and (dry_run or settings.output_method):
        option = "--dry-run" if dry_run else "--output-method"
        raise LepError(f"--method auto chooses for both tables: leave {option} out")
    if auto and not (text and prompts):
        advice = "give --text LANGUAGE=PATH (the new and an original language) and --prompts FILE"
        raise LepError(f"--method auto chooses on text and prompts: {advice}")
    if dry_run:
        return lines.forecast(models, settings)
    if output is None:
        raise LepError("there is no --output: name a folder to write, or add --dry-run")
    if not auto:
        return lines.propagated(lep.propagate(*models, output, settings))
    fixed = PropagateSettings(**settings.model_dump(exclude={"method"}))
    return lines.propagated_auto(models, output, text, prompts, fixed, select)


@verb(app, second_flags={"generation_batch": "--batch-size", "sample_seed": "--seed"})
def answer(original: str, prompts: str, output: Path, settings: AnswerSettings) -> Any:
    """Let the original instruct model answer prompts, and keep the good answers."""
    counts = lep.write_answers(original, prompts, output, settings)
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())


@verb(app, without=AnswerSettings)
def calibrate(
    model: str,
    answers: Path,
    output: Path,
    settings: CalibrateSettings,
    copied: CopySettings,
    merge: bool = True,
) -> Any:
    """Teach an adapted model the answers of the original instruct model."""
    copies = lep.copy_records(copied.text, settings.copy_tasks, settings.seed, copied.eval_text)
    record = lep.calibrate(model, answers, output, settings, copies, merge=merge)
    return (
        f"answers: {record['answers']}; copy tasks: {record['copy_tasks']}; {record['steps']} steps"
    )


@verb(app)
def tune(
    model: str,
    data: str,
    output: Path,
    settings: TuneSettings,
    copied: CopySettings,
    merge: bool = True,
) -> Any:
    """Tune a model on conversations with low-rank adapters."""
    copies = lep.copy_records(copied.text, settings.copy_tasks, settings.seed, copied.eval_text)
    record = lep.tune(model, data, output, settings, copies, merge=merge)
    return f"{record['samples']} samples, {record['steps']} steps"


@verb(app, output="File to write; must not exist.")
def pack(base: str, adapted: str, output: Path, new_only: bool = False) -> Any:
    """Put what a base model learned into one file for all models tuned from that base."""
    return lines.packed(lep.make_pack(base, adapted, output, new_only=new_only), output)


@verb(app)
def apply(pack: str, /, model: str, output: Path, force: bool = False) -> Any:
    """Give a model the language of a pack that was made on its base."""
    return lines.applied(lep.apply_pack(pack, model, output, force=force))


@verb(app)
def inspect(model: str, /, json_file: Path | None = None) -> Any:
    """Show a model's tables, sizes, special tokens and suspicious rows."""
    from lep.transfer.inspect import inspection_text

    return inspection_text(saved(lep.inspect_checkpoint(model), json_file))


@verb(app)
def verify(before: str, after: str, /, json_file: Path | None = None) -> Any:
    """Compare two checkpoints, tensor by tensor."""
    from lep.transfer.inspect import comparison_text

    return comparison_text(saved(lep.compare_checkpoints(before, after), json_file))
