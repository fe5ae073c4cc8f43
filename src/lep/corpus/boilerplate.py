"""Lines that come again in many documents: headers, calls to subscribe, notices of rights."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np

LEAST_CHARACTERS = 20  # shorter lines come again in good text too: "Yes.", a chapter's number
ROWS, CELLS, MOST_CELLS = (
    2,
    1 << 24,
    1 << 28,
)  # of the counters, of two bytes; a line's count is the least of its cells
BYTES_A_CELL = 64  # of raw text
FULL = 1 / 8  # of `documents`: the mean count of a cell from which chance alone makes lines common
SAMPLES = 10


class Boilerplate:
    """Counts in how many documents each line is, and takes out those that are in `documents` or more (0: none).

    Counts are too high where other lines share a line's cells in both rows (Cormode & Muthukrishnan 2005). While cells
    are filled to an eighth of `documents` on the mean, that takes out less than one good line in a million for
    `documents` of 20; beyond that nothing is taken out, and the record says so.
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
    def sure(self) -> bool:
        """Whether lines may be taken out."""
        return self.documents > 0 and self.counted <= self.cells * max(self.documents * FULL, 0.1)

    def add(self, text: str) -> None:
        """Count a document's lines."""
        cells = list({cell for line in text.split("\n") for cell in self._cells(line)})
        if cells:
            self.counted += len(cells) // ROWS
            rows, columns = np.array(cells).T
            self.counts[rows, columns] += self.counts[rows, columns] < np.iinfo(np.uint16).max

    def taken_out(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The records without the lines that are in too many documents, and without those that are left empty."""
        cleaned = ({**record, "text": self.without(record["text"])} for record in records)
        return [record for record in cleaned if record["text"]]

    def without(self, text: str) -> str:
        """A text without the lines that are in too many documents."""
        kept: list[str] = []
        for line in text.split("\n"):
            cells = list(self._cells(line))
            if cells and min(int(self.counts[cell]) for cell in cells) >= self.documents:
                self.lines += 1
                self.characters += len(line)
                if len(self.samples) < SAMPLES:
                    self.samples[line[:200]] = None
            else:
                kept.append(line)
        return "\n".join(kept).strip()

    def record(self) -> dict[str, Any]:
        found = {"lines": self.lines, "characters": self.characters, "samples": list(self.samples)}
        return found | {"too_many_lines_to_tell": self.documents > 0 and not self.sure}

    def _cells(self, line: str) -> Iterator[tuple[int, int]]:
        if len(line) >= LEAST_CHARACTERS:
            digest = blake2b(line.encode(errors="replace"), digest_size=4 * ROWS).digest()
            for row in range(ROWS):
                yield row, int.from_bytes(digest[4 * row : 4 * row + 4], "little") % self.cells
