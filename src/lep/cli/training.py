"""Commands that train."""

from pathlib import Path
from typing import Annotated

import typer

from lep.cli.common import (
    Checkpointing,
    Corpus,
    EvalTexts,
    MaxLength,
    Merge,
    MicroBatch,
    Model,
    NotInText,
    Output,
    Precision,
    Texts,
    app,
    checked,
    default,
    say,
    texts_of,
)
from lep.settings import AnswerSettings, CalibrateSettings, PretrainSettings, TuneSettings


@app.command()
def pretrain(
    model: Model,
    corpus: Corpus,
    output: Output,
    tokens: Annotated[int | None, typer.Option(help="Tokens to train on.")] = default(
        PretrainSettings, "tokens"
    ),
    epochs: Annotated[
        float | None, typer.Option(help="Instead of tokens: passes over the corpus.")
    ] = default(PretrainSettings, "epochs"),
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = default(
        PretrainSettings, "learning_rate"
    ),
    train: Annotated[
        str, typer.Option(help="What trains: embeddings, new_rows or embeddings+lora.")
    ] = default(PretrainSettings, "train"),
    lora_rank: Annotated[int, typer.Option(help="Of adapters, with embeddings+lora.")] = default(
        PretrainSettings, "lora_rank"
    ),
    block_size: Annotated[int | None, typer.Option(help="Tokens a sample.")] = default(
        PretrainSettings, "block_size"
    ),
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens a step.")] = default(
        PretrainSettings, "batch_tokens"
    ),
    schedule: Annotated[str, typer.Option(help="cosine or wsd.")] = default(
        PretrainSettings, "schedule"
    ),
    eval_text: EvalTexts = None,
    patience: Annotated[
        int | None, typer.Option(help="Looks without a better state, then stop.")
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Try 0.1, 0.25, 0.5 and 1 times the rate on a fifth of the tokens first.",
        ),
    ] = False,
    weight_decay: Annotated[float, typer.Option()] = default(PretrainSettings, "weight_decay"),
    precision: Precision = default(PretrainSettings, "precision"),
    warmup_steps: Annotated[
        int | None, typer.Option(help="Steps with a rising rate (default: 5% of all).")
    ] = None,
    micro_batch_tokens: Annotated[
        int, typer.Option(help="Tokens that are in memory at once.")
    ] = default(PretrainSettings, "micro_batch_tokens"),
    activation_checkpointing: Checkpointing = False,
    seed: Annotated[int, typer.Option()] = default(PretrainSettings, "seed"),
) -> None:
    """Train embeddings and head on plain text; the body stays as it is."""
    settings = checked(
        PretrainSettings,
        tokens=tokens,
        epochs=epochs,
        learning_rate=learning_rate,
        train=train,
        lora_rank=lora_rank,
        sweep=sweep,
        block_size=block_size,
        batch_tokens=batch_tokens,
        schedule=schedule,
        patience=patience,
        eval_text=texts_of(eval_text, "--eval-text") or {},
        weight_decay=weight_decay,
        precision=precision,
        seed=seed,
        warmup_steps=warmup_steps,
        micro_batch_tokens=micro_batch_tokens,
        activation_checkpointing=activation_checkpointing,
    )
    from lep.training.pretrain import pretrain as run_pretrain

    result = run_pretrain(model, list(corpus), output, settings)
    say(str(result))


@app.command()
def answer(
    original: Model,
    prompts: Annotated[str, typer.Option(help="Prompts: jsonl with 'messages'.")],
    output: Output,
    samples: Annotated[int, typer.Option(help="Answers to a prompt; the best is kept.")] = default(
        AnswerSettings, "samples"
    ),
    judge: Annotated[
        str | None,
        typer.Option(
            help="Model that grades answers from 1 to 5, or MODEL@URL (default: rules alone)."
        ),
    ] = default(AnswerSettings, "judge"),
    least_grade: Annotated[int, typer.Option(help="Worse answers are dropped.")] = default(
        AnswerSettings, "least_grade"
    ),
    temperature: Annotated[float, typer.Option(help="Of sampled answers.")] = default(
        AnswerSettings, "temperature"
    ),
    top_p: Annotated[float, typer.Option(help="Of sampled answers.")] = default(
        AnswerSettings, "top_p"
    ),
    max_new_tokens: Annotated[int, typer.Option()] = default(AnswerSettings, "max_new_tokens"),
    batch_size: Annotated[int, typer.Option()] = default(AnswerSettings, "generation_batch"),
    seed: Annotated[int, typer.Option(help="Of sampled answers.")] = default(
        AnswerSettings, "sample_seed"
    ),
) -> None:
    """Let the original instruct model answer prompts, and keep the good answers: what calibrate learns from."""
    settings = checked(
        AnswerSettings,
        samples=samples,
        judge=judge,
        least_grade=least_grade,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        generation_batch=batch_size,
        sample_seed=seed,
    )
    from lep.calibration.answers import answer as run_answer

    say(str(run_answer(original, prompts, output, settings)))


