"""The command line: one thin command for each verb. Heavy imports wait until a command runs."""

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from lep import __version__
from lep.cli import models, runs, tokenizers
from lep.cli.verb import app
from lep.errors import LepError, LepWarning, check_utf8, printable
from lep.progress import is_terminal

__all__ = ["app", "main", "models", "runs", "tokenizers"]


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        typer.echo(f"lep {__version__}")
        raise typer.Exit
    processes, name = os.environ.get("WORLD_SIZE", "1"), context.invoked_subcommand
    if int(processes) > 1 and name != "pretrain":
        advice = "only lep pretrain shares its work: start other verbs without a launcher"
        raise LepError(f"a launcher started {processes} processes of lep {name}, but {advice}")


_warning = warnings.formatwarning
INTERRUPTED = 130  # the exit code after Ctrl-C


def _note_or_warning(message: Any, category: type[Warning], *where: Any, **line: Any) -> str:
    note = issubclass(category, LepWarning)
    text = f"note: {message}\n" if note else _warning(message, category, *where, **line)
    return printable(text)


def main() -> None:
    """Entry point: user faults are one sentence on standard error and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not is_terminal():  # bars of libraries would fill a file with their states
        for library in ("HF_HUB", "HF_DATASETS"):
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    warnings.formatwarning = _note_or_warning
    for stream in (sys.stdout, sys.stderr):  # a character that the locale lacks is spelled out
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        for argument in sys.argv[1:]:
            check_utf8(argument)
        app()
    except (LepError, OSError) as error:  # OSError: a full or read-only disk, for example
        fault = str(error)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            print(
                "stopped; what is finished is kept, and the same command goes on", file=sys.stderr
            )
        raise
    except (MemoryError, RecursionError) as error:
        fault = _exhausted(error)
    except RuntimeError as error:
        _, is_cpu, needed = str(error).partition("DefaultCPUAllocator: can't allocate memory: ")
        if is_cpu:  # torch's, as the other
            fault = _exhausted(MemoryError(needed.partition(". ")[0]))
        elif type(error).__name__ == "OutOfMemoryError":  # torch is not imported for this
            reason = str(error).partition(". ")[0]
            advice = "use smaller batches or --activation-checkpointing"
            fault = f"device memory is full ({reason}): {advice}"
        else:
            raise
    print(f"error: {printable(' '.join(fault.splitlines()))}", file=sys.stderr)
    sys.exit(2)


def _exhausted(error: MemoryError | RecursionError) -> str:
    """In words: content that no limit refused was too large, or nested too deep, for a library."""
    if isinstance(error, MemoryError):
        reason = f" ({error})" if str(error) else ""
        return f"memory is full{reason}: use smaller batches or files, or a larger machine"
    return (
        "a file is nested too deep to be read: look for long chains of brackets in what was given"
    )
