"""Commands that train."""

from typing import Annotated

import typer

from lep.cli.common import Corpus, EvalTexts, Model, Output, Texts, app, checked, default, say, texts_of
from lep.settings import CalibrateSettings, PretrainSettings, TuneSettings


@app.command()
def pretrain(
    model: Model,
    corpus: Corpus,
    tokens: Annotated[int, typer.Option(help="Tokens to train on.")],
    output: Output,
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = default(PretrainSettings, "learning_rate"),
    train: Annotated[str, typer.Option(help="What trains: embeddings, new_rows or embeddings+lora.")] = default(
        PretrainSettings, "train"
    ),
    lora_rank: Annotated[int, typer.Option(help="Of adapters, with embeddings+lora.")] = default(
        PretrainSettings, "lora_rank"
    ),
    block_size: Annotated[int | None, typer.Option(help="Tokens a sample.")] = default(PretrainSettings, "block_size"),
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens a step.")] = default(
        PretrainSettings, "batch_tokens"
    ),
    schedule: Annotated[str, typer.Option(help="cosine or wsd.")] = default(PretrainSettings, "schedule"),
    eval_text: EvalTexts = None,
    patience: Annotated[int | None, typer.Option(help="Looks without a better state, then stop.")] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Try 0.1, 0.25, 0.5 and 1 times the rate on a fifth of the tokens first.")
    ] = False,
    weight_decay: Annotated[float, typer.Option()] = default(PretrainSettings, "weight_decay"),
    precision: Annotated[str, typer.Option(help="auto, bf16 or float32.")] = default(PretrainSettings, "precision"),
    seed: Annotated[int, typer.Option()] = default(PretrainSettings, "seed"),
) -> None:
    """Train embeddings and head on plain text; the body stays as it is."""
    settings = checked(
        PretrainSettings, tokens=tokens, learning_rate=learning_rate, train=train, lora_rank=lora_rank,
        sweep=sweep, block_size=block_size,
        batch_tokens=batch_tokens, schedule=schedule, patience=patience,
        eval_text=texts_of(eval_text, "--eval-text") or {}, weight_decay=weight_decay, precision=precision, seed=seed,
    )  # fmt: skip
    from lep.training.pretrain import pretrain as run_pretrain

    record = run_pretrain(model, list(corpus), output, settings)
    if settings.sweep:
        looked = "; ".join(f"{rate}: {bits}" for rate, bits in record["sweep"]["bits_per_byte"].items())
        say(f"bits per byte by rate: {looked}; the best one, {record['sweep']['best']:g}, was taken")
    say(f"{record['tokens']:,} tokens in {record['seconds']} s; loss {record['losses'][-1]['loss']:.3f} nats a token")
    if not record["documents_isolated"]:
        say("this architecture does not look at positions: documents in a block saw those before them")


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
    settings = checked(
        CalibrateSettings, copy_tasks=copy_tasks, learning_rate=learning_rate, epochs=epochs, batch_size=batch_size,
        max_new_tokens=max_new_tokens, seed=seed,
    )  # fmt: skip
    from lep.calibration.calibrate import calibrate as run_calibrate

    record = run_calibrate(model, original, prompts, output, settings, texts_of(text))
    say(f"answers: {record['answers']}; copy tasks: {record['copy_tasks']}; {record['steps']} steps")


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
    settings = checked(
        TuneSettings,
        copy_tasks=copy_tasks,
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
    )
    from lep.training.tune import tune as run_tune

    record = run_tune(model, data, output, settings, texts_of(text))
    say(f"{record['samples']} samples, {record['steps']} steps")
