"""The command line: one thin command for each stage. Heavy imports wait until a command runs."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from lep import __version__
from lep.errors import LepError
from lep.settings import (
    CalibrateSettings,
    EvaluateSettings,
    InitSettings,
    PretrainSettings,
    PropagateSettings,
    PropagationName,
    Settings,
    TokenizerSettings,
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
Script = Annotated[str, typer.Option(help="Unicode script of new tokens: cyrillic ..., auto (of the corpus), any.")]
VocabSize = Annotated[int, typer.Option(help="Tokens of the result, special ones included.")]
Protect = Annotated[list[str] | None, typer.Option(help="Texts whose tokens are all kept.")]
Texts = Annotated[list[str] | None, typer.Option("--text", help="LANGUAGE=PATH of text to make copy tasks from.")]


def default(settings: type[Settings], name: str) -> Any:
    """A setting's default, from the one place where it is declared."""
    return settings.model_fields[name].default


SCRIPT = default(TokenizerSettings, "script")
PROPAGATIONS = ", ".join(get_args(PropagationName))


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
    script: Script = SCRIPT,
    method: Annotated[str, typer.Option(help="continue, or merge: the paper's way.")] = default(
        TokenizerSettings, "method"
    ),
) -> None:
    """Add tokens learned on a corpus; text without the script is tokenised as before."""
    from lep.tokenizer.write import extend_tokenizer

    _say_changes(extend_tokenizer(base, list(corpus), new_tokens, output, script=script, method=method))


@tokenizer_app.command("prune")
def tokenizer_prune(
    base: Model, corpus: Corpus, vocab_size: VocabSize, output: Output, protect: Protect = None
) -> None:
    """Drop the tokens that a corpus uses least."""
    from lep.tokenizer.write import prune_tokenizer

    _say_changes(prune_tokenizer(base, list(corpus), vocab_size, output, protect=list(protect or [])))


@tokenizer_app.command("optimize")
def tokenizer_optimize(
    base: Model,
    corpus: Corpus,
    keep: Annotated[int, typer.Option(help="Tokens to keep.")],
    vocab_size: VocabSize,
    output: Output,
    script: Script = SCRIPT,
    in_place: Annotated[bool, typer.Option("--in-place", help="New tokens take the freed ids; same size.")] = False,
    protect: Protect = None,
) -> None:
    """Prune to the most used tokens, then extend to an exact size."""
    from lep.tokenizer.write import optimize_tokenizer

    _say_changes(optimize_tokenizer(
        base, list(corpus), keep, vocab_size, output, script=script, in_place=in_place, protect=list(protect or []),
    ))  # fmt: skip


@tokenizer_app.command("train")
def tokenizer_train(
    base: Model,
    corpus: Corpus,
    algorithm: Annotated[str, typer.Option(help="bpe or unigram.")],
    vocab_size: VocabSize,
    output: Output,
) -> None:
    """Learn a new vocabulary; special tokens and chat template are those of the base."""
    from lep.tokenizer.write import train_tokenizer

    _say_changes(train_tokenizer(base, list(corpus), algorithm, vocab_size, output))


@tokenizer_app.command("count")
def tokenizer_count(
    base: Model,
    corpus: Corpus,
    output: Annotated[Path, typer.Option(help="File to write, NAME.counts.zst.")],
    script: Script = SCRIPT,
) -> None:
    """Count the words of one shard of a corpus; --corpus of extend and train takes the files together."""
    from lep.tokenizer.write import count_corpus

    found = count_corpus(base, list(corpus), output, script=script)
    _say(f"{len(found.counts):,} different words in {found.characters:,} characters: {output}")


@tokenizer_app.command("compare")
def tokenizer_compare(
    tokenizers: Annotated[list[str], typer.Argument(help="Tokenizers; the first is the reference.")],
    text: Annotated[list[str], typer.Option(help="NAME=PATH of text; once for each language.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page with curves here.")] = None,
) -> None:
    """Compare tokenizers on texts: cost, reach, segmentation, speed."""
    from lep.tokenizer.compare import compare_tokenizers, comparison_table

    record = compare_tokenizers(tokenizers, _texts(text) or {})
    if json_file:
        json_file.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if html_file:
        from lep.report.tokenizers import write_comparison

        write_comparison(record, html_file)
    _say(comparison_table(record))


