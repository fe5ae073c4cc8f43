"""Lines that many documents repeat: headers, calls to subscribe, copyright notices."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from lep.corpus.read import Copy, Document

LEAST_CHARACTERS = 20  # good text repeats shorter lines too: "Yes.", a chapter's number
ROWS = 2  # of two-byte counters; the count of a line is the smaller of its cells
CELLS, MOST_CELLS = 1 << 24, 1 << 28  # in a row
BYTES_A_CELL = 64  # of raw text
FULL = 1 / 8  # of `documents`: above this mean count of a cell, chance alone makes lines common
SAMPLES, SAMPLE_CHARACTERS = 10, 200


@dataclass(frozen=True)
class BoilerplateReport:
    """What was removed, with some of the lines; or that there were too many lines to tell.

    A line counts in each document that holds it, and once in a document that is repeated.
    """

    lines: int
    characters: int
    samples: list[str]
    too_many_lines_to_tell: bool


class Boilerplate:
    """Counts the documents that hold each line; removes lines of `documents` or more (0: none).

    A count is too high if other lines share both cells of a line (count-min sketch, Cormode &
    Muthukrishnan 2005). While the mean count of a cell is at most `FULL * documents`, this removes
    less than one good line in a million (for 20 documents). Beyond that nothing is removed, and the
    report says so.
    """

    def __init__(self, documents: int, raw_bytes: int = 0) -> None:
        self.documents = documents
        self.cells = CELLS
        while self.cells < min(MOST_CELLS, raw_bytes // BYTES_A_CELL):
            self.cells *= 2
        self.counts = np.zeros((ROWS, self.cells), dtype=np.uint16)
        self.counted = self.lines = self.characters = 0
        self.samples: dict[str, None] = {}

    @property
    def reliable(self) -> bool:
        """Whether lines may be removed: they are wanted, and the cells are not too full."""
        return self.documents > 0 and self.counted <= self.cells * self.documents * FULL

    def add(self, text: str) -> None:
        """Count the lines of a document, each once."""
        cells = list({cell for line in text.split("\n") for cell in self._cells(line)})
        if cells:
            self.counted += len(cells) // ROWS
            rows, columns = np.array(cells).T
            self.counts[rows, columns] += self.counts[rows, columns] < np.iinfo(np.uint16).max

    def cleaned(
        self, documents: Sequence[Document], drop: Callable[[Document], None] | None = None
    ) -> list[Document]:
        """The documents without common lines; `drop` is told those that become empty.

        Lines and documents that are written several times are counted once.
        """
        kept: list[Document] = []
        for document in documents:
            first = not isinstance(document, Copy)
            if text := self.without(document.text, count=first):
                kept.append(replace(document, text=text))
            elif drop is not None and first:
                drop(document)
        return kept

    def without(self, text: str, *, count: bool = True) -> str:
        """The text without the common lines, which are counted unless `count` is false."""
        kept: list[str] = []
        for line in text.split("\n"):
            if self._common(line):
                if not count:
                    continue
                self.lines += 1
                self.characters += len(line)
                if len(self.samples) < SAMPLES:
                    self.samples[line[:SAMPLE_CHARACTERS]] = None
            else:
                kept.append(line)
        return "\n".join(kept).strip()

    def report(self) -> BoilerplateReport:
        unreliable = self.documents > 0 and not self.reliable
        return BoilerplateReport(self.lines, self.characters, list(self.samples), unreliable)

    def _common(self, line: str) -> bool:
        counts = [int(self.counts[cell]) for cell in self._cells(line)]
        return bool(counts) and min(counts) >= self.documents

    def _cells(self, line: str) -> Iterator[tuple[int, int]]:
        if len(line) >= LEAST_CHARACTERS:
            digest = blake2b(line.encode(errors="replace"), digest_size=4 * ROWS).digest()
            for row in range(ROWS):
                yield row, int.from_bytes(digest[4 * row : 4 * row + 4], "little") % self.cells
