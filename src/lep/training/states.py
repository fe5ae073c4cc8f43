"""The states that a training saves on its way, `checkpoint-STEP`."""

import json
import shutil
from pathlib import Path

from lep.errors import LepError, OutputError
from lep.files import read_json
from lep.publish import SAVED, publish_text
from lep.training import processes

WEIGHTS, STATE = "trained.safetensors", "trainer_state.json"
BEGUN = "begun.json"  # beside the states: how a step was shared when the first one was saved
START = "checkpoint-0"  # weights alone: no training continues from it


def last_state(folder: Path) -> Path | None:
    """The newest whole state in a folder to continue from.

    Deletes states that a kill left half written.
    """
    for state in reversed(states_in(folder)):
        if state.name == START:
            continue
        try:
            (state / WEIGHTS).stat()  # a state of an older version has other files
            read_json(state / STATE)  # what the Trainer writes last
            return state
        except (OSError, LepError):
            shutil.rmtree(state, ignore_errors=True)  # another process may have done so
    return None


def states_in(folder: Path) -> list[Path]:
    """The states in a folder, by step."""
    return sorted(folder.glob("checkpoint-*"), key=state_step)


def state_step(state: Path | str) -> int:
    """The step of a saved state."""
    return int(str(state).rpartition("-")[2])


def check_step(work: Path, sequences: int) -> None:
    """Note the sequences of a step in a folder, before a state is saved there.

    Raises `OutputError` where steps of the saved states had another number: the schedule and the
    order of the sequences would not be theirs.
    """
    file, count = work / BEGUN, processes.world_size()
    with processes.main_first():
        if processes.is_main() and not (file.exists() and next(work.rglob(SAVED), None)):
            publish_text(file, json.dumps({"sequences": sequences, "processes": count}))
    begun = read_json(file)
    if begun["sequences"] != sequences:
        before, now = (f"{n} process{'es' * (n > 1)}" for n in (begun["processes"], count))
        raise OutputError(
            f"{work.parent} holds the saved state of a training with {begun['sequences']} "
            f"sequences a step, and {now} would take {sequences}: go on with {before}, or delete "
            "that folder"
        )
