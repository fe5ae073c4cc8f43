"""`lep corpus`: raw text in; one clean, mixed and shuffled corpus out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lep.corpus.build import write_corpus
from lep.corpus.files import Paths, several
from lep.corpus.sheet import Corpus
from lep.errors import LepError
from lep.result import Result
from lep.settings import BuildSettings, ClusterSettings


def build_corpus(
    paths: Paths, output: str | Path, settings: BuildSettings | None = None, **options: Any
) -> Corpus:
    """Clean, deduplicate, weigh and shuffle the documents under `paths` into the folder `output`.

    `paths` are text files, folders of them, or hub data sets `hub:OWNER/NAME[:CONFIG][@SPLIT]`.
    With `cover`, only documents that the new tokens of that model need are kept
    (`lep.transfer.coverage`).

    Raises `CorpusError` for unreadable text, weights of unknown sources, and when nothing is left;
    `CheckpointError` when `cover` does not say which of its tokens are new; `OutputError` when
    `output` exists.
    """
    output = Path(output)
    settings = BuildSettings.given(settings, options)
    if not settings.cover:
        return write_corpus(paths, output, settings)
    from lep.transfer.coverage import Coverage  # torch and transformers take most of the memory

    return write_corpus(paths, output, settings, Coverage(settings.cover, settings.contexts))


@dataclass(frozen=True)
class CleanCorpus(Result):
    """Clean text that is still to be mixed (on Slurm, when its jobs are done)."""

    output: Path
    executor: str

    def __str__(self) -> str:
        when = "When its jobs are done, mix" if self.executor == "slurm" else "Mix"
        command = f"lep corpus {self.output} --dedup exact --output ..."
        return f"{when} and shuffle the result: {command}"


def clean_corpus(
    paths: Paths, output: str | Path, settings: ClusterSettings | None = None, **options: Any
) -> CleanCorpus:
    """Clean and deduplicate text in tasks, on this machine's cores or as jobs of a Slurm cluster.

    Repeating the call continues an interrupted run: finished tasks are skipped. Needs the extra
    `cluster`.

    Raises `LepError` without datatrove, a Slurm partition, or Slurm itself, and what
    `lep.corpus.cluster.run_stages` raises.
    """
    output = Path(output)
    settings = ClusterSettings.given(settings, options)
    if settings.executor == "slurm" and not settings.partition:
        raise LepError("--executor slurm needs --partition: name one that sinfo lists")
    try:
        from lep.corpus.cluster import run_stages
    except ImportError as error:
        advice = "install lep with its extra 'cluster'"
        raise LepError(f"--executor needs datatrove: {advice}") from error
    run_stages(list(map(str, several(paths))), output, settings)
    return CleanCorpus(output, settings.executor or "local")
