"""`lep corpus --executor`: cleaning and near duplicates by datatrove, in tasks, here or on Slurm.

The rules are those of `lep corpus` on one machine, but signatures lie on disk, so memory does not
grow with the corpus. `lep corpus --dedup exact` then mixes, shuffles and chooses from the result.
"""

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
from lep.corpus.duplicates import shingles, words_of
from lep.corpus.files import corpus_files, source_names
from lep.corpus.prepare import sections
from lep.corpus.read import read_file
from lep.errors import CorpusError, LepError, OutputError, foreign
from lep.files import read_text
from lep.publish import check_output, created, fingerprint, publish_text
from lep.settings import ClusterSettings

# Two documents that share 0.8, 0.7, 0.3 of their shingles share a bucket with 99.8%, 92%, 1.4%.
MINHASH = MinhashConfig(num_buckets=20, hashes_per_bucket=6)
Stage = tuple[list[PipelineStep], int]  # a pipeline, and its number of tasks


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
    `OutputError` when the result exists, or was begun with other files or settings, and `LepError`
    when Slurm refuses the jobs.
    """
    with created(work_folder(output).parent):
        folder = _begun(paths, output, settings)
    if settings.executor == "slurm":
        _submit(stages(paths, output, settings), folder / "logs", settings)
        return
    for number, (pipeline, tasks) in enumerate(stages(paths, output, settings)):
        logs = str(folder / "logs" / str(number))
        what = f"step {number + 1} of the corpus on {tasks} tasks failed"
        advice = f"look at {logs}; where no document is kept, there is nothing to go on with"
        with foreign(what, advice, CorpusError):
            LocalPipelineExecutor(pipeline, tasks, workers=settings.workers, logging_dir=logs).run()


def _begun(paths: list[str], output: Path, settings: ClusterSettings) -> Path:
    """The work folder, new or of the same run."""
    files = [[str(file.resolve()), file.stat().st_size] for file in corpus_files(paths)]
    folder, key = work_folder(output), fingerprint([files, settings.language, settings.tasks])
    begun = folder / "begun"
    if not begun.exists():
        check_output(output)
        folder.mkdir(parents=True, exist_ok=True)
        publish_text(begun, key)
    elif read_text(begun) != key:
        raise OutputError(
            f"{folder} was begun with other files, another language or number of tasks: "
            f"give the same ones to continue, or delete it and {output}"
        )
    return folder


def work_folder(output: Path) -> Path:
    """The folder of intermediate files, beside the result, which is a corpus by itself."""
    return output.with_name(output.name + ".work")


def stages(paths: list[str], output: Path, settings: ClusterSettings) -> list[Stage]:
    """The pipelines and their numbers of tasks; each needs the whole result of the one before."""
    folder, tasks = work_folder(output), settings.tasks
    clean, signatures = str(folder / "clean"), str(folder / "signatures")
    pairs, remove = str(folder / "pairs"), str(folder / "remove")
    return [
        ([Clean(paths, settings.language), _writer(clean)], tasks),
        ([JsonlReader(clean), Signatures(signatures, MINHASH)], tasks),
        ([MinhashDedupBuckets(signatures, pairs, config=MINHASH)], MINHASH.num_buckets),
        ([MinhashDedupCluster(pairs, remove, config=MINHASH)], 1),
        ([JsonlReader(clean), MinhashDedupFilter(remove), _writer(str(output))], tasks),
    ]


def _writer(folder: str) -> JsonlWriter:
    return JsonlWriter(folder, output_filename="${source}-${rank}.jsonl.gz", adapter=_record)


def _record(_: Any, item: Item) -> dict[str, Any]:
    source, group = item.metadata["source"], item.metadata["group"]
    return {"id": item.id, "text": item.text, "source": source, "group": group}


def _submit(pipelines: list[Stage], logs: Path, settings: ClusterSettings) -> None:
    job: Any = None
    scripts = Path(sys.executable).parent  # jobs start one of datatrove's
    for number, (pipeline, tasks) in enumerate(pipelines):
        job = SlurmPipelineExecutor(
            pipeline,
            tasks,
            settings.time,
            settings.partition,
            job_name=f"lep-corpus-{number}",
            logging_dir=str(logs / str(number)),
            depends=job,
            env_command=f'export PATH="{scripts}:$PATH"',
            sbatch_args={"kill-on-invalid-dep": "yes"},  # after a failure, no job waits forever
        )
    try:
        job.run()  # first those that it depends on
    except (OSError, subprocess.CalledProcessError) as error:
        advice = "try sbatch on this machine, and check --partition and --time"
        raise LepError(f"Slurm did not accept the jobs ({error}): {advice}") from error
