"""Verbs that train models, or that make and inspect checkpoints."""

from pathlib import Path
from typing import Any

import lep
from lep.cli.verb import Values, app, say, verb
from lep.errors import LepError
from lep.settings import (
    AnswerSettings,
    AnswerTuning,
    CalibrateSettings,
    CardSettings,
    ExportSettings,
    ImportSettings,
    InitSettings,
    JointSettings,
    MethodSettings,
    OwnPromptSettings,
    PracticeSettings,
    PropagateSettings,
    SelectSettings,
    Texts,
    TuneSettings,
)


@verb(app)
def init(model: str, tokenizer: str, output: Path, settings: InitSettings) -> Any:
    """Give a model a new tokenizer; rows of new tokens are combined from known rows."""
    return lep.initialise(model, tokenizer, output, settings)


@verb(app)
def pretrain(model: str, corpus: list[str], output: Path, settings: JointSettings) -> Any:
    """Train the embeddings and the head of a model on plain text, or on text, answers and tasks."""
    return lep.pretrain(model, corpus, output, settings)


@verb(
    app,
    text="LANGUAGE=PATH: text of the new language (default: none; one is needed).",
    old_text="LANGUAGE=PATH: text that the model knows, for tasks in it (default: none).",
    eval_text="LANGUAGE=PATH: text used for evaluation; no task shares any (default: none).",
)
def practice(
    original: str,
    model: str,
    output: Path,
    settings: PracticeSettings,
    text: Texts,
    old_text: Texts,
    eval_text: Texts,
) -> Any:
    """Make tasks over words with new tokens, which the original model solves."""
    texts = {"old": old_text, "heldout": eval_text}
    return lep.practise(original, model, text, output, settings, **texts)


@verb(
    app,
    text="LANGUAGE=PATH: text of a new and an original language, for auto (default: none).",
    prompts="Prompts (jsonl with messages), for auto (default: none).",
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
        return lep.dry_run(*models)
    if output is None:
        raise LepError("there is no --output: name a folder to write, or add --dry-run")
    if not auto:
        return lep.propagate(*models, output, settings)
    fixed = PropagateSettings(**settings.model_dump(exclude={"method"}))
    from lep.selection.candidates import BodyTooLarge, weight_report

    try:
        return lep.propagate_auto(*models, output, text, prompts, fixed, select)
    except BodyTooLarge:
        say(weight_report(*models))
        raise


@verb(app, second_flags={"generation_batch": "--batch-size", "sample_seed": "--seed"})
def answer(original: str, prompts: str, output: Path, settings: AnswerSettings) -> Any:
    """Let the original instruct model answer prompts, and keep the good answers."""
    return lep.answer(original, prompts, output, settings)


@verb(app, text="LANGUAGE=PATH: text whose words begin prompts (default: none; one is needed).")
def prompts(original: str, text: Texts, output: Path, settings: OwnPromptSettings) -> Any:
    """Let the original instruct model write prompts, in the languages of a text."""
    return lep.write_prompts(original, text, output, settings)


@verb(app, without=AnswerSettings)
def calibrate(
    model: str, answers: Path, output: Path, settings: CalibrateSettings, more: AnswerTuning
) -> Any:
    """Teach an adapted model the answers of the original instruct model."""
    return lep.calibrate(model, answers, output, settings, **more.keywords())


@verb(app)
def tune(model: str, data: str, output: Path, settings: TuneSettings, more: AnswerTuning) -> Any:
    """Tune a model on conversations with low-rank adapters."""
    return lep.tune(model, data, output, settings, **more.keywords())


@verb(
    app,
    base="Base or instruct model before training: a local folder or a hub id.",
    adapted="The same model after lep init and training.",
    output="File to write; must not exist.",
)
def pack(base: str, adapted: str, output: Path, new_only: bool = False) -> Any:
    """Put what a model learned into one file, for its siblings and the models tuned from it."""
    return lep.make_pack(base, adapted, output, new_only=new_only)


@verb(app)
def apply(pack: str, /, model: str, output: Path, force: bool = False) -> Any:
    """Give a model the language of a pack that was made on a relative."""
    return lep.apply_pack(pack, model, output, force=force)


@verb(
    app,
    output="File or folder to write; must not exist.",
    text="Text whose ids are compared too (default: none).",
)
def export(model: str, output: Path, settings: ExportSettings, text: Values = ()) -> Any:
    """Write a model for llama.cpp, CTranslate2 or MLX, proven to read and answer the same."""
    return lep.export(model, output, settings, text=text)


@verb(
    app,
    model="Folder of a model that lep wrote.",
    evaluation="Folder that lep evaluate wrote (default: the figures of the run).",
    source="Model that it was made from (default: what the folder says).",
)
def card(
    model: str, /, settings: CardSettings, evaluation: Path | None = None, source: str | None = None
) -> Any:
    """Write a model's card for the hub: origin, licence, figures, how to use it."""
    return lep.card(model, settings, evaluation=evaluation, source=source)


@verb(
    app,
    folder="Folder of a model, with its card.",
    repository="Its name on the hub: OWNER/NAME.",
    private="Create a repository that only its owners see.",
    licence="Licence, if the card names none or one that lep does not know (default: the card's).",
)
def push(
    folder: Path, repository: str, /, private: bool = False, licence: str | None = None
) -> Any:
    """Upload a model with its card to the hub, if its licence allows it."""
    return lep.push(folder, repository, private=private, licence=licence)


@verb(
    app,
    verb_name="import",
    source="GGUF file, or folder with pytorch_model.bin or tokenizer.model.",
)
def import_model(source: Path, /, output: Path, settings: ImportSettings) -> Any:
    """Make a model folder from a GGUF file, pickled weights or a SentencePiece tokenizer."""
    return lep.import_model(source, output, settings)


@verb(app)
def inspect(model: str, /, json_file: Path | None = None) -> Any:
    """Show a model's tables, sizes, special tokens and suspicious rows."""
    return lep.inspect_checkpoint(model).saved(json_file)


@verb(app)
def verify(before: str, after: str, /, json_file: Path | None = None) -> Any:
    """Compare two checkpoints, tensor by tensor."""
    return lep.compare_checkpoints(before, after).saved(json_file)
