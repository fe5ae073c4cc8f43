"""`lep corpus --executor`: cleaning and near duplicates by datatrove, in tasks, here or on Slurm.

The rules are those of `lep corpus` on one machine, but signatures lie on disk, so memory does not
grow with the corpus. `lep corpus --dedup exact` then mixes, shuffles and chooses from the result.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as Item
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import create_hash_func

from lep.corpus.build import LONGEST
from lep.corpus.clean import fault, plain
from lep.corpus.completion import BEGUN, incomplete, stage_logs, work_folder
from lep.corpus.duplicates import shingles, words_of
from lep.corpus.files import corpus_files, source_names
from lep.corpus.jobs import Jobs
from lep.corpus.prepare import sections
from lep.corpus.read import read_file
from lep.durable import holding, locked
from lep.errors import CorpusError, LepError, OutputError, foreign
from lep.files import read_text
from lep.publish import LOCK_FILE, check_output, created, fingerprint, publish_text
from lep.settings import ClusterSettings

# Two documents that share 0.8, 0.7, 0.3 of their shingles share a bucket with 99.8%, 92%, 1.4%.
MINHASH = MinhashConfig(num_buckets=20, hashes_per_bucket=6)
Stage = tuple[list[PipelineStep], int]  # a pipeline, and its number of tasks


class AfterStage(PipelineStep):
    """Lets a pipeline begin only when all tasks of a stage are complete.

    Slurm starts the next job after one that ended well, and that does not say as much: of several
    arrays it looks at the last one, and a task with nothing to do ends well too.
    """

    type, name = "lep", "after stage"

    def __init__(self, folder: Path, stage: int, tasks: int) -> None:
        super().__init__()
        self.folder, self.stage, self.tasks = folder, stage, tasks

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        if left := incomplete(self.folder, self.stage, self.tasks):
            raise CorpusError(
                f"{left} of {self.tasks} tasks of step {self.stage + 1} of the corpus are not "
                f"complete: look at {stage_logs(self.folder, self.stage)}, and give the command "
                "again when no job runs"
            )


class Clean(PipelineStep):
    """Reads every n-th file, makes documents plain, and drops those with a fault, by reason."""

    type, name = "lep", "clean"

    def __init__(self, paths: list[str], language: str | None) -> None:
        super().__init__()
        self.paths, self.language = paths, language

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Item]:
        names = source_names(corpus_files(self.paths))
        mine = [*names][rank::world_size]
        documents = (document for file in mine for document in read_file(file, names[file]))
        for piece in (piece for document in documents for piece in sections(document, LONGEST)):
            text = plain(piece.text)
            reason = fault(text, self.language)
            self.stat_update(reason or "kept")
            if reason is None:
                yield Item(text, piece.id, metadata={"source": piece.source, "group": piece.group})


class Signatures(MinhashDedupSignature):
    """MinHash signatures of the shingles of `lep.corpus.duplicates`, for any language."""

    def __init__(self, folder: str, config: MinhashConfig) -> None:
        PipelineStep.__init__(self)  # the stock one loads a word tokenizer for one language
        self.output_folder, self.config = get_datafolder(folder), config
        self.num_hashes = config.num_buckets * config.hashes_per_bucket
        self._parameters, self._hash_func = None, create_hash_func(config.hash_config)
        self.skip_existing_sigs = False

    def get_shingles(self, text: str) -> np.ndarray:
        hashes = [self._hash_func(shingle.encode()) for shingle in shingles(words_of(text))]
        return np.array(hashes, dtype=np.uint64).reshape(-1, 1)


def run_stages(paths: list[str], output: Path, settings: ClusterSettings) -> None:
    """Run the stages here, or submit them to Slurm, where each waits for the one before.

    Finished tasks are not repeated. Raises `CorpusError` for paths without text files,
    `OutputError` when the result exists, was begun with other files or settings, or is being
    written by another process, and `LepError` while jobs of an earlier call wait or run, and when
    Slurm refuses the jobs.
    """
    with created(work_folder(output).parent), holding(work_folder(output).parent):
        folder = _begun(paths, output, settings)
    with locked(folder / LOCK_FILE, output) as lock:
        os.register_at_fork(after_in_child=lock.close)  # datatrove's manager outlives a kill
        jobs = Jobs(folder / "jobs")
        jobs.check_ended()
        if settings.executor == "slurm":
            _submit(stages(paths, output, settings), folder, jobs, settings)
        else:
            _run_here(stages(paths, output, settings), folder, settings.workers)


def _run_here(pipelines: list[Stage], folder: Path, workers: int) -> None:
    for stage, (pipeline, tasks) in enumerate(pipelines):
        logs = str(stage_logs(folder, stage))
        what = f"step {stage + 1} of the corpus on {tasks} tasks failed"
        advice = f"look at {logs}; where no document is kept, there is nothing to go on with"
        with foreign(what, advice, CorpusError):
            LocalPipelineExecutor(pipeline, tasks, workers=workers, logging_dir=logs).run()


def _begun(paths: list[str], output: Path, settings: ClusterSettings) -> Path:
    """The work folder, new or of the same run."""
    files = [[str(file.resolve()), file.stat().st_size] for file in corpus_files(paths)]
    folder, key = work_folder(output), fingerprint([files, settings.language, settings.tasks])
    begun = folder / BEGUN
    if not begun.exists():
        check_output(output)
        folder.mkdir(parents=True, exist_ok=True)
        publish_text(begun, f"{key} {settings.tasks}")
    elif read_text(begun).split()[0] != key:
        raise OutputError(
            f"{folder} was begun with other files, another language or number of tasks: "
            f"give the same ones to continue, or delete it and {output}"
        )
    return folder


def stages(paths: list[str], output: Path, settings: ClusterSettings) -> list[Stage]:
    """The pipelines and their numbers of tasks; each begins when the one before is complete."""
    folder, tasks = work_folder(output), settings.tasks
    clean, signatures = str(folder / "clean"), str(folder / "signatures")
    pairs, remove = str(folder / "pairs"), str(folder / "remove")
    pipelines: list[Stage] = [
        ([Clean(paths, settings.language), _writer(clean)], tasks),
        ([JsonlReader(clean), Signatures(signatures, MINHASH)], tasks),
        ([MinhashDedupBuckets(signatures, pairs, config=MINHASH)], MINHASH.num_buckets),
        ([MinhashDedupCluster(pairs, remove, config=MINHASH)], 1),
        ([JsonlReader(clean), MinhashDedupFilter(remove), _writer(str(output))], tasks),
    ]
    before = [AfterStage(folder, stage, count) for stage, (_, count) in enumerate(pipelines)]
    later = zip(before, pipelines[1:], strict=False)
    return [pipelines[0], *(([first, *steps], count) for first, (steps, count) in later)]


def _writer(folder: str) -> JsonlWriter:
    return JsonlWriter(folder, output_filename="${source}-${rank}.jsonl.gz", adapter=_record)


def _record(_: Any, item: Item) -> dict[str, Any]:
    source, group = item.metadata["source"], item.metadata["group"]
    return {"id": item.id, "text": item.text, "source": source, "group": group}


def _submit(pipelines: list[Stage], folder: Path, jobs: Jobs, settings: ClusterSettings) -> None:
    job: Any = None
    scripts = Path(sys.executable).parent  # jobs start one of datatrove's
    for stage, (pipeline, tasks) in enumerate(pipelines):
        job = SlurmPipelineExecutor(
            pipeline,
            tasks,
            settings.time,
            settings.partition,
            job_name=f"lep-corpus-{stage}",
            job_id_retriever=jobs.accepted,
            logging_dir=str(stage_logs(folder, stage)),
            depends=job,
            env_command=f'export PATH="{scripts}:$PATH"',
            sbatch_args={"kill-on-invalid-dep": "yes"},  # after a failure, no job waits forever
        )
    try:
        job.run()  # first those that it depends on
    except (OSError, subprocess.CalledProcessError) as error:
        advice = "try sbatch on this machine, and check --partition and --time"
        raise LepError(f"Slurm did not accept the jobs ({error}): {advice}") from error
