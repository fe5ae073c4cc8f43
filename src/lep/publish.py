"""Write a folder whole or not at all: beside its place first, then renamed into it."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lep.errors import LepError, OutputError

KEY_FILE = "lep_unfinished.json"


def fingerprint(value: Any) -> str:
    """A short hash of any JSON-like value; the same value has the same one everywhere."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_output(output: Path) -> None:
    """Raise `OutputError` when `output` exists already: nothing is ever overwritten."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"the output {output} exists already: delete it or choose another place")


def check_folder(place: Path) -> None:
    """Raise `OutputError` where there is no folder to write a file in."""
    if not place.parent.is_dir():
        raise OutputError(
            f"there is no folder {place.parent} to write {place.name} in: make it first"
        )


def check_space(output: Path, needed_bytes: int) -> None:
    """Raise `OutputError` when the disk of `output` has less free space than `needed_bytes`."""
    place = output.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise OutputError(
            f"writing {output} needs {needed_bytes / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free: "
            "free some space or choose another disk"
        )


def partial_folder(output: Path) -> Path:
    """Where `output` is until it is whole."""
    place = output.resolve()  # of "." and of links, too
    return place.with_name(place.name + ".partial")


@contextmanager
def publishing(output: Path, *, resume_key: str | None = None) -> Iterator[Path]:
    """A folder to write into that takes the name `output` when the block ends well.

    With `resume_key`, what an interrupted run of the same key left behind is found in the folder again;
    without it, or when the key differs, the folder starts empty. After an exception nothing is published, and
    nothing is left behind either unless it can be resumed.

    Raises `OutputError` while another process writes there, and for a folder in the way that is not ours.
    """
    check_output(output)
    partial = partial_folder(output)
    key = partial / KEY_FILE
    if partial.exists() and any(partial.iterdir()) and not key.exists():
        raise OutputError(
            f"{partial} is in the way, and no unfinished run made it: move it or choose another output"
        )
    partial.mkdir(parents=True, exist_ok=True)
    with key.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another process is writing {output}: wait for it or choose another output"
            ) from error
        except OSError:  # a file system without locks
            pass
        lock.seek(0)
        if not (resume_key and lock.read() == resume_key):
            _empty(partial)
            lock.truncate(0)
            lock.write(resume_key or "")
            lock.flush()
        try:
            yield partial
        except BaseException as error:
            saved = resume_key is not None and any(partial.rglob("checkpoint-*"))
            if not resume_key or (isinstance(error, LepError) and not saved):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        key.unlink(missing_ok=True)
        if (place := output.resolve()).exists():
            place.rmdir()  # empty, as checked above
        partial.rename(place)


def _empty(folder: Path) -> None:
    """Delete all that is in a folder but its key."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != KEY_FILE:
            entry.unlink()


def publish_text(place: Path, text: str) -> None:
    """Write a file whole or not at all, in place of an older one."""
    partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(place)
