"""A stage: a folder that is made once for a set of inputs and settings, and again only when they change."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lep
from lep.publish import fingerprint

HASHED_BYTES = 64 << 20  # larger files are known by size and time of change
MANIFEST = "lep_stage.json"


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
        return fingerprint([
            self.name, self.version, self.settings, [stage.fingerprint for stage in self.upstream],
            [identity(file) for file in self.files],
        ])  # fmt: skip


@dataclass
class Runner:
    """Runs stages in order under a folder; each ends as `folder/NAME`."""

    folder: Path
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    def place(self, stage: Stage) -> Path:
        return self.folder / stage.name

    def run(self, stage: Stage, position: str) -> bool:
        """Make the stage's folder unless it is up to date; whether there was anything to do."""
        place = self.place(stage)
        manifest = place / MANIFEST
        if manifest.exists() and json.loads(manifest.read_text())["fingerprint"] == stage.fingerprint:
            self.seconds[stage.name] = json.loads(manifest.read_text())["seconds"]
            self.say(f"{position} {stage.name}: up to date")
            return False
        self.say(f"{position} {stage.name} ...")
        made = self.folder / ".work" / f"{stage.name}-{stage.fingerprint}"
        made.parent.mkdir(parents=True, exist_ok=True)
        started = time.time()
        if not made.exists():  # it does when a run was killed between making and naming
            stage.action(made)
        self.seconds[stage.name] = round(time.time() - started, 1)
        record = {
            "stage": stage.name, "fingerprint": stage.fingerprint, "version": stage.version, "lep": lep.__version__,
            "settings": stage.settings, "upstream": {s.name: s.fingerprint for s in stage.upstream},
            "files": [str(file) for file in stage.files], "seconds": self.seconds[stage.name],
        }  # fmt: skip
        (made / MANIFEST).write_text(json.dumps(record, indent=1, default=str) + "\n")
        if place.exists():
            manifest.unlink(missing_ok=True)  # first: what is half deleted must not look up to date
            shutil.rmtree(place)
        made.rename(place)
        for stale in made.parent.glob(f"{stage.name}-" + "?" * len(stage.fingerprint) + "*"):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        self.say(f"{position} {stage.name}: {self.seconds[stage.name]:.0f} s")
        return True


def identity(path: Path) -> list[list[str]]:
    """What a file or folder is: the hash of each file's content, size and time of change for large ones."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[str(file.relative_to(path)), _content(file)] for file in files]


def _content(file: Path) -> str:
    status = file.stat()
    if status.st_size > HASHED_BYTES:
        return f"{status.st_size} bytes, {status.st_mtime_ns}"
    return hashlib.sha256(file.read_bytes()).hexdigest()
