"""Split documents into training and held-out, cut them into sections, and sample some."""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from lep.corpus.read import Document, Documents
from lep.errors import CorpusError, note

SECTION_CHARACTERS = 4000
LONGEST_LINE, LONGEST_WINDOW = 1_000_000, 8  # characters; window sizes of a line that stays whole
SENTENCE_ENDS = (". ", "! ", "? ", "… ", "。", "！", "？", "। ", "۔ ")
ORDER = "order/"  # salt of the hash that orders samples


@dataclass(frozen=True)
class Split:
    """Training and held-out sections; no group of documents is on both sides."""

    train: list[Document]
    heldout: list[Document]

    @classmethod
    def of(
        cls,
        train: Documents,
        heldout: Documents,
        limit: int | None,
        limit_heldout: int | None,
        source_share: float,
    ) -> "Split":
        """Samples of two sides; sections that are trained on word for word are not held out."""
        trained, every = sample(train, limit, source_share), list(heldout)
        texts = {section.text for section in trained}
        apart = [section for section in every if section.text not in texts]
        if len(apart) < len(every):
            repeated = f"{len(every) - len(apart):,} of {len(every):,} held-out sections"
            note(f"{repeated} are trained on word for word, and left out")
        return cls(trained, sample(apart, limit_heldout, source_share))


