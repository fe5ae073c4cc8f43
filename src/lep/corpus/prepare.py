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
    a limit. Memory holds the limit for each source, or all text without one.

    Raises `CorpusError` when one side of the split would be empty.
    """
    train, heldout = _Bounded(limit_characters), _Bounded(limit_heldout_characters)
    smallest, spare = 1.0, list[Document]()  # the next group that would be held out
    largest, last = 0.0, list[Document]()  # the next one that would be trained on
    for document in documents:
        order, cut = unit_hash(document.group), sections(document)
        side = heldout if order < heldout_share else train
        for section in cut:
            side.add(section)
        if not heldout.added and order <= smallest:
            spare = spare if order == smallest else []
            spare += cut
            smallest = order
        if not train.added and order >= largest:
            last = last if order == largest else []
            last += cut
            largest = order
    trained = train.documents
    if spare and not heldout.added:
        if all(section.group == spare[0].group for section in trained):
            spare = _end(spare, heldout_share)
        taken = {section.id for section in spare}
        trained = [section for section in trained if section.id not in taken]
        for section in spare:
            heldout.add(section)
    held = heldout.documents
    if last and not train.added:  # all hashes are small: the text is short
        if all(section.group == last[0].group for section in held):
            taken = {section.id for section in _end(last, heldout_share)}
            last = [section for section in last if section.id not in taken]
        taken = {section.id for section in last}
        trained, held = last, [section for section in held if section.id not in taken]
    split = Split.of(trained, held, train.limit, heldout.limit, source_share)
    if not split.train or not split.heldout:
        empty = "held-out" if split.train else "training"
        raise CorpusError(
            f"the {empty} side of the split is empty ({train.added} training and {heldout.added} "
            f"held-out sections at a held-out share of {heldout_share}): give more documents or "
            "another share"
        )
    return split


def bounded(documents: Documents, limit: int | None) -> list[Document]:
    """The sections of documents that `sample` can take, with as many in memory."""
    side = _Bounded(limit)
    for section in chain.from_iterable(map(sections, documents)):
        side.add(section)
    return side.documents


def _end(cut: list[Document], share: float) -> list[Document]:
    """The last sections of a text: a share of them, at least one and not all."""
    count = min(max(1, round(share * len(cut))), len(cut) - 1)
    return cut[len(cut) - count :]


class _Bounded:
    """Keeps only documents that `sample` can take: the first of each source, up to the limit."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.added = limit, 0
        self.heaps: dict[str, list[tuple[float, int, Document]]] = defaultdict(list)  # last first
        self.characters = Counter[str]()

    def add(self, document: Document) -> None:
        heap, source = self.heaps[document.source], document.source
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
