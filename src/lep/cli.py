"""The command line: one thin command for each stage. Heavy imports wait until a command runs."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lep import __version__
from lep.errors import LepError
from lep.settings import (
    CalibrateSettings,
    EvaluateSettings,
    InitSettings,
    PretrainSettings,
    Settings,
    TuneSettings,
)

app = typer.Typer(
    help="Give an open large language model a new language: fewer tokens, the same answers.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
tokenizer_app = typer.Typer(help="Build tokenizers.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")

Model = Annotated[str, typer.Option(help="Model: a local folder or a hub id.")]
Output = Annotated[Path, typer.Option(help="Folder to write; must not exist.")]
Corpus = Annotated[list[str], typer.Option(help="txt, jsonl or jsonl.zst file, or a folder of them; more may follow.")]
Texts = Annotated[list[str] | None, typer.Option("--text", help="LANGUAGE=PATH of text to make copy tasks from.")]


def default(settings: type[Settings], name: str) -> Any:
    """A setting's default, from the one place where it is declared."""
    return settings.model_fields[name].default


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder (default: runs/NAME).")] = None,
) -> None:
    """Run a recipe; what is up to date is not done again."""
    from lep.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from lep.pipeline.run import run as run_recipe

    run_recipe(loaded, output or Path("runs", loaded.name), say=_say)


@tokenizer_app.command("extend")
def tokenizer_extend(
    base: Model,
    corpus: Corpus,
    new_tokens: Annotated[int, typer.Option(help="Tokens to add.")],
    output: Output,
) -> None:
    """Extend a byte-level BPE tokenizer with tokens learned on a corpus."""
    from lep.tokenizer.write import extend_tokenizer

    record = extend_tokenizer(base, list(corpus), new_tokens, output)
    sample = record["corpus_sample"]
    before, after = (sample["characters"] / sample[name] for name in ("tokens_before", "tokens_after"))
    _say(f"{new_tokens} new tokens; symbols per token on the corpus: {before:.2f} before, {after:.2f} after")


@app.command()
def init(
    model: Model,
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id of the new tokenizer.")],
    output: Output,
    method: Annotated[str, typer.Option(help="What fills the vocabulary mapping.")] = default(InitSettings, "method"),
) -> None:
    """Give a model a new tokenizer: rows of new tokens are made from rows of known ones."""
    from lep.checkpoint.initialise import initialise

    result = initialise(model, tokenizer, output, method=method)
    _say(f"{result.rows:,} rows: {result.copied:,} copied, {result.mixed:,} new")


@app.command()
def pretrain(
    model: Model,
    corpus: Corpus,
    tokens: Annotated[int, typer.Option(help="Tokens to train on.")],
    output: Output,
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = default(PretrainSettings, "learning_rate"),
    train: Annotated[str, typer.Option(help="What trains: embeddings.")] = default(PretrainSettings, "train"),
    block_size: Annotated[int | None, typer.Option(help="Tokens a sample.")] = default(PretrainSettings, "block_size"),
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens a step.")] = default(
        PretrainSettings, "batch_tokens"
    ),
    weight_decay: Annotated[float, typer.Option()] = default(PretrainSettings, "weight_decay"),
    precision: Annotated[str, typer.Option(help="auto, bf16 or float32.")] = default(PretrainSettings, "precision"),
    seed: Annotated[int, typer.Option()] = default(PretrainSettings, "seed"),
) -> None:
    """Train embeddings and head on plain text; the body stays as it is."""
    settings = _settings(
        PretrainSettings, tokens=tokens, learning_rate=learning_rate, train=train, block_size=block_size,
        batch_tokens=batch_tokens, weight_decay=weight_decay, precision=precision, seed=seed,
    )  # fmt: skip
    from lep.training.pretrain import pretrain as run_pretrain

    record = run_pretrain(model, list(corpus), output, settings)
    _say(f"{record['tokens']:,} tokens in {record['seconds']} s; loss {record['losses'][-1]['loss']:.3f} nats a token")


@app.command()
def propagate(
    base: Model,
    instruct: Model,
    adapted: Model,
    output: Output,
    method: Annotated[str, typer.Option(help="swap, overlap or conversion.")] = "conversion",
) -> None:
    """Carry the adapted embeddings of a base model into its instruct model."""
    from lep.checkpoint.propagate import propagate as run_propagate

    for table, fit in run_propagate(base, instruct, adapted, output, method=method).items():
        _say(f"{table}: held-out residual {fit.heldout:.4f} (identity {fit.identity:.4f}) on {fit.rows:,} rows")


