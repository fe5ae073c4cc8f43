"""A stage: a folder that is built once for its inputs and settings, and rebuilt if they change."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any, TypeAlias

import lep
from lep.durable import sync_folder
from lep.errors import OutputError
from lep.files import open_binary, read_json, without_paths
from lep.pipeline.memory import forget_peaks, peaks
from lep.publish import created, fingerprint, publish_text
from lep.report.run_record import RUN_RECORD

HASHED_BYTES = 64 << 20  # larger files are known by size and time of change
MANIFEST, LOCKS, WORK = "lep_stage.json", ".lock", ".work"
ATTEMPT = ".attempt.json"  # beside what a stage has built so far: its seconds before, and its start
WAIT_SECONDS = 0.5  # for another process
VERSION = 1  # of the fingerprints

Source: TypeAlias = "Stage | Path"  # what another stage builds, or a given file or folder
FolderOf: TypeAlias = Callable[[Source], Path]


def final_folder(work: Path) -> Path:
    """Where the folder that a stage builds at `work` goes."""
    return work.parent.parent / work.name.rpartition("-")[0]


@dataclass(frozen=True)
class Stage:
    """What builds a folder, and everything that its content depends on.

    `action(output, at)` finds the folder of another stage by `at(stage)`; `at` of a path is the
    path. It publishes `output` whole or not at all, and continues what a killed run left beside it.
    `check(output)` yields what the user should know before other stages use the result, and raises
    `LepError` if none can.
    """

    name: str
    action: Callable[[Path, FolderOf], object]
    settings: dict[str, Any]
    inputs: tuple[Source, ...] = ()
    check: Callable[[Path], Iterable[str]] = lambda output: ()

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
        return fingerprint([self.name, VERSION, self.settings, upstream, files])


@dataclass(frozen=True)
class RunFolder:
    """Where stages are built: in `path/NAME`; `names` holds other names, by fingerprint."""

    path: Path
    names: dict[str, str] = field(default_factory=dict)

    def name(self, stage: Stage) -> str:
        return self.names.get(stage.fingerprint, stage.name)

    def of(self, source: Source) -> Path:
        return source if isinstance(source, Path) else self.path / self.name(source)


@dataclass
class Runner:
    """Runs stages in a folder. Processes that run the same stages share the work.

    After each stage that is built, `watch` is called with the names of those still to do.
    """

    folder: RunFolder
    say: Callable[[str], None]
    watch: Callable[[list[str]], None] = lambda waiting: None
    seconds: dict[str, float] = field(default_factory=dict)
    pending: dict[str, tuple[str, Stage]] = field(default_factory=dict)  # by fingerprint

    def run_all(self, stages: list[Stage]) -> None:
        """Run each of the stages, all different, after those that it depends on.

        A fault before the first one is built leaves no folder behind.
        """
        with created(self.folder.path):
            try:
                self._run_all(stages)
            except BaseException:
                self._tidy()
                raise

    def _run_all(self, stages: list[Stage]) -> None:
        for i, stage in enumerate(stages, 1):
            self.pending[stage.fingerprint] = f"[{i}/{len(stages)}]", stage
        pending, waiting = self.pending, False
        with (self.folder.path / LOCKS).open("a+b") as locks:
            while pending:
                before = len(pending)
                for key, (position, stage) in list(pending.items()):
                    ready = not any(other.fingerprint in pending for other in stage.upstream)
                    if ready and self._run(stage, position, locks):
                        del pending[key]
                if len(pending) == before:
                    if not waiting:
                        self.say("waiting for another process, which builds what comes next ...")
                    time.sleep(WAIT_SECONDS)
                waiting = len(pending) == before

    def _tidy(self) -> None:
        """Delete the lock of a folder without any stage, finished or not."""
        work = self.folder.path / WORK
        for record in work.glob(f"*{ATTEMPT}"):
            if _leftovers(work, re.escape(record.name.removesuffix(ATTEMPT))) == [record]:
                record.unlink(missing_ok=True)
        with suppress(OSError):
            work.rmdir()
        if [path.name for path in self.folder.path.iterdir()] == [LOCKS]:
            (self.folder.path / LOCKS).unlink()

    def _run(self, stage: Stage, position: str, locks: IO[bytes]) -> bool:
        """Build the stage unless it is up to date; False while another process builds it."""
        if self._is_current(stage, position):
            return True
        byte = int(stage.fingerprint[:12], 16)
        try:
            fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):  # which of them depends on the system
            return False
        except OSError as error:
            raise OutputError(
                f"{locks.name} cannot be locked ({error.strerror}), so two processes could build "
                "the same stage: choose a run folder on a file system with locks"
            ) from error
        try:
            look_again(self.folder.path)
            look_again(self.folder.of(stage))
            if not self._is_current(stage, position):  # by the process that had the lock
                self._build(stage, position)
        finally:
            fcntl.lockf(locks, fcntl.LOCK_UN, 1, byte)
        return True

    def _is_current(self, stage: Stage, position: str) -> bool:
        name, manifest = self.folder.name(stage), read_manifest(self.folder.of(stage))
        if manifest.get("fingerprint") != stage.fingerprint:
            return False
        self.seconds[name] = manifest["seconds"]
        self.say(f"{position} {name}: up to date")
        return True

    def _build(self, stage: Stage, position: str) -> None:
        folder, name = self.folder.of(stage), self.folder.name(stage)
        self.say(f"{position} {name} ...")
        work = self.folder.path / WORK / f"{name}-{stage.fingerprint}"
        work.parent.mkdir(parents=True, exist_ok=True)
        before, started = _attempt(work), time.time()
        forget_peaks()
        if not work.exists():  # it exists if a run was killed just before it took its name
            stage.action(work, self.folder.of)
        for line in stage.check(work):
            self.say(line)
        self.seconds[name] = round(before + time.time() - started, 1)
        publish_text(work / MANIFEST, self._manifest(stage, peaks()))
        if folder.exists():
            (self.folder.path / RUN_RECORD).unlink(missing_ok=True)  # it was of the stage before
            (folder / MANIFEST).unlink(missing_ok=True)  # half deleted is not up to date
            shutil.rmtree(folder)
        work.rename(folder)
        sync_folder(folder.parent)
        keys = f"[0-9a-f]{{{len(stage.fingerprint)}}}"  # of other settings too
        for path in _leftovers(work.parent, f"{re.escape(name)}-{keys}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.say(f"{position} {name}: {self.seconds[name]:.0f} s")
        if others := [self.folder.name(s) for _, s in self.pending.values() if s is not stage]:
            self.watch(others)

    def _manifest(self, stage: Stage, memory: dict[str, int]) -> str:
        name = self.folder.name(stage)
        manifest = {
            "stage": name,
            "fingerprint": stage.fingerprint,
            "version": VERSION,
            "lep": lep.__version__,
            "settings": without_paths(stage.settings),
            "upstream": {self.folder.name(other): other.fingerprint for other in stage.upstream},
            "files": without_paths(stage.files),
            "seconds": self.seconds[name],
            "memory": memory,
        }
        return json.dumps(manifest, indent=1, default=str) + "\n"


def _leftovers(folder: Path, names: str) -> list[Path]:
    """What attempts at stages left, whose names fit a regular expression, suffixes apart."""
    pattern = re.compile(rf"{names}(\..*)?")
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name)]


def _attempt(work: Path) -> float:
    """Begin an attempt; the seconds of earlier ones, each up to the last file that it wrote."""
    record, seconds = work.with_name(work.name + ATTEMPT), 0.0
    if record.exists():
        earlier = read_json(record)
        left = [path for path in _leftovers(work.parent, re.escape(work.name)) if path != record]
        files = [file for path in left for file in (path, *path.rglob("*"))]
        last = max((file.stat().st_mtime for file in files), default=0.0)
        seconds = earlier["seconds"] + max(0.0, last - earlier["started"])
    publish_text(record, json.dumps({"seconds": seconds, "started": time.time()}))
    return seconds


def built_stages(folder: Path) -> dict[str, str]:
    """The names of the stages that a run folder holds, by fingerprint."""
    folders = [path.parent for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    manifests = ((path.name, read_manifest(path)) for path in folders)
    return {manifest["fingerprint"]: name for name, manifest in manifests if manifest}


def look_again(folder: Path) -> None:
    """Open and close a folder: NFS then asks its server what is in it, not its own cache."""
    with suppress(OSError):  # there may be none
        os.close(os.open(folder, os.O_RDONLY))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a stage recorded about itself; empty if that is not there or not whole."""
    try:
        manifest = read_json(folder / MANIFEST)
    except FileNotFoundError:  # perhaps just being replaced
        return {}
    types = {"fingerprint": str, "seconds": int | float}
    is_whole = all(isinstance(manifest.get(key), kind) for key, kind in types.items())
    return manifest if is_whole else {}


def identity(path: Path) -> list[list[str]]:
    """Name and content of a file, or of each file of a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files]
    return [[str(f.relative_to(path)), _hash(f, s.st_size, s.st_mtime_ns)] for f, s in stats]


@cache
def _hash(file: Path, size: int, changed: int) -> str:
    if size > HASHED_BYTES:
        return f"{size} bytes, {changed}"
    with open_binary(file) as raw:
        return hashlib.sha256(raw.read()).hexdigest()