@app.command()
def init(
    model: Model,
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id of the new tokenizer.")],
    output: Output,
    method: Annotated[str, typer.Option(help="mean, length-weighted, first, last or random.")] = default(
        InitSettings, "method"
    ),
    output_method: Annotated[str | None, typer.Option(help="The same for the output table.")] = None,
    calibrate_norms: Annotated[bool, typer.Option("--calibrate-norms", help="New rows as long as their script's.")] = (
        default(InitSettings, "calibrate_norms")
    ),
    seed: Annotated[int, typer.Option(help="Of the random control.")] = default(InitSettings, "seed"),
) -> None:
    """Give a model a new tokenizer: rows of new tokens are made from rows of known ones."""
    settings = _settings(
        InitSettings, method=method, output_method=output_method, calibrate_norms=calibrate_norms, seed=seed
    )
    from lep.checkpoint.initialise import initialise

    result = initialise(model, tokenizer, output, settings)
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
    method: Annotated[str, typer.Option(help=f"{PROPAGATIONS}, or auto.")] = default(PropagateSettings, "method"),
    output_method: Annotated[str | None, typer.Option(help="The same for the output table.")] = None,
    ridge: Annotated[float | None, typer.Option(help="Penalty toward the identity.")] = None,
    frequency_text: Annotated[list[str] | None, typer.Option(help="Text whose token counts weigh the fit.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="LANGUAGE=PATH of text that auto chooses on.")] = None,
    prompts: Annotated[str | None, typer.Option(help="Prompts that auto chooses on: jsonl with 'messages'.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would read, write, hold and take.")] = False,
) -> None:
    """Carry the adapted embeddings of a base model into its instruct model."""
    auto = method == "auto"
    settings = _settings(
        PropagateSettings, method=default(PropagateSettings, "method") if auto else method,
        output_method=output_method, ridge=ridge, frequency_text=list(frequency_text or []),
    )  # fmt: skip
    if dry_run:
        from lep.checkpoint.family import Family
        from lep.checkpoint.plan import plan_propagation

        _say(str(plan_propagation(Family.open(base, instruct, adapted), settings)))
        return
    if auto:
        if not text or not prompts:
            raise LepError("--method auto chooses on text and prompts: give --text LANGUAGE=PATH (the new and an "
                           "original language) and --prompts FILE")  # fmt: skip
        from lep.evaluation.select import label, propagate_auto

        found = propagate_auto(base, instruct, adapted, output, _texts(text) or {}, prompts, settings)
        _say(f"{found.table()}\nchosen: {label(found.chosen)}; on the reported half: {label(found.best_reported)}")
        return
    from lep.checkpoint.propagate import propagate as run_propagate

    for table, fit in run_propagate(base, instruct, adapted, output, settings).items():
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


def _say_changes(record: dict[str, Any]) -> None:
    """What became of a tokenizer, in two or three lines."""
    _say(
        f"{record['size_before']:,} tokens before, {record['size']:,} after: {record['kept']:,} kept, "
        f"{record['moved']:,} moved, {record['new']:,} new, {record['dropped']:,} dropped"
    )
    if record.get("script"):
        _say(f"new tokens are of the {record['script']} script; text without it is tokenised by the known tokens alone")
    sample = record["corpus_sample"]
    if sample["characters"]:
        before, after = (sample["characters"] / sample[name] for name in ("tokens_before", "tokens_after"))
        _say(f"symbols per token on the corpus: {before:.2f} before, {after:.2f} after")
    if record.get("excluded"):
        _say(f"text with one of these characters may be tokenised differently: {' '.join(record['excluded'][:40])}")


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
            listing = argument if argument in ("--corpus", "--protect", "--text", "--frequency-text") else ""
        elif listing and previous != listing and (listing != "--text" or "=" in argument):
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