@app.command()
def calibrate(
    model: Model,
    answers: Annotated[Path, typer.Option(help="Answers that lep answer wrote.")],
    output: Output,
    text: Texts = None,
    eval_text: NotInText = None,
    train: Annotated[
        str, typer.Option(help="What trains: outer_layers (the paper) or new_rows.")
    ] = default(CalibrateSettings, "train"),
    copy_tasks: Annotated[int, typer.Option(help="Copy tasks a language.")] = default(
        CalibrateSettings, "copy_tasks"
    ),
    learning_rate: Annotated[float, typer.Option()] = default(CalibrateSettings, "learning_rate"),
    epochs: Annotated[float, typer.Option()] = default(CalibrateSettings, "epochs"),
    batch_size: Annotated[int, typer.Option()] = default(CalibrateSettings, "batch_size"),
    micro_batch_size: MicroBatch = default(CalibrateSettings, "micro_batch_size"),
    max_length: MaxLength = default(CalibrateSettings, "max_length"),
    precision: Precision = default(CalibrateSettings, "precision"),
    activation_checkpointing: Checkpointing = False,
    merge: Merge = True,
    seed: Annotated[int, typer.Option()] = default(CalibrateSettings, "seed"),
) -> None:
    """Teach an adapted model the original instruct model's own answers."""
    settings = checked(
        CalibrateSettings,
        train=train,
        copy_tasks=copy_tasks,
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        max_length=max_length,
        precision=precision,
        activation_checkpointing=activation_checkpointing,
        seed=seed,
    )
    from lep.calibration.calibrate import calibrate as run_calibrate
    from lep.corpus.copies import copy_records

    copies = copy_records(
        texts_of(text) or {}, copy_tasks, seed, texts_of(eval_text, "--eval-text")
    )
    result = run_calibrate(model, answers, output, settings, copies, merge=merge)
    say(f"answers: {result.answers}; copy tasks: {result.copy_tasks}; {result.steps} steps")


@app.command()
def tune(
    model: Model,
    data: Annotated[str, typer.Option(help="Conversations: jsonl with 'messages'.")],
    output: Output,
    text: Texts = None,
    eval_text: NotInText = None,
    copy_tasks: Annotated[int, typer.Option(help="Copy tasks a language.")] = default(
        TuneSettings, "copy_tasks"
    ),
    learning_rate: Annotated[float, typer.Option()] = default(TuneSettings, "learning_rate"),
    epochs: Annotated[float, typer.Option()] = default(TuneSettings, "epochs"),
    batch_size: Annotated[int, typer.Option()] = default(TuneSettings, "batch_size"),
    micro_batch_size: MicroBatch = default(TuneSettings, "micro_batch_size"),
    max_length: MaxLength = default(TuneSettings, "max_length"),
    precision: Precision = default(TuneSettings, "precision"),
    activation_checkpointing: Checkpointing = False,
    merge: Merge = True,
    seed: Annotated[int, typer.Option()] = default(TuneSettings, "seed"),
) -> None:
    """Instruction tuning with a low-rank adapter on all projections, merged."""
    settings = checked(
        TuneSettings,
        copy_tasks=copy_tasks,
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        max_length=max_length,
        precision=precision,
        activation_checkpointing=activation_checkpointing,
        seed=seed,
    )
    from lep.training.tune import tune as run_tune

    heldout = texts_of(eval_text, "--eval-text")
    text_by_language = texts_of(text)
    result = run_tune(
        model, data, output, settings, text=text_by_language, heldout=heldout, merge=merge
    )
    say(str(result))
