"""Verbs for runs, text and scores."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import lep
from lep.cli.verb import Values, app, say, verb
from lep.errors import LepError
from lep.hub import short_names
from lep.settings import (
    BuildSettings,
    ClusterSettings,
    EvaluateSettings,
    PositiveInt,
    TaskName,
    Texts,
)


@verb(app, output="Run folder (default: runs/NAME).")
def run(recipe: Path, changes: Values = (), /, output: Path | None = None) -> Any:
    """Run a recipe. Finished stages are kept; processes with the same folder share the work."""
    from lep.pipeline.recipe_file import load_grid

    grid = load_grid(recipe, changes)  # faults show before anything heavy is imported
    return f"\n{lep.run_recipe(grid, output, say=say)}"


@verb(
    app,
    model="Instruct model: a local folder or a hub id.",
    text="LANGUAGE=PATH: text of the new language, and of one that the model knows (default: none; "
    "both are needed).",
    output="Run folder; the same command continues there.",
    language="Code of the new language (default: the first of the text).",
    new_tokens="Tokens to add (default: as many as pay and can be taught).",
    tokens="Tokens to train on (default: 600 for each new token).",
    prompts="Prompts: jsonl with messages (default: from the text, and from the model).",
    hours="Hours for the whole run, which decide the tokens (default: no limit).",
    from_pack="Pack of a sibling of the model, to start from (default: none).",
    title="Heading of the report (default: the name of the run folder).",
    dry_run="Only say what is decided, and print the recipe.",
)
def adapt(
    model: str,
    changes: Values = (),
    /,
    *,
    text: Texts,
    output: Path,
    language: str | None = None,
    new_tokens: PositiveInt | None = None,
    tokens: PositiveInt | None = None,
    prompts: str | None = None,
    hours: float | None = None,
    from_pack: str | None = None,
    title: str = "",
    dry_run: bool = False,
) -> Any:
    """Teach an instruct model a new language, from text to verdict; writes a recipe and runs it."""
    # After --text, a change is read as text of a language with a dot.
    late = [f"{code}={path}" for code, paths in text.items() if "." in code for path in paths]
    return lep.adapt(
        model,
        {code: paths for code, paths in text.items() if "." not in code},
        output,
        language=language,
        new_tokens=new_tokens,
        tokens=tokens,
        prompts=prompts,
        hours=hours,
        from_pack=from_pack,
        title=title,
        overrides=[*changes, *late],
        dry_run=dry_run,
        say=say,
    )


@verb(app, gpu="A GPU (h200, h100, a100, l40s, rtx4090, rtx3090), or here: this device.")
def plan(
    recipe: Path, changes: Values = (), /, hours: float | None = None, gpu: str = "here"
) -> Any:
    """Estimate what a recipe takes and saves, before anything is loaded or written."""
    from lep.pipeline.recipe_file import load_grid

    load_grid(recipe, changes)  # faults show before anything heavy is imported
    return lep.forecast(recipe, gpu, hours=hours, overrides=changes)


@verb(
    app,
    original="Original instruct model: a local folder or a hub id.",
    adapted="The model that was made from it (default: none, one model answers).",
    terminal="Talk in the terminal; otherwise in a browser.",
    max_new_tokens="Longest answer, in tokens.",
    port="Port of the page (default: a free one).",
)
def chat(
    original: str,
    adapted: str | None = None,
    /,
    *,
    terminal: bool = False,
    max_new_tokens: PositiveInt = 256,
    port: PositiveInt | None = None,
) -> None:
    """Ask a model, or two at once, and watch the answers, token by token."""
    if not terminal and find_spec("gradio") is None:
        advice = "install lep with its extra 'chat', or give --terminal"
        raise LepError(f"the page of lep chat needs gradio: {advice}")
    from lep.chat.stream import Speaker

    sources = [original, adapted] if adapted else [original]
    names = short_names(sources)
    speakers = [Speaker.of(*each) for each in zip(sources, names, strict=True)]
    if terminal:
        from lep.chat.terminal import talk

        talk(speakers, max_new_tokens)
    else:
        from lep.chat.browser import serve

        serve(speakers, max_new_tokens, port)


@verb(app)
def doctor() -> Any:
    """Say what this machine has, and which verbs will not work on it."""
    return lep.doctor()


@verb(app)
def report(folder: Path, /) -> str:
    """Rewrite the report page of a run, and print its verdict."""
    from lep.report.page import write_report
    from lep.report.verdict import run_verdict

    page, verdict = write_report(folder), run_verdict(folder)
    return f"report: {page}" + (f"\n\n{verdict}" if verdict else "")


@verb(app)
def corpus(
    paths: list[str], /, output: Path, settings: BuildSettings, cluster: ClusterSettings
) -> Any:
    """Clean, deduplicate, weight and shuffle raw text."""
    in_tasks = cluster.executor is not None
    if unused := (settings if in_tasks else cluster).model_fields_set - {"language"}:
        after = "is not for --executor: give it to lep corpus --dedup exact on the result"
        raise LepError(f"--{min(unused)} {after if in_tasks else 'needs --executor'}")
    if in_tasks:
        return lep.clean_corpus(paths, output, cluster)
    return lep.build_corpus(paths, output, settings)


@verb(app, text="LANGUAGE=PATH: held-out text (default: none).")
def evaluate(
    models: list[str], /, output: Path, settings: EvaluateSettings, text: Texts, tasks: str = ""
) -> Any:
    """Compare models: bits per byte, tokens, copying, benchmark tasks, answers, speed."""
    from lep.benchmark.tasks import EVERYTHING, groups, task_names

    names = [name for name in tasks.split(",") if name]
    known = {*get_args(TaskName), *task_names(), *groups(), EVERYTHING}
    if stray := [model for model in models if model in known and not Path(model).exists()]:
        advice = ",".join([*names, *stray])
        raise LepError(f"{stray[0]} is a task where a model is expected: write --tasks {advice}")
    return lep.evaluate(models, text, output, settings.with_tasks(names) if names else settings)
