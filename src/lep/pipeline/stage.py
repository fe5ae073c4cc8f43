"""A stage: a folder that is made once for a set of inputs and settings, and again only when they change."""

import fcntl
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any

import lep
from lep.errors import OutputError
from lep.publish import fingerprint

HASHED_BYTES = 64 << 20  # larger files are known by size and time of change
MANIFEST, LOCKS = "lep_stage.json", ".lock"
WAIT_SECONDS = 0.5  # for another process


@dataclass(frozen=True)
class Stage:
    """What makes a folder: an action on the folder's place, and everything its result depends on.

    `action(output)` must publish `output` whole or not at all, and continue what a killed run left beside it.
    """

    name: str
    action: Callable[[Path], object]
    settings: dict[str, Any]
    upstream: tuple["Stage", ...] = ()
    files: tuple[Path, ...] = ()
    version: int = 1

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(
            [
                self.name,
                self.version,
                self.settings,
                [stage.fingerprint for stage in self.upstream],
                [identity(file) for file in self.files],
            ]
        )


@dataclass
class Places:
    """Where stages end: `folder/NAME`, with other names for those of a grid that need them, by fingerprint."""

    folder: Path
    names: dict[str, str] = field(default_factory=dict)

    def name(self, stage: Stage) -> str:
        return self.names.get(stage.fingerprint, stage.name)

    def of(self, stage: Stage) -> Path:
        return self.folder / self.name(stage)


@dataclass
class Runner:
    """Runs stages under a folder. Several processes that run the same ones share them out among themselves."""

    places: Places
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    def run_all(self, stages: list[Stage]) -> None:
        """Run every stage after those that it depends on, in the order given; `stages` have each once."""
        self.places.folder.mkdir(parents=True, exist_ok=True)
        pending = {
            stage.fingerprint: (number, stage) for number, stage in enumerate(stages, start=1)
        }
        with (self.places.folder / LOCKS).open("a") as locks:
            waiting = False
            while pending:
                before = len(pending)
                for key, (number, stage) in list(pending.items()):
                    ready = not any(needed.fingerprint in pending for needed in stage.upstream)
                    if ready and self._run(stage, f"[{number}/{len(stages)}]", locks):
                        del pending[key]
                if len(pending) == before:
                    if not waiting:
                        self.say("waiting for another process that is making what comes next ...")
                    waiting = True
                    time.sleep(WAIT_SECONDS)
                else:
                    waiting = False

    def _run(self, stage: Stage, position: str, locks: IO[str]) -> bool:
        """Make the stage's folder unless it is up to date; False when another process is at it."""
        if self._is_made(stage, position):
            return True
        byte = int(stage.fingerprint[:12], 16)
        try:
            fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):  # which of them depends on the system
            return False
        except OSError as error:
            raise OutputError(
                f"{locks.name} cannot be locked ({error.strerror}), so that no two processes would do the same: choose "
                "a run folder on a file system with locks"
            ) from error
        try:
            if not self._is_made(stage, position):  # by the process that had the lock
                self._make(stage, position)
        finally:
            fcntl.lockf(locks, fcntl.LOCK_UN, 1, byte)
        return True

    def _is_made(self, stage: Stage, position: str) -> bool:
        name, record = self.places.name(stage), _manifest(self.places.of(stage))
        if record.get("fingerprint") != stage.fingerprint:
            return False
        self.seconds[name] = record["seconds"]
        self.say(f"{position} {name}: up to date")
        return True

    def _make(self, stage: Stage, position: str) -> None:
        place, name = self.places.of(stage), self.places.name(stage)
        manifest = place / MANIFEST
        self.say(f"{position} {name} ...")
        made = self.places.folder / ".work" / f"{name}-{stage.fingerprint}"
        made.parent.mkdir(parents=True, exist_ok=True)
        started = time.time()
        if not made.exists():  # it does when a run was killed between making and naming
            stage.action(made)
        self.seconds[name] = round(time.time() - started, 1)
        record = {
            "stage": name,
            "fingerprint": stage.fingerprint,
            "version": stage.version,
            "lep": lep.__version__,
            "settings": stage.settings,
            "upstream": {self.places.name(s): s.fingerprint for s in stage.upstream},
            "files": [str(file) for file in stage.files],
            "seconds": self.seconds[name],
        }
        (made / MANIFEST).write_text(json.dumps(record, indent=1, default=str) + "\n")
        if place.exists():
            manifest.unlink(missing_ok=True)  # first: what is half deleted must not look up to date
            shutil.rmtree(place)
        made.rename(place)
        for stale in made.parent.iterdir():
            if re.fullmatch(
                rf"{re.escape(name)}-[0-9a-f]{{{len(stage.fingerprint)}}}(\..*)?", stale.name
            ):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        self.say(f"{position} {name}: {self.seconds[name]:.0f} s")


def made_stages(folder: Path) -> dict[str, str]:
    """The names of the stages that are made in a folder, by fingerprint."""
    found = {
        place.parent: _manifest(place.parent) for place in sorted(folder.glob(f"*/{MANIFEST}"))
    }
    return {record["fingerprint"]: place.name for place, record in found.items() if record}


def _manifest(place: Path) -> dict[str, Any]:
    """What a made stage says of itself; nothing where it is not there, or just being made again."""
    try:
        return json.loads((place / MANIFEST).read_text())
    except FileNotFoundError:
        return {}


def identity(path: Path) -> list[list[str]]:
    """What a file or folder is: the hash of each file's content, size and time of change for large ones."""
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
