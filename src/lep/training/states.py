"""The states that a training saves on its way, `checkpoint-STEP`."""

import shutil
from pathlib import Path

from lep.errors import LepError
from lep.files import read_json

WEIGHTS, STATE = "trained.safetensors", "trainer_state.json"
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
