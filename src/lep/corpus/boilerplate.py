"""Lines that come again in many documents: headers, calls to subscribe, notices of rights."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np

LEAST_CHARACTERS = 20  # shorter lines come again in good text too: "Yes.", a chapter's number
ROWS, CELLS = 2, 1 << 24  # of the counters, 64 MB whatever the corpus; a line's count is the least of its cells
SAMPLES = 10


class Boilerplate:
    """Counts in how many documents each line is, and takes out those that are in `documents` or more.

    Counts are too high where lines share their cells in both rows (Cormode & Muthukrishnan 2005), which is rare up to
    some hundred million different lines.
    """

    def __init__(self, documents: int) -> None:
        self.documents = documents
        self.counts = np.zeros((ROWS, CELLS), dtype=np.uint16)
        self.lines = self.characters = 0
        self.samples: dict[str, None] = {}

    def add(self, text: str) -> None:
        """Count a document's lines."""
        cells = list({cell for line in text.split("\n") for cell in _cells(line)})
        if cells:
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
            cells = list(_cells(line))
            if cells and min(int(self.counts[cell]) for cell in cells) >= self.documents:
                self.lines += 1
                self.characters += len(line)
                if len(self.samples) < SAMPLES:
                    self.samples[line[:200]] = None
            else:
                kept.append(line)
        return "\n".join(kept).strip()

    def record(self) -> dict[str, Any]:
        return {"lines": self.lines, "characters": self.characters, "samples": list(self.samples)}


def _cells(line: str) -> Iterator[tuple[int, int]]:
    if len(line) >= LEAST_CHARACTERS:
        digest = blake2b(line.encode(errors="replace"), digest_size=4 * ROWS).digest()
        for row in range(ROWS):
            yield row, int.from_bytes(digest[4 * row : 4 * row + 4], "little") % CELLS
