"""The Slurm jobs that a command has submitted, so that it does not submit them a second time."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from lep.errors import LepError
from lep.files import read_text

UNKNOWN = "Invalid job id"  # squeue on a single job that ended a while ago


@dataclass(frozen=True)
class Jobs:
    """Ids of jobs, one a line of `file`; each is written as soon as Slurm has accepted the job."""

    file: Path

    def accepted(self, answer: str) -> str:
        """Keep the id that sbatch answers, which is its last word."""
        job = answer.split()[-1]
        with self.file.open("a", encoding="utf-8") as out:
            out.write(f"{job}\n")
        return job

    def check_ended(self) -> None:
        """Forget the jobs. Raises `LepError` while Slurm lists one, or where it does not answer."""
        if not self.file.exists():
            return
        ids = ",".join(read_text(self.file).split())
        if ids and _listed(ids, self.file):
            raise LepError(
                f"jobs of this corpus wait or run (squeue -j {ids}): give the command again when "
                f"they have ended, or cancel them first (scancel $(cat {self.file}))"
            )
        self.file.unlink()


def _listed(ids: str, file: Path) -> str:
    """What squeue lists of the jobs."""
    try:
        command = ["squeue", "-h", "-j", ids]
        squeue = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        fault = squeue.stderr.strip() if squeue.returncode else ""
    except OSError as error:
        fault = str(error)
    if fault and UNKNOWN not in fault:
        raise LepError(
            f"squeue does not tell whether jobs {ids} of this corpus have ended ({fault}): give "
            f"the command where it does, or delete {file} if they have"
        )
    return "" if fault else squeue.stdout.strip()
