"""A corpus in which every new token has its contexts, instead of all of a stream."""

import json
from collections.abc import Iterable, Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import SHEET, corpus_files
from lep.errors import CheckpointError, CorpusError
from lep.transfer.mappings import saved_mappings

AT_ONCE = 500  # texts that are encoded together


class Coverage:
    """Keeps a document while it holds a new token that occurred too rarely in those that were kept before."""

    def __init__(self, model: str | Path, contexts: int) -> None:
        """`model` is one that `lep init` wrote: it says which tokens are new. Raises `CheckpointError` for others."""
        checkpoint = Checkpoint(model).check()
        mappings = saved_mappings(checkpoint)
        if not mappings:
            raise CheckpointError(
                f"{checkpoint.folder} does not say which of its tokens are new (lep/mapping.safetensors): give a model "
                "that lep init wrote"
            )
        self.contexts, self.tokenizer = contexts, checkpoint.tokenizer.backend_tokenizer
        self.vocabulary = checkpoint.vocabulary.fingerprint()
        new = mappings["input"].new_rows().numpy()
        self.place = np.full(mappings["input"].target_size, -1)
        self.place[new] = np.arange(len(new))
        self.counts = np.zeros(len(new), dtype=np.int64)
        self.left_out = 0

    def needed(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The records whose texts are needed, in their order."""
        found: list[bool] = []
        for encoding in self._encoded([record["text"] for record in records]):
            place = self.place[np.asarray(encoding.ids, dtype=np.int64)]
            counts = np.bincount(place[place >= 0], minlength=len(self.counts))
            found.append(bool(((counts > 0) & (self.counts < self.contexts)).any()))
            self.counts += counts * found[-1]
        self.left_out += found.count(False)
        return list(compress(records, found))

    def _encoded(self, texts: list[str]) -> Iterator[Any]:
        for start in range(0, len(texts), AT_ONCE):
            yield from self.tokenizer.encode_batch_fast(
                texts[start : start + AT_ONCE], add_special_tokens=False
            )

    def record(self) -> dict[str, Any]:
        return {
            "contexts": self.contexts,
            "vocabulary": self.vocabulary,
            "new_tokens": len(self.counts),
            "covered": int((self.counts >= self.contexts).sum()),
            "without_any": int((self.counts == 0).sum()),
            "documents_left_out": self.left_out,
        }


def check_vocabulary(paths: Iterable[str | Path], checkpoint: Checkpoint) -> None:
    """Raise `CorpusError` where a corpus was chosen for the tokens of another vocabulary."""
    for folder in sorted({file.parent for file in corpus_files(paths)}):
        sheet = folder / SHEET
        coverage = (
            json.loads(sheet.read_text(encoding="utf-8")).get("coverage")
            if sheet.exists()
            else None
        )
        if coverage and coverage["vocabulary"] != checkpoint.vocabulary.fingerprint():
            raise CorpusError(
                f"the corpus {folder} covers the new tokens of vocabulary {coverage['vocabulary'][:12]}, and "
                f"{checkpoint.folder} has {checkpoint.vocabulary.fingerprint()[:12]}: make it again with lep corpus "
                "--cover"
            )
