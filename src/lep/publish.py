"""Write a folder or a file whole or not at all: under another name first, then renamed."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lep.durable import holding, locked, sync, sync_folder, sync_tree
from lep.errors import LepError, OutputError

LOCK_FILE = "lep_unfinished.lock"  # in a folder that is being written
SAVED = "checkpoint-*"  # folders in there that are worth hours


def fingerprint(value: Any) -> str:
    """A short hash of any JSON-like value, the same on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_output(output: Path) -> None:
    """Raise `OutputError` when `output` exists already: nothing is ever overwritten."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"the output {output} exists already: delete it or choose another path")


def check_files(paths: Iterable[Path]) -> None:
    """Raise `OutputError` unless files that are written together are new, and their folders exist.

    Some may be there if others are unfinished: then a run was killed while it named them.
    """
    there: dict[bool, list[Path]] = {True: [], False: []}
    for path in paths:
        if not (folder := path.parent).is_dir():
            advice = "create it first"
            raise OutputError(f"there is no folder {folder} to write {path.name} in: {advice}")
        there[path.exists()].append(path)
    if there[True] and not any(partial_path(path).exists() for path in there[False]):
        first = there[True][0]
        raise OutputError(f"the output {first} exists already: delete it or choose another path")


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


def partial_path(output: Path, resume_key: str | None = None) -> Path:
    """Where `output` is written until it is whole; runs with another `resume_key` write elsewhere.

    The name alone says that an unfinished run wrote it. So the last step of a run is one rename,
    and a kill before it leaves nothing that the same command could mistake for somebody's files.
    """
    path = output.resolve()  # "." and links too
    return path.with_name(f"{path.name}.{fingerprint(resume_key)}.partial")


@contextmanager
def publishing(output: Path, *, resume_key: str | None = None) -> Iterator[Path]:
    """A folder to write into, renamed to `output` when the block ends without an exception.

    With `resume_key` the folder still holds what an interrupted run with the same key wrote;
    otherwise it starts empty. An exception publishes nothing, and deletes the folder, and those
    above it that were created for it, unless the run can be resumed.

    Raises `OutputError` while another process writes there, and where an interrupted run with
    another key has saved its state.
    """
    path, partial = output.resolve(), partial_path(output, resume_key)
    with created(path.parent):
        with holding(path.parent):
            check_output(output)
            _check_others(output, partial)
            partial.mkdir(exist_ok=True)
            lock = locked(partial / LOCK_FILE, output)
            if resume_key is None:
                _empty(partial)
        with _deleted_if_empty(partial), lock:
            try:
                yield partial
                sync_tree(partial)
                with holding(path.parent):
                    (partial / LOCK_FILE).unlink()
                    partial.rename(path)  # an empty folder is replaced
            except BaseException as error:
                saved = resume_key is not None and _has_saved(partial)
                if resume_key is None or (isinstance(error, LepError) and not saved):
                    shutil.rmtree(partial, ignore_errors=True)
                raise
        sync_folder(path.parent)


@contextmanager
def created(folder: Path) -> Iterator[None]:
    """Create a folder; an exception in the block removes again what was created and is empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty, for example
            for path in missing:
                path.rmdir()
        raise


def _check_others(output: Path, partial: Path) -> None:
    """Delete what interrupted runs with other keys left. Raises `OutputError` if it is of use."""
    name = re.compile(re.escape(output.resolve().name) + r"\.[0-9a-f]{16}\.partial")
    others = (path for path in partial.parent.iterdir() if name.fullmatch(path.name))
    for other in (path for path in others if path != partial and path.is_dir()):
        with _deleted_if_empty(other), locked(other / LOCK_FILE, output):
            if _has_saved(other):
                raise OutputError(
                    f"{other} holds the saved state of an unfinished run with other settings or "
                    "inputs, or inputs in another place: give those again to go on with it, choose "
                    f"another output than "
                    f"{output}, or delete that folder"
                )
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def _deleted_if_empty(folder: Path) -> Iterator[None]:
    """Delete a folder after the block, if it is still there and empty.

    On NFS a deleted lock stays in its folder, under another name, until it is closed.
    """
    try:
        yield
    finally:
        with suppress(OSError):
            if folder.exists():
                folder.rmdir()


def _has_saved(partial: Path) -> bool:
    files = (file for state in partial.rglob(SAVED) for file in state.rglob("*"))
    return any(file.is_file() and file.stat().st_size for file in files)


def _empty(folder: Path) -> None:
    """Delete everything in a folder but its lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


@contextmanager
def publishing_files(paths: Sequence[Path], *, replace: bool = False) -> Iterator[list[IO[bytes]]]:
    """Files to write, which take their names when the block ends without an exception.

    Raises `OutputError` while another process writes one, and where one exists (see `check_files`);
    with `replace` processes wait for each other, and the last one's files stay.
    """
    if not replace:
        check_files(paths)
    partials = [partial_path(path) for path in paths]
    with ExitStack() as stack:
        pairs = list(zip(partials, paths, strict=True))
        files = [stack.enter_context(locked(*pair, wait=replace)) for pair in pairs]
        try:
            if not replace:
                check_files(paths)  # another process may have had the lock
            for file in files:
                file.truncate(0)
            yield files
            for file in files:
                sync(file)
            for partial, path in pairs:
                partial.rename(path.resolve())
        except BaseException:
            for partial in partials:
                partial.unlink(missing_ok=True)
            raise
    for folder in {path.parent for path in partials}:
        sync_folder(folder)


@contextmanager
def publishing_file(path: Path) -> Iterator[IO[bytes]]:
    """One file to write; see `publishing_files`."""
    with publishing_files([path]) as (file,):
        yield file


def publish_texts(texts: Mapping[Path, str], *, replace: bool = False) -> None:
    """Write UTF-8 files whole or not at all; see `publishing_files`."""
    with publishing_files(list(texts), replace=replace) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.write(text.encode())


def publish_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all; replaces an older one."""
    publish_texts({path: text}, replace=True)
