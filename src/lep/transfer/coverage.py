"""Choose a corpus in which every new token has its contexts, instead of all of a stream."""

from itertools import compress
from pathlib import Path

import numpy as np

from lep.checkpoint.reader import Checkpoint
from lep.corpus.files import SHEET, Paths, corpus_files
from lep.corpus.read import Document
from lep.corpus.sheet import CoverageReport
from lep.errors import CheckpointError, CorpusError
from lep.files import read_json
from lep.transfer.mappings import saved_mappings

AT_ONCE = 500  # texts that are encoded together


class Coverage:
    """Keeps a document if it has a new token that the documents kept before have too rarely."""

    def __init__(self, model: str | Path, contexts: int) -> None:
        """`model` must say which tokens are new, as `lep init` writes it, or `CheckpointError`."""
        checkpoint = Checkpoint(model).check()
        mappings = saved_mappings(checkpoint)
        if not mappings:
            raise CheckpointError(
                f"{checkpoint.folder} does not say which of its tokens are new "
                "(lep/mapping.safetensors): give a model that lep init wrote"
            )
        self.contexts, self.tokenizer = contexts, checkpoint.tokenizer.backend_tokenizer
        self.vocabulary = checkpoint.vocabulary.fingerprint()
        new = mappings["input"].new_rows().numpy()
        self.index = np.full(mappings["input"].target_size, -1)  # of new tokens in `counts`
        self.index[new] = np.arange(len(new))
        self.counts = np.zeros(len(new), dtype=np.int64)
        self.left_out = 0

    def needed(self, documents: list[Document]) -> list[Document]:
        """The documents that are needed, in their order."""
        kept: list[bool] = []
        for start in range(0, len(documents), AT_ONCE):
            texts = [document.text for document in documents[start : start + AT_ONCE]]
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            kept += [self._keep(encoding.ids) for encoding in encodings]
        self.left_out += kept.count(False)
        return list(compress(documents, kept))

    def _keep(self, ids: list[int]) -> bool:
        index = self.index[np.asarray(ids, dtype=np.int64)]
        counts = np.bincount(index[index >= 0], minlength=len(self.counts))
        needed = bool(((counts > 0) & (self.counts < self.contexts)).any())
        self.counts += counts * needed
        return needed

    def report(self) -> CoverageReport:
        return CoverageReport(
            contexts=self.contexts,
            vocabulary=self.vocabulary,
            new_tokens=len(self.counts),
            covered=int((self.counts >= self.contexts).sum()),
            without_any=int((self.counts == 0).sum()),
            documents_left_out=self.left_out,
        )


def check_vocabulary(paths: Paths, checkpoint: Checkpoint) -> None:
    """Raise `CorpusError` when a corpus was chosen for the tokens of another vocabulary."""
    vocabulary = checkpoint.vocabulary.fingerprint()
    for folder in sorted({file.parent for file in corpus_files(paths)}):
        sheet = folder / SHEET
        record = read_json(sheet, CorpusError) if sheet.exists() else {}
        coverage = record.get("coverage")
        covered = coverage.get("vocabulary") if isinstance(coverage, dict) else None
        if covered not in (None, vocabulary):
            raise CorpusError(
                f"the corpus {folder} covers the new tokens of vocabulary {str(covered)[:12]}, and "
                f"{checkpoint.folder} has {vocabulary[:12]}: make it again with lep corpus --cover"
            )
