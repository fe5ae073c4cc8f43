"""Benchmark tasks for lm-evaluation-harness: a YAML file each, whose code is in `functions.py`.

They also serve plain `lm_eval --include_path FOLDER`: `python -m lep.benchmark.tasks` prints it.
"""

import difflib
from functools import cache
from pathlib import Path

import yaml

from lep.corpus.tasks import TASKS
from lep.errors import LepError

FOLDER = Path(__file__).parent
EVERYTHING = "darumeru"  # the group of groups: the whole benchmark


@cache
def task_names() -> tuple[str, ...]:
    """All tasks, by the names of their files; shared parts begin with an underscore."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem[0] != "_"))


@cache
def groups() -> dict[str, tuple[str, list[str]]]:
    """Title and tasks of each group, in the order of the paper's tables."""
    files = [yaml.safe_load(path.read_text()) for path in (FOLDER / "groups").glob("*.yaml")]
    known = {group["group"]: (group["group_alias"], group["task"]) for group in files}
    return {name: known[name] for name in known[EVERYTHING][1]}


def resolve(names: list[str]) -> list[str]:
    """The tasks behind names of groups and tasks, each once.

    Raises `LepError` for an unknown name, with the nearest ones.
    """
    members = {name: [name] for name in task_names()}
    members |= {name: tasks for name, (_, tasks) in groups().items()}
    members[EVERYTHING] = [task for _, tasks in groups().values() for task in tasks]
    for name in names:
        if name not in members:
            known = [*members, *TASKS]
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            advice = f"the nearest are {', '.join(near)}"
            advice = advice if near else f"there are {', '.join(known)}"
            raise LepError(f"unknown benchmark task '{name}': {advice}")
    return list(dict.fromkeys(task for name in names for task in members[name]))
