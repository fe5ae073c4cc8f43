"""The command that makes a corpus of raw text."""

from typing import Annotated

import typer

from lep.cli.common import Output, app, checked, default, say
from lep.errors import LepError
from lep.settings import BuildSettings, ClusterSettings


@app.command()
def corpus(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="Text files, folders, hub:OWNER/NAME[:CONFIG]\\[@SPLIT]."
        ),
    ],
    output: Output,
    language: Annotated[
        str | None, typer.Option(help="ISO 639-1 code: other scripts are dropped.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="NAME=W,...: how often each document of a source is given.")
    ] = "",
    dedup: Annotated[
        str, typer.Option(help="exact, minhash (near duplicates, too) or none.")
    ] = default(BuildSettings, "dedup"),
    boilerplate: Annotated[
        int, typer.Option(help="Take out lines that are in so many documents; 0: none.")
    ] = default(BuildSettings, "boilerplate"),
    documents: Annotated[
        int | None, typer.Option(help="At most so many of each hub data set.")
    ] = None,
    cover: Annotated[
        str | None,
        typer.Option(
            help="Model that lep init wrote: keep the text that its new tokens need, and no more."
        ),
    ] = None,
    contexts: Annotated[
        int, typer.Option(help="Occurrences of each new token, with --cover.")
    ] = default(BuildSettings, "contexts"),
    seed: Annotated[int, typer.Option()] = default(BuildSettings, "seed"),
    executor: Annotated[
        str | None,
        typer.Option(
            help="local or slurm: clean and deduplicate in tasks (datatrove), nothing else."
        ),
    ] = None,
    tasks: Annotated[int, typer.Option(help="Of an executor.")] = default(ClusterSettings, "tasks"),
    workers: Annotated[int, typer.Option(help="Tasks at once, local.")] = default(
        ClusterSettings, "workers"
    ),
    partition: Annotated[str, typer.Option(help="Slurm partition.")] = default(
        ClusterSettings, "partition"
    ),
    time: Annotated[str, typer.Option(help="Slurm time limit of a task.")] = default(
        ClusterSettings, "time"
    ),
) -> None:
    """Clean, deduplicate, weigh and shuffle raw text."""
    if executor:
        others = {
            "weights": weights,
            "dedup": dedup,
            "boilerplate": boilerplate,
            "documents": documents,
            "cover": cover,
        }
        unset: dict[str, object] = {"weights": "", "cover": None}
        for name, value in others.items():
            if value != unset.get(name, default(BuildSettings, name)):
                raise LepError(
                    f"--{name} is not for --executor, which cleans and deduplicates: give it to lep corpus "
                    "--dedup exact on the result"
                )
        in_tasks = checked(
            ClusterSettings,
            language=language,
            executor=executor,
            tasks=tasks,
            workers=workers,
            partition=partition,
            time=time,
        )
        from lep.transfer.corpus import clean_corpus

        say(str(clean_corpus(list(paths), output, in_tasks)))
        return
    settings = checked(
        BuildSettings,
        language=language,
        weights=weights_of(weights),
        dedup=dedup,
        boilerplate=boilerplate,
        documents=documents,
        cover=cover,
        contexts=contexts,
        seed=seed,
    )
    from lep.transfer.corpus import build_corpus

    say(str(build_corpus(list(paths), output, settings)))


def weights_of(text: str) -> dict[str, float]:
    """`NAME=W,...` as a dictionary."""
    found = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise LepError(f"--weights has '{pair}': write NAME=W, for example wiki=2,news=0.5")
    return found
