"""The sheet of a corpus: what happened to its documents, counted while it is built."""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from lep.corpus.boilerplate import BoilerplateReport
from lep.corpus.clean import FILTERS
from lep.corpus.duplicates import EXACT, NEAR
from lep.corpus.files import SHEET
from lep.corpus.read import Document
from lep.files import write_json, write_text
from lep.result import Result
from lep.settings import BuildSettings

KEPT = "kept"
ONLY_BOILERPLATE = "only boilerplate"
REASONS = (*FILTERS, EXACT, NEAR, ONLY_BOILERPLATE)  # why a document is dropped
SAMPLES, SAMPLE_CHARACTERS = 3, 200


@dataclass(frozen=True)
class Count:
    """An amount of text."""

    documents: int
    characters: int


@dataclass(frozen=True)
class Written(Count):
    """The text of a corpus, copies by weight included, and the hash of all its records."""

    sha256: str
    sources: dict[str, Count]


@dataclass(frozen=True)
class CoverageReport:
    """How many new tokens occur in a corpus often enough (`covered`) or never (`without_any`)."""

    contexts: int
    vocabulary: str
    new_tokens: int
    covered: int
    without_any: int
    documents_left_out: int


@dataclass(frozen=True)
class Corpus(Result):
    """A new corpus: documents by source and outcome, dropped samples, and what was written.

    Each document has one outcome, and characters are those before boilerplate was removed. Of the
    kept ones, weights and coverage decide which are written, and how often.
    """

    sources: dict[str, dict[str, Count]]
    dropped: dict[str, list[dict[str, str]]]
    settings: BuildSettings
    written: Written
    boilerplate: BoilerplateReport
    coverage: CoverageReport | None
    output: Path
    long_documents: int = 0  # that were cut into pieces, each counted as a document

    def write(self, folder: Path) -> None:
        """Write `sheet.json` and `sheet.md`."""
        record = asdict(self) | {"settings": self.settings.model_dump()}
        del record["output"]
        if self.coverage is None:
            del record["coverage"]
        write_json(folder / SHEET, record, indent=1)
        write_text(folder / "sheet.md", "\n".join([self.table(), "", *self.notes(), ""]))

    def table(self) -> str:
        """Documents of each source by outcome, and what was written of it, in Markdown."""
        reasons = [name for name in REASONS if any(name in row for row in self.sources.values())]
        lines = [
            f"| {' | '.join(['source', KEPT, 'written', 'characters written', *reasons])} |",
            "|---" * (4 + len(reasons)) + "|",
        ]
        for source, counts in self.sources.items():
            kept, *dropped = (counts.get(name, Count(0, 0)) for name in (KEPT, *reasons))
            written = self.written.sources.get(source, Count(0, 0))
            cells = [kept.documents, written.documents, written.characters]
            cells += [count.documents for count in dropped]
            lines.append(f"| {' | '.join([source, *(f'{cell:,}' for cell in cells)])} |")
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """What the table does not show, a sentence each."""
        lines: list[str] = []
        least = self.settings.boilerplate
        if removed := self.boilerplate.lines:
            lines.append(f"{removed:,} lines found in {least:,} or more documents were removed")
        if self.boilerplate.too_many_lines_to_tell:
            lines.append(
                "no lines were removed: there are too many to tell which of them "
                f"{least:,} or more documents have"
            )
        if self.long_documents:
            lines.append(
                f"{self.long_documents:,} very long documents were cut, and each piece is counted"
            )
        if coverage := self.coverage:
            lines.append(
                f"{coverage.covered:,} of {coverage.new_tokens:,} new tokens occur "
                f"{coverage.contexts:,} times or more, {coverage.without_any:,} never; "
                f"{coverage.documents_left_out:,} documents, copies included, were not needed"
            )
        return lines

    def __str__(self) -> str:
        lines = [self.table(), "", *self.notes()]
        amount = f"{self.written.documents:,} documents, {self.written.characters:,} characters"
        lines.append(f"{amount} in {self.output}; sha256 {self.written.sha256[:16]}")
        return "\n".join(lines)


class Tally:
    """Counts documents by source and outcome, and keeps the start of some dropped ones."""

    def __init__(self) -> None:
        self.documents = Counter[tuple[str, str]]()
        self.characters = Counter[tuple[str, str]]()
        self.dropped: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.long_documents = 0

    def drop_boilerplate(self, document: Document) -> None:
        """Count a kept document of nothing but boilerplate as dropped."""
        key = (document.source, KEPT)
        self.documents[key] -= 1
        self.characters[key] -= len(document.text)
        self.add(document, ONLY_BOILERPLATE)

    def add(self, document: Document, outcome: str) -> None:
        self.documents[document.source, outcome] += 1
        self.characters[document.source, outcome] += len(document.text)
        if outcome != KEPT and len(self.dropped[outcome]) < SAMPLES:
            text = document.text[:SAMPLE_CHARACTERS]
            self.dropped[outcome].append({"id": document.id, "text": text})

    def sources(self) -> dict[str, dict[str, Count]]:
        """The counts of each source by outcome, both in alphabetical order."""
        counts: dict[str, dict[str, Count]] = defaultdict(dict)
        for key in sorted(+self.documents):
            counts[key[0]][key[1]] = Count(self.documents[key], self.characters[key])
        return dict(counts)

    def outcomes(self) -> Counter[str]:
        """The number of documents of each outcome."""
        totals = Counter[str]()
        for (_, outcome), documents in self.documents.items():
            totals[outcome] += documents
        return totals

    def reasons(self) -> str:
        """The number of documents of each outcome, in words."""
        totals = self.outcomes()
        return ", ".join(f"{name} {totals[name]:,}" for name in (*REASONS, KEPT) if totals[name])