def unit_hash(key: str) -> float:
    """A fixed number in [0, 1) for a string, the same on every machine, forever."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def sections(
    document: Document, max_characters: int = SECTION_CHARACTERS, longest_line: int | None = None
) -> list[Document]:
    """Cut a long document at line ends into pieces of at most `max_characters`.

    A longer line stays whole, up to `longest_line` (or `LONGEST_LINE`), and is then cut at the end
    of a sentence or a word. Every other piece starts a paragraph, as training samples do in the
    paper (section 3.2).
    """
    if len(document.text) <= max_characters:
        return [document]
    text, start, stop = document.text, 0, 0
    pieces = list[str]()
    for line in _lines(text, longest_line or LONGEST_LINE):
        if stop > start and stop + len(line) - start > max_characters:
            pieces.append(text[start:stop])
            start = stop
        stop += len(line)
    pieces.append(text[start:])
    return [
        replace(document, id=f"{document.id}#{i}", text=piece.strip("\n"))
        for i, piece in enumerate(pieces)
        if piece.strip()
    ]


def _lines(text: str, longest: int) -> Iterator[str]:
    """The lines with their ends; of one above `longest` characters, parts of at most so many."""
    for line in text.splitlines(keepends=True):
        start = 0
        while len(line) - start > longest:
            limit = start + longest
            ends = (line.rfind(mark, start, limit) + len(mark) for mark in SENTENCE_ENDS)
            stop = max((end for end in ends if end > start + longest // 2), default=0)
            stop = stop or line.rfind(" ", start, limit) + 1 or limit
            yield line[start:stop]
            start = stop
        yield line[start:] if start else line


def prepare(
    documents: Documents,
    *,
    heldout_share: float = 0.1,
    limit_characters: int | None = None,
    limit_heldout_characters: int | None = None,
    source_share: float = 1.0,
) -> Split:
    """Split by a fixed hash of the group, cut into sections, order by hash, stop at the limits.

    The groups with hashes below `heldout_share` are held out, so the split is stable when documents
    are added; of few groups at least the one with the smallest, and of a single one its end.
    Sections that are trained on word for word are not held out. A source stops at `source_share` of
    a limit.

    Memory holds all text without limits; else the limit of training text, once where the share is
    1, and the limit of held-out text for each source.

    Raises `CorpusError` when one side of the split would be empty.
    """
    train = _Side(_Bounded(limit_characters, source_share))
    heldout = _Side(_Bounded(limit_heldout_characters))  # some of it may be left out
    for document in documents:
        order, cut = unit_hash(document.group), sections(document)
        if order < heldout_share:
            heldout.add(cut, order, train)
        else:
            train.add(cut, -order, heldout)
    if heldout.added and train.added:
        trained, held = train.documents, heldout.documents
    else:
        trained, held = _divided(train, heldout, heldout_share)
    split = Split.of(trained, held, limit_characters, limit_heldout_characters, source_share)
    if not split.train or not split.heldout:
        empty = "held-out" if split.train else "training"
        raise CorpusError(
            f"the {empty} side of the split is empty ({len(trained)} training and {len(held)} "
            f"held-out sections at a held-out share of {heldout_share}): give more documents or "
            "another share"
        )
    return split


class _Side:
    """One side of a split. While the other is empty, the group that it would get stays apart."""

    def __init__(self, bounded: "_Bounded") -> None:
        self.bounded, self.added = bounded, 0
        self.apart, self.rank = list[Document](), float("-inf")  # the group of the highest rank

    def add(self, cut: list[Document], rank: float, other: "_Side") -> None:
        self.added += len(cut)
        if other.added or rank > self.rank:
            self._settle()
        if other.added or rank < self.rank:
            self.bounded.extend(cut)
        else:
            self.apart += cut
            self.rank = rank

    @property
    def documents(self) -> list[Document]:
        self._settle()
        return self.bounded.documents

    def _settle(self) -> None:
        self.bounded.extend(self.apart)
        self.apart = []


def _divided(train: _Side, heldout: _Side, share: float) -> tuple[list[Document], list[Document]]:
    """Both sides where one is empty: it gets the other's group that is apart.

    Of a single group the last sections are held out: a share of them, at least one and not all.
    """
    full = train if train.added else heldout
    if not full.bounded.added:
        cut = full.apart
        start = len(cut) - min(max(1, round(share * len(cut))), len(cut) - 1)
        return cut[:start], cut[start:]
    sides = full.bounded.documents, full.apart
    return sides if full is train else sides[::-1]


def bounded(
    documents: Documents, limit: int | None, source_share: float | None = None
) -> list[Document]:
    """The sections of documents that `sample` can take, with few more in memory.

    Without a `source_share` they are those for any share, the limit of each source.
    """
    side = _Bounded(limit, source_share)
    for document in documents:
        side.extend(sections(document))
    return side.documents


class _Bounded:
    """Keeps only documents that `sample` can take: the first ones of all sources together, if a
    source may fill the limit, else the first ones of each, up to its share or the limit.
    """

    def __init__(self, limit: int | None, source_share: float | None = None) -> None:
        self.by_source = source_share is None or source_share < 1
        self.limit = None if limit is None else limit * (source_share or 1)
        self.heaps: dict[str, list[tuple[float, int, Document]]] = defaultdict(list)  # last first
        self.added, self.characters = 0, Counter[str]()

    def extend(self, documents: Documents) -> None:
        for document in documents:
            self._add(document, document.source if self.by_source else "")

    def _add(self, document: Document, source: str) -> None:
        heap = self.heaps[source]
        heapq.heappush(heap, (-unit_hash(ORDER + document.id), self.added, document))
        self.added += 1
        self.characters[source] += len(document.text)
        if self.limit is not None:
            while self.characters[source] - len(heap[0][2].text) >= self.limit:
                self.characters[source] -= len(heapq.heappop(heap)[2].text)

    @property
    def documents(self) -> list[Document]:
        return [document for heap in self.heaps.values() for _, _, document in heap]


def sample(documents: Documents, limit: int | None, source_share: float = 1.0) -> list[Document]:
    """Documents in an order fixed by hash, up to `limit` characters; a source up to its share."""
    ordered = _shuffled(documents, ORDER)
    if limit is None:
        return ordered
    taken: list[Document] = []
    characters, total = Counter[str](), 0
    for document in ordered:
        if total >= limit:
            break
        if characters[document.source] < source_share * limit:
            taken.append(document)
            characters[document.source] += len(document.text)
            total += len(document.text)
    return taken


def windows(documents: Documents, characters: int, window_characters: int) -> list[Document]:
    """Windows of sections in an order fixed by hash, up to `characters`.

    Long documents are cut into sections first, so that windows come from many of them. A window is
    a line at least, up to `LONGEST_WINDOW` times the `window_characters`.
    """
    longest = LONGEST_WINDOW * window_characters
    pieces = (sections(each, SECTION_CHARACTERS, longest) for each in documents)
    ordered = _shuffled(chain.from_iterable(pieces), "evaluate/")
    cut = (
        window for document in ordered for window in sections(document, window_characters, longest)
    )
    return list(_first(cut, characters))


def drawn(documents: Documents, characters: int, name: str) -> list[Document]:
    """Documents in another order fixed by hash, up to `characters`.

    Raises `CorpusError` when there are too few characters; `name` says of which text.
    """
    chosen = list(_first(_shuffled(documents, "replay "), characters))
    total = sum(len(document.text) for document in chosen)
    if total < characters:
        raise CorpusError(
            f"pretrain.replay asks for {characters:,} characters of '{name}', and its training "
            f"text has {total:,}: lower the share, or give more text (corpus.limit_characters "
            "counts for each language)"
        )
    return chosen


def _shuffled(documents: Documents, salt: str) -> list[Document]:
    return sorted(documents, key=lambda document: (unit_hash(salt + document.id), document.id))


def _first(documents: Documents, characters: int) -> Iterator[Document]:
    """The first documents, until they have so many characters."""
    for document in documents:
        if characters <= 0:
            return
        yield document
        characters -= len(document.text)
