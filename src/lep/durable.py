"""What a kill or a power cut must not destroy: locks, fsync, and files replaced in one step."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lep.errors import OutputError


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a folder for a moment: processes that look for files in it and then create or rename
    some take turns. Without effect on file systems that lock no folders (NFS).
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def locked(path: Path, output: Path, *, wait: bool = False) -> IO[bytes]:
    """The file `path`, open to append and created if necessary, which no other process holds.

    Raises `OutputError` while another process writes `output`, unless told to `wait` for it. A file
    system without locks locks nothing.
    """
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise OutputError(
                f"another process is writing {output}: wait for it or choose another output"
            ) from error
        except OSError:
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # whoever held it has renamed or deleted it meanwhile


def discard(folder: Path) -> None:
    """Delete a folder: a kill leaves it under its name as it was, or not at all.

    On NFS, files that are still mapped stay under other names until they are closed.
    """
    doomed = folder.with_name(f"{folder.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sync(file: IO[bytes] | IO[str]) -> None:
    """Write a file to the disk itself."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk itself, where the file system can do so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Write a folder, and all that is in it, to the disk itself.

    Files with a second name are skipped: they are links to what was there before.
    """
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path, name)
            if not file.is_symlink() and file.stat().st_nlink == 1:
                with file.open("rb") as content:
                    os.fsync(content.fileno())
        sync_folder(Path(path))
