"""`lep corpus` on datatrove: cleaning and near duplicates in tasks, on this machine's cores or on a Slurm cluster.

The same text is made plain and the same reasons drop it as on one machine; signatures lie on disk, so that memory
does not grow with the corpus. What comes out is mixed, shuffled and chosen by a plain `lep corpus --dedup exact`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import regex
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
from lep.corpus.duplicates import shingles
from lep.corpus.prepare import sections
from lep.corpus.read import corpus_files, read_file
from lep.errors import OutputError
from lep.publish import check_output, fingerprint
from lep.settings import ClusterSettings

WORD = regex.compile(r"\w+")
# Documents that share 0.7 of their shingles meet in one of 20 buckets of 6 hashes with 92%, 0.8: 99.8%, 0.3: 1.4%.
MINHASH = MinhashConfig(num_buckets=20, hashes_per_bucket=6)


class Clean(PipelineStep):
    """Reads every n-th file, makes its documents plain, and drops those that have a fault, counted by reason."""

    type, name = "lep", "clean"

    def __init__(self, paths: list[str], language: str | None) -> None:
        super().__init__()
        self.paths, self.language = paths, language

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Item]:
        for file in corpus_files(self.paths)[rank::world_size]:
            for document in read_file(file):
                for piece in sections(document, LONGEST):
                    text = plain(piece.text)
                    reason = fault(text, self.language)
                    self.stat_update(reason or "kept")
                    if reason is None:
                        yield Item(
                            text=text,
                            id=piece.id,
                            metadata={"source": piece.source, "group": piece.group},
                        )


class Signatures(MinhashDedupSignature):
    """Of the shingles that the light path has, for any language."""

    def __init__(self, folder: str, config: MinhashConfig) -> None:
        PipelineStep.__init__(self)  # the stock one loads a word tokenizer for one language
        self.output_folder, self.config = get_datafolder(folder), config
        self.num_hashes = config.num_buckets * config.hashes_per_bucket
        self._parameters, self._hash_func = None, create_hash_func(config.hash_config)
        self.skip_existing_sigs = False

    def get_shingles(self, text: str) -> np.ndarray:
        hashes = [
            self._hash_func(shingle.encode()) for shingle in shingles(WORD.findall(text.lower()))
        ]
        return np.array(hashes, dtype=np.uint64).reshape(-1, 1)


def stages(
    paths: list[str], output: Path, settings: ClusterSettings
) -> list[tuple[list[PipelineStep], int]]:
    """The pipelines, each with its number of tasks; each needs the one before it to be complete."""
    clean, signatures, pairs, remove = (
        str(work_folder(output) / name) for name in ("clean", "signatures", "pairs", "remove")
    )
    return [
        ([Clean(paths, settings.language), _writer(clean)], settings.tasks),
        ([JsonlReader(clean), Signatures(signatures, MINHASH)], settings.tasks),
        ([MinhashDedupBuckets(signatures, pairs, config=MINHASH)], MINHASH.num_buckets),
        ([MinhashDedupCluster(pairs, remove, config=MINHASH)], 1),
        ([JsonlReader(clean), MinhashDedupFilter(remove), _writer(str(output))], settings.tasks),
    ]


def work_folder(output: Path) -> Path:
    """Beside the result, which is a corpus of its own."""
    return output.with_name(output.name + ".work")


def _writer(folder: str) -> JsonlWriter:
    def record(_: Any, item: Item) -> dict[str, Any]:
        return {
            "id": item.id,
            "text": item.text,
            "source": item.metadata["source"],
            "group": item.metadata["group"],
        }

    return JsonlWriter(folder, output_filename="${source}-${rank}.jsonl.gz", adapter=record)


def run_stages(paths: list[str], output: Path, settings: ClusterSettings) -> None:
    """Run them here, or give them to Slurm, where each waits for the one before; finished tasks are not done again.

    Raises `CorpusError` for paths without text files, `OutputError` where the result is there already, or was begun
    with other files or settings.
    """
    files = [[str(file.resolve()), file.stat().st_size] for file in corpus_files(paths)]
    work, key = work_folder(output), fingerprint([files, settings.language, settings.tasks])
    begun = work / "begun"
    if not begun.exists():
        check_output(output)
        work.mkdir(parents=True)
        begun.write_text(key)
    elif begun.read_text() != key:
        raise OutputError(
            f"{work} was begun with other files, another language or number of tasks: give the same ones to go on, or "
            f"delete it and {output}"
        )
    last: Any = None
    for number, (pipeline, tasks) in enumerate(stages(paths, output, settings)):
        logs = str(work / "logs" / str(number))
        if settings.executor == "local":
            LocalPipelineExecutor(pipeline, tasks, workers=settings.workers, logging_dir=logs).run()
        else:
            last = SlurmPipelineExecutor(
                pipeline,
                tasks,
                settings.time,
                settings.partition,
                logging_dir=logs,
                depends=last,
                job_name=f"lep-corpus-{number}",
            )
    if last:
        last.run()  # and first those that it depends on
