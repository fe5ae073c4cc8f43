"""`lep corpus`: turn raw text into one clean, mixed and shuffled corpus with a sheet."""

import fnmatch
import functools
import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import zstandard

from lep.corpus.boilerplate import Boilerplate
from lep.corpus.clean import fault, plain
from lep.corpus.duplicates import Duplicates
from lep.corpus.files import Paths, corpus_files, raw_bytes, several, source_names
from lep.corpus.parallel import in_order
from lep.corpus.prepare import sections, unit_hash
from lep.corpus.read import HUB, Copy, Document, batches, read_documents, read_hub
from lep.corpus.sheet import KEPT, Corpus, Count, CoverageReport, Tally, Written
from lep.errors import CorpusError
from lep.publish import check_space, publishing
from lep.settings import BuildSettings

CHUNK_DOCUMENTS, CHUNK_CHARACTERS, LONGEST = 200, 2_000_000, 1_000_000
CHUNKS_HERE = 4  # a smaller corpus is done before other processes would have started
SHARD_BYTES, MOST_SHARDS = 16_000_000, 256  # of raw input: sorted in memory at once
HUB_BYTES = 1_000_000_000  # assumed for a hub data set, whose size is unknown beforehand
Pass = Callable[[list[Document]], list[Document]]  # over the documents of a shard


class Selection(Protocol):
    """Decides which clean documents are needed (`lep.transfer.coverage.Coverage`)."""

    def needed(self, documents: list[Document]) -> list[Document]: ...

    def report(self) -> CoverageReport: ...


def write_corpus(
    paths: Paths, output: Path, settings: BuildSettings, coverage: Selection | None = None
) -> Corpus:
    """Clean, deduplicate, weigh and shuffle documents; write `part-*.jsonl.zst` and the sheet.

    Each document of a source of weight W is written W times, a fraction by hash. The same input and
    settings always give the same files. Memory holds one shard, and some bytes of each document to
    find duplicates.

    Raises `CorpusError` for weights of unknown sources, and when nothing is left.
    """
    names = list(map(str, several(paths)))
    hub = [name for name in names if name.startswith(HUB)]
    local = [name for name in names if name not in hub]
    local_files = source_names(corpus_files(local))
    size_bytes = HUB_BYTES * len(hub) + sum(map(raw_bytes, local_files))
    # A hub data set's size is unknown, and an assumed one is no reason to refuse.
    size = sum(_weighted_bytes(file, name, settings) for file, name in local_files.items())
    check_space(output, ceil(2 * size))
    shards = MOST_SHARDS if hub else min(MOST_SHARDS, ceil(size_bytes / SHARD_BYTES))
    files = read_documents(local) if local else ()
    documents = itertools.chain(files, *(read_hub(name, settings.documents) for name in hub))
    boilerplate = Boilerplate(settings.boilerplate, size_bytes)
    with publishing(output) as partial:
        spill = Spill(partial / "work", shards, settings.seed)
        tally = _fill(spill, boilerplate, documents, settings)
        _check_weights(settings.weights, tally.sources())
        passes: list[Pass] = []
        if boilerplate.reliable:
            passes.append(functools.partial(boilerplate.cleaned, drop=tally.drop_boilerplate))
        written = spill.publish(partial, [*passes, coverage.needed] if coverage else passes)
        if not written.documents:
            raise CorpusError(
                f"nothing is left of {tally.documents.total():,} documents: {tally.reasons()}; "
                f"{_advice(tally, settings)}"
            )
        dropped, removed = dict(sorted(tally.dropped.items())), boilerplate.report()
        report = coverage.report() if coverage else None
        sources, long = tally.sources(), tally.long_documents
        corpus = Corpus(sources, dropped, settings, written, removed, report, output, long)
        corpus.write(partial)
    return corpus


def _weighted_bytes(file: Path, source: str, settings: BuildSettings) -> float:
    """Estimated size of a file's documents as they are written, before compression."""
    return raw_bytes(file) * weight_of(source, settings.weights)


def _advice(tally: Tally, settings: BuildSettings) -> str:
    """What to change where no document was written."""
    kept = tally.outcomes()[KEPT]
    if not kept:
        return "give other text, or another --language"
    weights = ", ".join(f"{name}={weight:g}" for name, weight in settings.weights.items())
    if not settings.cover or not any(
        weight_of(source, settings.weights)
        for source, counts in tally.sources().items()
        if KEPT in counts
    ):
        return f"the weights ({weights}) write none of the {kept:,} kept: raise them"
    return f"none of the {kept:,} kept holds a new token of {settings.cover}: give other text"


