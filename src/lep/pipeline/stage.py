"""A stage: a folder that is built once for its inputs and settings, and rebuilt only if they change."""

import fcntl
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any, TypeAlias

import lep
from lep.errors import OutputError
from lep.publish import fingerprint

HASHED_BYTES = 64 << 20  # larger files are known by size and time of change
MANIFEST, LOCKS = "lep_stage.json", ".lock"
WAIT_SECONDS = 0.5  # for another process

Source: TypeAlias = (
    "Stage | Path"  # an input of a stage: what another one builds, or a file or folder
)
FolderOf = Callable[["Stage"], Path]


@dataclass(frozen=True)
class Stage:
    """What builds a folder, and everything that its content depends on.

    `action(output, folder_of)` finds other stages by `folder_of(stage)`. It publishes `output` whole
    or not at all, and continues what a killed run left beside it.
    """

    name: str
    action: Callable[[Path, FolderOf], object]
    settings: dict[str, Any]
    inputs: tuple[Source, ...] = ()
    version: int = 1

    @property
    def upstream(self) -> list["Stage"]:
        return [source for source in self.inputs if isinstance(source, Stage)]

    @property
    def files(self) -> list[Path]:
        return [source for source in self.inputs if isinstance(source, Path)]

    @cached_property
    def fingerprint(self) -> str:
        upstream = [stage.fingerprint for stage in self.upstream]
        files = [identity(file) for file in self.files]
        return fingerprint([self.name, self.version, self.settings, upstream, files])


def with_upstream(stages: Iterable[Stage]) -> list[Stage]:
    """The stages and all that they depend on, each once, in an order in which they can run."""
    ordered: dict[str, Stage] = {}
    for stage in stages:
        if stage.fingerprint not in ordered:
            ordered |= {s.fingerprint: s for s in with_upstream(stage.upstream)}
            ordered[stage.fingerprint] = stage
    return list(ordered.values())


@dataclass(frozen=True)
class RunFolder:
    """Where stages are built: in `path/NAME`. Stages of a grid may have other names, by fingerprint."""

    path: Path
    names: dict[str, str] = field(default_factory=dict)

    def name(self, stage: Stage) -> str:
        return self.names.get(stage.fingerprint, stage.name)

    def of(self, stage: Stage) -> Path:
        return self.path / self.name(stage)

    def work(self, stage: Stage) -> Path:
        """Where a stage is built before it takes its name."""
        return self.path / ".work" / f"{self.name(stage)}-{stage.fingerprint}"


@dataclass
class Runner:
    """Runs stages in a folder. Processes that run the same stages share them out among themselves."""

    folder: RunFolder
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    def run_all(self, stages: list[Stage]) -> None:
        """Run each stage after those that it depends on, in the order given; `stages` has each once."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        pending = {
            s.fingerprint: (f"[{i}/{len(stages)}]", s) for i, s in enumerate(stages, start=1)
        }
        waiting = False
        with (self.folder.path / LOCKS).open("a") as locks:
            while pending:
                before = len(pending)
                for key, (position, stage) in list(pending.items()):
                    ready = not any(s.fingerprint in pending for s in stage.upstream)
                    if ready and self._run(stage, position, locks):
                        del pending[key]
                stuck = len(pending) == before
                if stuck and not waiting:
                    self.say("waiting for another process, which builds what comes next ...")
                if stuck:
                    time.sleep(WAIT_SECONDS)
                waiting = stuck

    def _run(self, stage: Stage, position: str, locks: IO[str]) -> bool:
        """Build a stage unless it is up to date; False while another process builds it."""
        if self._is_current(stage, position):
            return True
        with locked(locks, int(stage.fingerprint[:12], 16)) as mine:
            if mine and not self._is_current(stage, position):  # since another process had the lock
                self._build(stage, position)
        return mine

    def _is_current(self, stage: Stage, position: str) -> bool:
        manifest = read_manifest(self.folder.of(stage))
        if manifest.get("fingerprint") != stage.fingerprint:
            return False
        self.seconds[self.folder.name(stage)] = manifest["seconds"]
        self.say(f"{position} {self.folder.name(stage)}: up to date")
        return True

    def _build(self, stage: Stage, position: str) -> None:
        name, work = self.folder.name(stage), self.folder.work(stage)
        self.say(f"{position} {name} ...")
        work.parent.mkdir(parents=True, exist_ok=True)
        started = time.time()
        if not work.exists():  # it exists if a run was killed just before it took its name
            stage.action(work, self.folder.of)
        self.seconds[name] = round(time.time() - started, 1)
        self._write_manifest(stage, work)
        replace_folder(self.folder.of(stage), work)
        leftover = re.compile(rf"{re.escape(name)}-[0-9a-f]{{{len(stage.fingerprint)}}}(\..*)?")
        for path in filter(lambda path: leftover.fullmatch(path.name), work.parent.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.say(f"{position} {name}: {self.seconds[name]:.0f} s")

    def _write_manifest(self, stage: Stage, folder: Path) -> None:
        manifest = {
            "stage": self.folder.name(stage),
            "fingerprint": stage.fingerprint,
            "version": stage.version,
            "lep": lep.__version__,
            "settings": stage.settings,
            "upstream": {self.folder.name(s): s.fingerprint for s in stage.upstream},
            "files": [str(file) for file in stage.files],
            "seconds": self.seconds[self.folder.name(stage)],
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, default=str) + "\n")


@contextmanager
def locked(locks: IO[str], byte: int) -> Iterator[bool]:
    """Hold the lock on one byte of a file; False if another process holds it."""
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):  # which of them depends on the system
        yield False
        return
    except OSError as error:
        raise OutputError(
            f"{locks.name} cannot be locked ({error.strerror}), so two processes could build the same "
            "stage: choose a run folder on a file system with locks"
        ) from error
    try:
        yield True
    finally:
        fcntl.lockf(locks, fcntl.LOCK_UN, 1, byte)


def replace_folder(folder: Path, new: Path) -> None:
    """Give a new folder the name of an old one."""
    if folder.exists():
        # The manifest goes first: a folder that is half deleted must not look up to date.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)
    new.rename(folder)


def built_stages(folder: Path) -> dict[str, str]:
    """The names of the stages that a run folder holds, by fingerprint."""
    folders = [path.parent for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    manifests = {path.name: read_manifest(path) for path in folders}
    return {manifest["fingerprint"]: name for name, manifest in manifests.items() if manifest}


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a stage recorded about itself; empty if it is not there, or just being replaced."""
    try:
        return json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return {}


def identity(path: Path) -> list[list[str]]:
    """Relative path and content of each file of a folder, or of one file: a hash, or size and time."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[str(file.relative_to(path)), _content(file)] for file in files]


def _content(file: Path) -> str:
    status = file.stat()
    return _hash(file, status.st_size, status.st_mtime_ns)


@cache
def _hash(file: Path, size: int, changed: int) -> str:
    if size > HASHED_BYTES:
        return f"{size} bytes, {changed}"
    return hashlib.sha256(file.read_bytes()).hexdigest()