@app.command()
def calibrate(
    model: Model,
    original: Model,
    prompts: Annotated[str, typer.Option(help="Prompts: jsonl with 'messages'.")],
    output: Output,
    text: Texts = None,
    copy_tasks: Annotated[int, typer.Option(help="Copy tasks a language.")] = default(CalibrateSettings, "copy_tasks"),
    learning_rate: Annotated[float, typer.Option()] = default(CalibrateSettings, "learning_rate"),
    epochs: Annotated[float, typer.Option()] = default(CalibrateSettings, "epochs"),
    batch_size: Annotated[int, typer.Option()] = default(CalibrateSettings, "batch_size"),
    max_new_tokens: Annotated[int, typer.Option()] = default(CalibrateSettings, "max_new_tokens"),
    seed: Annotated[int, typer.Option()] = default(CalibrateSettings, "seed"),
) -> None:
    """Teach an adapted model the original instruct model's own answers."""
    settings = _settings(
        CalibrateSettings, copy_tasks=copy_tasks, learning_rate=learning_rate, epochs=epochs, batch_size=batch_size,
        max_new_tokens=max_new_tokens, seed=seed,
    )  # fmt: skip
    from lep.calibration.calibrate import calibrate as run_calibrate

    record = run_calibrate(model, original, prompts, output, settings, _texts(text))
    _say(f"answers: {record['answers']}; copy tasks: {record['copy_tasks']}; {record['steps']} steps")


@app.command()
def tune(
    model: Model,
    data: Annotated[str, typer.Option(help="Conversations: jsonl with 'messages'.")],
    output: Output,
    text: Texts = None,
    copy_tasks: Annotated[int, typer.Option(help="Copy tasks a language.")] = default(TuneSettings, "copy_tasks"),
    learning_rate: Annotated[float, typer.Option()] = default(TuneSettings, "learning_rate"),
    epochs: Annotated[float, typer.Option()] = default(TuneSettings, "epochs"),
    batch_size: Annotated[int, typer.Option()] = default(TuneSettings, "batch_size"),
    seed: Annotated[int, typer.Option()] = default(TuneSettings, "seed"),
) -> None:
    """Instruction tuning with a low-rank adapter on all projections, merged."""
    settings = _settings(
        TuneSettings,
        copy_tasks=copy_tasks,
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
    )
    from lep.training.tune import tune as run_tune

    record = run_tune(model, data, output, settings, _texts(text))
    _say(f"{record['samples']} samples, {record['steps']} steps")


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Models: local folders or hub ids.")],
    text: Annotated[list[str], typer.Option(help="LANGUAGE=PATH of held-out text; once for each language.")],
    output: Output,
    tasks: Annotated[str, typer.Option(help="Chat tasks, comma-separated.")] = ",".join(EvaluateSettings().tasks),
    items: Annotated[int, typer.Option(help="Items of each task and language.")] = default(EvaluateSettings, "items"),
    characters: Annotated[int, typer.Option(help="Characters a language.")] = default(EvaluateSettings, "characters"),
    seed: Annotated[int, typer.Option()] = default(EvaluateSettings, "seed"),
) -> None:
    """Compare models on held-out text: bits per byte, tokens, copying, exact answers."""
    names = [name for name in tasks.split(",") if name]
    settings = _settings(EvaluateSettings, tasks=names, items=items, characters=characters, seed=seed)
    from lep.evaluation.compare import compare

    _say(compare(models, _texts(text) or {}, output, settings))


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write the report page of a run again."""
    from lep.report.page import write_report

    _say(f"report: {write_report(run_dir)}")


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if show:
        typer.echo(f"lep {__version__}")
        raise typer.Exit


def _say(text: str) -> None:
    print(text, flush=True)


def _settings(kind: type[Settings], **values: Any) -> Any:
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise LepError(f"{option} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def _texts(pairs: list[str] | None) -> dict[str, list[str | Path]] | None:
    texts: dict[str, list[str | Path]] = {}
    for pair in pairs or []:
        language, equals, path = pair.partition("=")
        if not equals or not language or not path:
            raise LepError(f"--text is '{pair}': write LANGUAGE=PATH, for example --text ru=heldout.txt")
        texts.setdefault(language, []).append(path)
    return texts or None


def expand_lists(arguments: list[str]) -> list[str]:
    """Let options of lists take several values: `--corpus A B` becomes `--corpus A --corpus B`."""
    expanded: list[str] = []
    listing = ""
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        if argument.startswith("-"):
            listing = argument if argument in ("--corpus", "--text") else ""
        elif listing and previous != listing and (listing == "--corpus" or "=" in argument):
            expanded.append(listing)
        expanded.append(argument)
    return expanded


def main() -> None:
    """Entry point: user faults are one sentence on standard error and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        app(args=expand_lists(sys.argv[1:]), standalone_mode=True)
    except LepError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full or read-only disk, met while writing
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
