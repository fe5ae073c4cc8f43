"""Write a folder whole or not at all: under another name first, then renamed."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lep.errors import LepError, OutputError
from lep.files import write_text

KEY_FILE = "lep_unfinished.json"


def fingerprint(value: Any) -> str:
    """A short hash of any JSON-like value, the same on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_output(output: Path) -> None:
    """Raise `OutputError` when `output` exists already: nothing is ever overwritten."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"the output {output} exists already: delete it or choose another path")


def check_folder(path: Path) -> None:
    """Raise `OutputError` when the folder of a file to be written does not exist."""
    if not (folder := path.parent).is_dir():
        raise OutputError(f"there is no folder {folder} to write {path.name} in: create it first")


def check_space(output: Path, needed_bytes: int) -> None:
    """Raise `OutputError` when the disk of `output` has less free space than `needed_bytes`."""
    free = shutil.disk_usage(existing_parent(output)).free
    if free < needed_bytes:
        raise OutputError(
            f"writing {output} needs {needed_bytes / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB "
            "free: free some space or choose another disk"
        )


def existing_parent(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def partial_folder(output: Path) -> Path:
    """The folder that `output` is written in until it is whole."""
    path = output.resolve()  # "." and links too
    return path.with_name(path.name + ".partial")


@contextmanager
def publishing(output: Path, *, resume_key: str | None = None) -> Iterator[Path]:
    """A folder to write into, renamed to `output` when the block ends without an exception.

    With `resume_key` the folder still holds what an interrupted run with the same key wrote;
    otherwise it starts empty. An exception publishes nothing, and deletes the folder unless the run
    can be resumed.

    Raises `OutputError` while another process writes there, and for a folder of unknown origin.
    """
    check_output(output)
    partial = partial_folder(output)
    key = partial / KEY_FILE
    if partial.exists() and any(partial.iterdir()) and not key.exists():
        raise OutputError(
            f"{partial} is in the way, and no unfinished run wrote it: move it or choose another "
            "output"
        )
    partial.mkdir(parents=True, exist_ok=True)
    with key.open("a+", encoding="utf-8") as lock:
        _lock(lock, output)
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
        if (path := output.resolve()).exists():
            path.rmdir()  # empty, as checked above
        partial.rename(path)


def _lock(file: IO[str], output: Path) -> None:
    with suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another process is writing {output}: wait for it or choose another output"
            ) from error


def _empty(folder: Path) -> None:
    """Delete everything in a folder but its key."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != KEY_FILE:
            path.unlink()


def publish_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; replaces an older one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    write_text(partial, text)
    partial.replace(path)
