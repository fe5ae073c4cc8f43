"""Benchmark tasks for lm-evaluation-harness, one in each YAML file; `functions.py` scores them.

Plain `lm_eval --include_path FOLDER` reads them too: `python -m lep.benchmark.tasks` prints FOLDER.
"""

from functools import cache
from pathlib import Path

import yaml

from lep.corpus.tasks import TASKS
from lep.errors import LepError
from lep.fields import nearest

FOLDER = Path(__file__).parent
EVERYTHING = "darumeru"  # the group of groups: the whole benchmark


@cache
def task_names() -> tuple[str, ...]:
    """The names of all task files but the shared parts, which begin with an underscore."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem[0] != "_"))


@cache
def groups() -> dict[str, tuple[str, list[str]]]:
    """Title and tasks of each group, in the order of the paper's tables."""
    files = [
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (FOLDER / "groups").glob("*.yaml")
    ]
    known = {group["group"]: (group["group_alias"], group["task"]) for group in files}
    return {name: known[name] for name in known[EVERYTHING][1]}


def resolve(names: list[str]) -> list[str]:
    """The tasks that names of tasks and groups stand for, each once.

    Raises `LepError` for an unknown name, with the nearest one.
    """
    members = {name: [name] for name in task_names()}
    members |= {name: tasks for name, (_, tasks) in groups().items()}
    members[EVERYTHING] = [task for _, tasks in groups().values() for task in tasks]
    for name in names:
        if name not in members:
            advice = nearest(name, [*members, *TASKS])
            raise LepError(f"unknown benchmark task '{name}': {advice}")
    return list(dict.fromkeys(task for name in names for task in members[name]))
