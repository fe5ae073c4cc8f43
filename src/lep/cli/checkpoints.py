"""Commands that make one checkpoint of others, without training."""

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from lep.cli.common import Model, Output, app, checked, default, say, texts_of
from lep.errors import LepError
from lep.settings import InitSettings, PropagateSettings, PropagationName

PROPAGATIONS = ", ".join(get_args(PropagationName))


@app.command()
def init(
    model: Model,
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id of the new tokenizer.")],
    output: Output,
    method: Annotated[
        str, typer.Option(help="mean, length-weighted, first, last or random.")
    ] = default(InitSettings, "method"),
    output_method: Annotated[
        str | None, typer.Option(help="The same for the output table.")
    ] = None,
    calibrate_norms: Annotated[
        bool, typer.Option("--calibrate-norms", help="New rows as long as their script's.")
    ] = (default(InitSettings, "calibrate_norms")),
    seed: Annotated[int, typer.Option(help="Of the random control.")] = default(
        InitSettings, "seed"
    ),
) -> None:
    """Give a model a new tokenizer: rows of new tokens are made from rows of known ones."""
    settings = checked(
        InitSettings,
        method=method,
        output_method=output_method,
        calibrate_norms=calibrate_norms,
        seed=seed,
    )
    from lep.transfer.initialise import initialise

    result = initialise(model, tokenizer, output, settings)
    say(f"{result.rows:,} rows: {result.copied:,} copied, {result.mixed:,} new")


@app.command()
def propagate(
    base: Model,
    instruct: Model,
    adapted: Model,
    output: Annotated[Path | None, typer.Option(help="Folder to write; must not exist.")] = None,
    method: Annotated[str, typer.Option(help=f"{PROPAGATIONS}, or auto.")] = default(
        PropagateSettings, "method"
    ),
    output_method: Annotated[
        str | None, typer.Option(help="The same for the output table.")
    ] = None,
    ridge: Annotated[float | None, typer.Option(help="Penalty toward the identity.")] = None,
    frequency_text: Annotated[
        list[str] | None, typer.Option(help="Text whose token counts weigh the fit.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="LANGUAGE=PATH of text that auto chooses on.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts that auto chooses on: jsonl with 'messages'.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would read, write, hold and take.")
    ] = False,
) -> None:
    """Carry the adapted embeddings of a base model into its instruct model."""
    auto = method == "auto"
    if auto and (output_method or dry_run):
        raise LepError(
            f"--method auto chooses for both tables: leave {'--dry-run' if dry_run else '--output-method'} out"
        )
    if not auto and (text or prompts):
        raise LepError(
            f"--text and --prompts are what --method auto chooses on: leave them out with --method {method}"
        )
    settings = checked(
        PropagateSettings,
        method=default(PropagateSettings, "method") if auto else method,
        output_method=output_method,
        ridge=ridge,
        frequency_text=list(frequency_text or []),
    )
    if dry_run:
        from lep.transfer.dry_run import dry_run as dry_propagation

        say(str(dry_propagation(base, instruct, adapted)))
        return
    if output is None:
        raise LepError(
            "there is no --output: name a folder to write, or ask with --dry-run what would be written"
        )
    if auto:
        if not text or not prompts:
            raise LepError(
                "--method auto chooses on text and prompts: give --text LANGUAGE=PATH (the new and an "
                "original language) and --prompts FILE"
            )
        from lep.selection.auto import BodyTooLarge, label, propagate_auto, weight_report

        try:
            found = propagate_auto(
                base, instruct, adapted, output, texts_of(text) or {}, prompts, settings
            )
        except BodyTooLarge:
            say(weight_report(base, instruct, adapted))
            raise
        say(
            f"{found.table()}\nchosen: {label(found.chosen)}; on the reported half: {label(found.best_reported)}"
        )
        if why := found.vetoed.get(found.chosen):
            say(f"every candidate does more harm than is allowed; the one that was taken: {why}")
        return
    from lep.transfer.propagate import propagate as run_propagate

    for table, fit in run_propagate(base, instruct, adapted, output, settings).fits.items():
        say(
            f"{table}: held-out residual {fit.heldout:.4f} (identity {fit.identity:.4f}) on {fit.rows:,} rows"
        )


@app.command()
def pack(
    base: Model,
    adapted: Model,
    output: Annotated[Path, typer.Option(help="File to write; must not exist.")],
    new_only: Annotated[
        bool, typer.Option("--new-only", help="Leave out what known tokens learned.")
    ] = False,
) -> None:
    """Put what a base model learned of a language into one file, for every model tuned from that base."""
    from lep.transfer.language_pack import make_pack

    say(str(make_pack(base, adapted, output, new_only=new_only)))


@app.command()
def apply(
    pack: Annotated[str, typer.Argument(help="A file that lep pack wrote.")],
    model: Model,
    output: Output,
    force: Annotated[
        bool, typer.Option("--force", help="Apply it to a model of another base.")
    ] = False,
) -> None:
    """Give a model the language of a pack that was made on its base."""
    from lep.transfer.language_pack import apply_pack

    say(str(apply_pack(pack, model, output, force=force)))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Model: a local folder or a hub id.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all of it here.")] = None,
) -> None:
    """Tables, tying, sizes, special tokens, suspicious rows."""
    from lep.transfer.inspect import inspect_checkpoint

    _show(inspect_checkpoint(model), json_file)


@app.command()
def verify(
    before: Annotated[str, typer.Argument(help="A model.")],
    after: Annotated[str, typer.Argument(help="What was made of it.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all hashes here.")] = None,
) -> None:
    """What changed between two checkpoints, tensor by tensor and hash by hash."""
    from lep.transfer.verify import compare_checkpoints

    _show(compare_checkpoints(before, after), json_file)


def _show(result: Any, json_file: Path | None) -> None:
    if json_file:
        text = json.dumps(result.record, ensure_ascii=False, indent=1)
        json_file.write_text(text + "\n", encoding="utf-8")
    say(str(result))