def _check_weights(weights: dict[str, float], sources: Iterable[str]) -> None:
    for name in weights:
        if not fnmatch.filter(sources, name):
            known = ", ".join(sorted(sources))
            raise CorpusError(f"--weights names '{name}', and the sources are {known}")


def weight_of(source: str, weights: dict[str, float]) -> float:
    """The weight of the first name or pattern that matches the source, else 1.

    >>> weight_of("news.00001", {"wiki": 2.0, "news.*": 0.5})
    0.5
    """
    matches = (weight for name, weight in weights.items() if fnmatch.fnmatchcase(source, name))
    return next(matches, 1.0)


def _fill(
    spill: "Spill", boilerplate: Boilerplate, documents: Iterable[Document], settings: BuildSettings
) -> Tally:
    """Send faultless, new documents to their shards, and count the outcome of every document."""
    tally, duplicates = Tally(), Duplicates(settings.dedup, settings.near)
    clean = functools.partial(_clean, settings.language)
    for chunk in in_order(clean, _chunks(documents, tally), here=CHUNKS_HERE):
        verdicts = iter(duplicates.verdicts([d.text for d, reason in chunk if reason is None]))
        for document, reason in chunk:
            outcome = reason or next(verdicts) or KEPT
            tally.add(document, outcome)
            if outcome == KEPT:
                boilerplate.add(document.text)
                spill.add(document, weight_of(document.source, settings.weights))
    return tally


def _chunks(documents: Iterable[Document], tally: Tally) -> Iterator[list[Document]]:
    """Documents to clean at once; very long ones are cut at line ends, and counted."""
    pieces = itertools.chain.from_iterable(map(functools.partial(_pieces, tally), documents))
    return batches(pieces, CHUNK_CHARACTERS, most=CHUNK_DOCUMENTS, length=lambda d: len(d.text))


def _pieces(tally: Tally, document: Document) -> list[Document]:
    pieces = sections(document, LONGEST)
    tally.long_documents += len(pieces) > 1
    return pieces


def _clean(language: str | None, chunk: list[Document]) -> list[tuple[Document, str | None]]:
    documents = [replace(document, text=plain(document.text)) for document in chunk]
    return [(document, fault(document.text, language)) for document in documents]


class Spill:
    """Files of documents, dealt out by hash, so that sorting needs only one in memory."""

    def __init__(self, folder: Path, shards: int, seed: int) -> None:
        folder.mkdir(parents=True)
        self.folder, self.seed = folder, seed
        names = (folder / f"{number:03}" for number in range(max(1, shards)))
        self.files = [name.open("w", encoding="utf-8") for name in names]

    def add(self, document: Document, weight: float) -> None:
        copies = int(weight) + (unit_hash(f"{self.seed}/weight/{document.id}") < weight % 1)
        for copy in range(copies):
            name = document.id if copy == 0 else f"{document.id}+{copy}"
            order = unit_hash(f"{self.seed}/order/{name}")
            line = f"{order:.17f}\t{copy}\t{_line(replace(document, id=name))}"
            self.files[int(order * len(self.files))].write(line)

    def publish(self, output: Path, passes: Iterable[Pass]) -> Written:
        """Write the shards in order, after the passes over each."""
        documents, characters, digest = Counter[str](), Counter[str](), hashlib.sha256()
        for number, file in enumerate(self.files):
            file.close()
            shard = _sorted_shard(Path(file.name))
            for apply in passes:
                shard = apply(shard)
            if shard:
                content = "".join(map(_line, shard)).encode()
                part = output / f"part-{number:05}.jsonl.zst"
                part.write_bytes(zstandard.compress(content))
                digest.update(content)
                for document in shard:
                    documents[document.source] += 1
                    characters[document.source] += len(document.text)
        shutil.rmtree(self.folder)
        sources = {name: Count(documents[name], characters[name]) for name in sorted(documents)}
        return Written(documents.total(), characters.total(), digest.hexdigest(), sources)


def _line(document: Document) -> str:
    return json.dumps(asdict(document), ensure_ascii=False) + "\n"


def _sorted_shard(path: Path) -> list[Document]:
    lines: list[Any] = sorted(path.read_text(encoding="utf-8").split("\n")[:-1])
    path.unlink()
    parts = (line.split("\t", 2) for line in lines)
    return [(Document if copy == "0" else Copy)(**json.loads(line)) for _, copy, line in parts]
