"""What the commands share: the app, options that recur, and how settings are made of them."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lep.errors import LepError
from lep.settings import Settings

app = typer.Typer(
    help="Give an open large language model a new language: fewer tokens, the same answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Option(help="Model: a local folder or a hub id.")]
Output = Annotated[Path, typer.Option(help="Folder to write; must not exist.")]
Corpus = Annotated[
    list[str],
    typer.Option(
        help="txt, jsonl (also gz, zst) or parquet file, or a folder of them; more may follow."
    ),
]
Script = Annotated[
    str, typer.Option(help="Unicode script of new tokens: cyrillic ..., auto (of the corpus), any.")
]
VocabSize = Annotated[int, typer.Option(help="Tokens of the result, special ones included.")]
Protect = Annotated[list[str] | None, typer.Option(help="Texts whose tokens are all kept.")]
Texts = Annotated[
    list[str] | None, typer.Option("--text", help="LANGUAGE=PATH of text to make copy tasks from.")
]


EvalTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--eval-text", help="LANGUAGE=PATH: held-out text; the state best on the first stays."
    ),
]


NotInText = Annotated[
    list[str] | None,
    typer.Option(
        "--eval-text",
        help="LANGUAGE=PATH: text that is evaluated on; no copy task may share any of it.",
    ),
]
Checkpointing = Annotated[
    bool,
    typer.Option(
        "--activation-checkpointing", help="Less memory, up to half more time: for large models."
    ),
]
Precision = Annotated[str, typer.Option(help="auto, bf16 or float32.")]
MicroBatch = Annotated[int, typer.Option(help="Samples that are in memory at once.")]
MaxLength = Annotated[int, typer.Option(help="Tokens; longer samples are left out.")]
Merge = Annotated[
    bool,
    typer.Option(
        "--merge/--no-merge", help="Merge the adapter, or leave it beside the model, in adapter/."
    ),
]


def default(settings: type[Settings], name: str) -> Any:
    """A setting's default, from the one place where it is declared."""
    return settings.model_fields[name].default


def say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        print(text, flush=True)


def checked(kind: type[Settings], **values: Any) -> Any:
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several settings together
            raise LepError(str(first["ctx"]["error"])) from error
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise LepError(
            f"{option} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
        ) from error


def texts_of(pairs: list[str] | None, option: str = "--text") -> dict[str, list[str | Path]] | None:
    texts: dict[str, list[str | Path]] = {}
    for pair in pairs or []:
        language, equals, path = pair.partition("=")
        if not equals or not language or not path:
            raise LepError(
                f"{option} is '{pair}': write LANGUAGE=PATH, for example {option} ru=heldout.txt"
            )
        texts.setdefault(language, []).append(path)
    return texts or None
