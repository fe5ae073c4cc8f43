"""Commands for whole runs, and for what is made of them: scores and the report."""

import os
from pathlib import Path
from typing import Annotated

import typer

from lep import __version__
from lep.cli.common import Output, app, checked, default, say, texts_of
from lep.errors import LepError
from lep.settings import BenchmarkSettings, EvaluateSettings


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder (default: runs/NAME).")] = None,
) -> None:
    """Run a recipe; what is up to date is not done again. Several processes with the same folder share the work."""
    from lep.pipeline.recipe_file import load_grid

    grid = load_grid(recipe, overrides or ())  # a fault shows before anything heavy is imported
    from lep.pipeline.run import run_recipe

    say(f"\n{run_recipe(grid, output, say=say)}")


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    hours: Annotated[
        float | None, typer.Option(help="Choose the token budget that fits into so many hours.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="The device: h100, a100, rtx4090 ...")] = "h100",
) -> None:
    """Say what a recipe will take and save, before anything is loaded or written."""
    from lep.pipeline.recipe_file import load_grid

    load_grid(recipe, overrides or ())  # a fault shows before anything heavy is imported
    from lep.pipeline.forecast import forecast

    say(str(forecast(recipe, gpu, hours=hours, overrides=overrides or ())))


@app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(help="Models: local folders or hub ids; MODEL@URL behind a server."),
    ],
    output: Output,
    text: Annotated[list[str] | None, typer.Option(help="LANGUAGE=PATH of held-out text.")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: chat tasks made from the text (default: all), benchmark tasks or groups."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the benchmark's data sets (default: the hub).")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Examples before a question (default: 5, chat models 0).")
    ] = None,
    chat: Annotated[
        bool | None, typer.Option(help="Ask through the chat template (default: if there is one).")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Benchmark items of each task.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts (messages jsonl) to answer beside the first model.")
    ] = None,
    speed: Annotated[int, typer.Option(help="Texts a language to measure speed on.")] = default(
        EvaluateSettings, "speed"
    ),
    items: Annotated[int, typer.Option(help="Items of each chat task and language.")] = default(
        EvaluateSettings, "items"
    ),
    characters: Annotated[int, typer.Option(help="Characters a language.")] = default(
        EvaluateSettings, "characters"
    ),
    batch_size: Annotated[int, typer.Option(help="Benchmark items at once.")] = default(
        BenchmarkSettings, "batch_size"
    ),
    seed: Annotated[int, typer.Option()] = default(EvaluateSettings, "seed"),
) -> None:
    """Compare models: bits per byte, tokens, copying, benchmark tasks, answers to prompts, speed."""
    made = EvaluateSettings().tasks
    named = [name for name in (tasks or "").split(",") if name]
    benchmark = checked(
        BenchmarkSettings,
        tasks=[n for n in named if n not in made],
        data=data and str(data),
        shots=shots,
        chat=chat,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
    )
    settings = checked(
        EvaluateSettings,
        tasks=made if tasks is None else [n for n in named if n in made],
        items=items,
        characters=characters,
        seed=seed,
        benchmark=benchmark,
        prompts=prompts and str(prompts),
        speed=speed,
    )
    from lep.benchmark.tasks import EVERYTHING, groups, task_names
    from lep.evaluation.evaluate import evaluate

    known = {*made, *task_names(), *groups(), EVERYTHING}
    if stray := [model for model in models if model in known and not Path(model).exists()]:
        raise LepError(
            f"{stray[0]} is a task where a model is expected: write --tasks {','.join([*named, *stray])}"
        )
    say(str(evaluate(models, texts_of(text) or {}, output, settings)))


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write the report page of a run again."""
    from lep.report.page import write_report

    say(f"report: {write_report(run_dir)}")


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    show: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if show:
        typer.echo(f"lep {__version__}")
        raise typer.Exit
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and context.invoked_subcommand != "pretrain":
        raise LepError(
            f"a launcher started {os.environ['WORLD_SIZE']} processes of lep {context.invoked_subcommand}, and only "
            "lep pretrain shares its work out among them: start the others by themselves"
        )
