"""What the work folder of `lep corpus --executor` tells about its tasks: which are complete."""

from pathlib import Path

from lep.errors import CorpusError
from lep.files import read_text

BEGUN, LAST_STAGE = "begun", 4


def work_folder(output: Path) -> Path:
    """The folder of intermediate files, beside the result, which is a corpus by itself."""
    return output.with_name(output.name + ".work")


def stage_logs(folder: Path, stage: int) -> Path:
    """Where datatrove marks the tasks of a stage as complete."""
    return folder / "logs" / str(stage)


def incomplete(folder: Path, stage: int, tasks: int) -> int:
    """How many tasks of a stage are not complete.

    Each mark is asked for by name, because a list of a folder on NFS may be old.
    """
    marks = stage_logs(folder, stage) / "completions"
    return sum(not (marks / f"{rank:05}").is_file() for rank in range(tasks))


def check_complete(output: Path) -> None:
    """Raise `CorpusError` for the result of a run of which some tasks are not complete.

    Without the work folder every result is taken for complete, as any other corpus is.
    """
    output = output.resolve()
    if not output.name or not (begun := work_folder(output) / BEGUN).is_file():
        return
    _, *tasks = read_text(begun).split()  # older versions wrote no number of tasks
    if tasks and (left := incomplete(begun.parent, LAST_STAGE, int(tasks[0]))):
        raise CorpusError(
            f"{left} of the {tasks[0]} tasks that write {output} are not complete: wait for them, "
            "or give the command that began them again"
        )
