"""Split documents into training and held-out, cut them into sections, and sample a bounded amount."""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lep.corpus.read import Document
from lep.errors import CorpusError

SECTION_CHARACTERS = 4000


@dataclass(frozen=True)
class Split:
    """Training and held-out sections; no group of documents is on both sides."""

    train: list[Document]
    heldout: list[Document]


def unit_hash(key: str) -> float:
    """A fixed number in [0, 1) for a string: the same on every machine, in every process, forever."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def sections(document: Document, max_characters: int = SECTION_CHARACTERS) -> list[Document]:
    """Cut a long document at line ends into pieces of at most `max_characters` (a longer line stays whole).

    Every piece starts where a paragraph starts, as the training samples of the paper do (section 3.2).
    """
    if len(document.text) <= max_characters:
        return [document]
    pieces: list[str] = [""]
    for line in document.text.splitlines(keepends=True):
        if pieces[-1] and len(pieces[-1]) + len(line) > max_characters:
            pieces.append("")
        pieces[-1] += line
    return [
        replace(document, id=f"{document.id}#{i}", text=piece.strip("\n"))
        for i, piece in enumerate(pieces)
        if piece.strip()
    ]


def prepare(
    documents: Iterable[Document],
    *,
    heldout_share: float = 0.1,
    limit_characters: int | None = None,
    limit_heldout_characters: int | None = None,
    source_share: float = 1.0,
) -> Split:
    """Split by the fixed hash of each document's group, cut into sections, order by hash, stop at the limits.

    Holding out the groups with the smallest hashes keeps a split stable when documents are added. No source
    gives more than `source_share` of a limit. Memory holds the limit for each source, or all text without one.

    Raises `CorpusError` when one side of the split would be empty.
    """
    sides = {False: _Bounded(limit_characters), True: _Bounded(limit_heldout_characters)}
    for document in documents:
        side = sides[unit_hash(document.group) < heldout_share]
        for section in sections(document):
            side.add(section)
    train = sample(sides[False].documents, limit_characters, source_share)
    heldout = sample(sides[True].documents, limit_heldout_characters, source_share)
    if not train or not heldout:
        side_name = "training" if not train else "held-out"
        raise CorpusError(
            f"the {side_name} side of the split is empty ({sides[False].added} training and {sides[True].added} "
            f"held-out sections at a held-out share of {heldout_share}): give more documents or another share"
        )
    return Split(train, heldout)


class _Bounded:
    """Documents as they come, of which only those are remembered that a `sample` may take: of each source its limit."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.added = limit, 0
        self.heaps: dict[str, list[tuple[float, int, Document]]] = defaultdict(
            list
        )  # the last in order first
        self.characters = Counter[str]()

    def add(self, document: Document) -> None:
        heap, source = self.heaps[document.source], document.source
        heapq.heappush(heap, (-_order(document), self.added, document))
        self.added += 1
        self.characters[source] += len(document.text)
        while (
            self.limit is not None and self.characters[source] - len(heap[0][2].text) >= self.limit
        ):
            self.characters[source] -= len(heapq.heappop(heap)[2].text)

    @property
    def documents(self) -> list[Document]:
        return [document for heap in self.heaps.values() for _, _, document in heap]


def windows(
    documents: Iterable[Document], characters: int, window_characters: int
) -> list[Document]:
    """Documents in an order fixed by hash, cut into windows of bounded length, up to a number of characters."""
    chosen: list[Document] = []
    total = 0
    for document in sorted(documents, key=lambda d: (unit_hash("evaluate/" + d.id), d.id)):
        for window in sections(document, window_characters):
            if total < characters:
                chosen.append(window)
                total += len(window.text)
    return chosen


def _order(document: Document) -> float:
    return unit_hash("order/" + document.id)


def sample(
    documents: Iterable[Document], limit: int | None, source_share: float = 1.0
) -> list[Document]:
    """Documents in an order fixed by hash, up to a number of characters, no source above its share of it."""
    ordered = sorted(documents, key=lambda d: (_order(d), d.id))
    if limit is None:
        return ordered
    taken: list[Document] = []
    total, per_source = 0, Counter[str]()
    for document in ordered:
        if total >= limit:
            break
        if per_source[document.source] < source_share * limit:
            taken.append(document)
            total += len(document.text)
            per_source[document.source] += len(document.text)
    return taken


def drawn(documents: Iterable[Document], characters: int, name: str) -> list[Document]:
    """Documents in an order of chance that is always the same, until they have so many characters.

    Raises `CorpusError` where there are not so many; `name` says of what.
    """
    found, total = [], 0
    for document in sorted(documents, key=lambda document: unit_hash(f"replay {document.id}")):
        if total >= characters:
            break
        found.append(document)
        total += len(document.text)
    if total < characters:
        raise CorpusError(
            f"pretrain.replay asks for {characters:,} characters of '{name}', and its training text has {total:,}: "
            "lower the share, or give more text (corpus.limit_characters counts for each language)"
        )
    return found
