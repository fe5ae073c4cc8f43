"""`lep corpus`: raw text in, one clean, mixed and shuffled corpus out, with a sheet that says what became of what."""

import fnmatch
import functools
import hashlib
import itertools
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import zstandard

from lep.corpus.boilerplate import Boilerplate
from lep.corpus.clean import FILTERS, fault, plain
from lep.corpus.duplicates import Duplicates
from lep.corpus.parallel import in_order
from lep.corpus.prepare import sections, unit_hash
from lep.corpus.read import HUB, SHEET, Document, corpus_files, read_documents, read_hub
from lep.errors import CorpusError
from lep.publish import check_space, publishing
from lep.settings import BuildSettings

CHUNK_DOCUMENTS, CHUNK_CHARACTERS, LONGEST = 200, 2_000_000, 1_000_000
CHUNKS_HERE = 4  # a smaller corpus is done before other processes would have started
SHARD_BYTES, MOST_SHARDS = 16_000_000, 256  # of raw input: what is sorted in memory at once
GROWTH = 4  # of compressed files
HUB_BYTES = 1_000_000_000  # taken for a hub data set, whose size is not known beforehand
SAMPLES, SAMPLE_CHARACTERS = 3, 200
KEPT = "kept"
Pass = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]  # over the records of a shard


class Selection(Protocol):
    """Decides which of the documents that survived cleaning are needed (`lep.transfer.coverage.Coverage`)."""

    def needed(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]: ...

    def record(self) -> dict[str, Any]: ...


def write_corpus(
    paths: list[str | Path],
    output: Path,
    settings: BuildSettings,
    coverage: Selection | None = None,
) -> dict[str, Any]:
    """Clean, deduplicate, weigh and shuffle the documents under `paths`; write `part-*.jsonl.zst` and the sheet.

    A source of weight W gives each document W times, a fraction by hash. The same input and settings always give the
    same files. Memory holds one shard, and some bytes of each document for the duplicates.

    Returns the sheet: documents and characters of each source by what became of them. Raises `CorpusError` for
    weights of unknown sources, and when nothing is left.
    """
    files = corpus_files(_local(paths))
    raw = HUB_BYTES * len(_hub(paths)) + sum(
        file.stat().st_size * (GROWTH if file.suffix in (".gz", ".zst", ".parquet") else 1)
        for file in files
    )
    shards = MOST_SHARDS if _hub(paths) else min(MOST_SHARDS, ceil(raw / SHARD_BYTES))
    check_space(output, 2 * raw)
    boilerplate = Boilerplate(settings.boilerplate, raw)
    with publishing(output) as partial:
        spill = Spill(partial / "work", shards, settings.seed)
        sheet = _fill(spill, boilerplate, paths, settings)
        for name in settings.weights:
            if not fnmatch.filter(sheet.counts, name):
                raise CorpusError(
                    f"--weights names '{name}', and the sources are {', '.join(sorted(sheet.counts))}"
                )
        passes = ([boilerplate.taken_out] if boilerplate.sure else []) + (
            [coverage.needed] if coverage else []
        )
        found = (
            sheet.record() | {"settings": settings.model_dump()} | spill.publish(partial, passes)
        )
        found["boilerplate"] = boilerplate.record()
        if coverage:
            found["coverage"] = coverage.record()
        if not found["written"]["documents"]:
            raise CorpusError(
                f"nothing is left of {sheet.total():,} documents: {sheet.reasons()}; give other text, or another "
                "--language"
            )
        (partial / SHEET).write_text(
            json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (partial / "sheet.md").write_text(sheet.table() + "\n", encoding="utf-8")
    return found


def _fill(
    spill: "Spill", boilerplate: Boilerplate, paths: list[str | Path], settings: BuildSettings
) -> "Sheet":
    """Documents that are sound and no duplicates go to their shards; what became of each is on the sheet."""
    sheet, texts = Sheet(), Duplicates(settings.dedup, settings.near)
    clean = functools.partial(_clean, settings.language)
    for chunk in in_order(clean, _chunks(_pieces(paths, settings.documents)), here=CHUNKS_HERE):
        sound = [i for i, (_, verdict) in enumerate(chunk) if verdict is None]
        verdicts = dict(zip(sound, texts.verdicts([chunk[i][0].text for i in sound]), strict=True))
        for i, (document, verdict) in enumerate(chunk):
            outcome = verdict or verdicts[i] or KEPT
            sheet.add(document, outcome)
            if outcome == KEPT:
                boilerplate.add(document.text)
                spill.add(document, weight_of(document.source, settings.weights))
    return sheet


def weight_of(source: str, weights: dict[str, float]) -> float:
    """That of the first name or pattern that the source matches, else 1.

    >>> weight_of("news.00001", {"wiki": 2.0, "news.*": 0.5})
    0.5
    """
    return next(
        (weight for name, weight in weights.items() if fnmatch.fnmatchcase(source, name)), 1.0
    )


class Sheet:
    """Documents and characters by source and by what became of them, with the first lines of some that were dropped."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, list[int]]] = defaultdict(
            lambda: defaultdict(lambda: [0, 0])
        )
        self.samples: dict[str, list[dict[str, str]]] = defaultdict(list)

    def add(self, document: Document, outcome: str) -> None:
        cell = self.counts[document.source][outcome]
        cell[0] += 1
        cell[1] += len(document.text)
        if outcome != KEPT and len(self.samples[outcome]) < SAMPLES:
            self.samples[outcome].append(
                {"id": document.id, "text": document.text[:SAMPLE_CHARACTERS]}
            )

    def total(self, outcome: str | None = None) -> int:
        """Documents, of one outcome or of all."""
        return sum(
            cell[0]
            for found in self.counts.values()
            for name, cell in found.items()
            if outcome in (None, name)
        )

    def reasons(self) -> str:
        """What became of the documents, in words."""
        names = (*FILTERS, "exact duplicate", "near duplicate", KEPT)
        return ", ".join(f"{name} {self.total(name):,}" for name in names if self.total(name))

    def record(self) -> dict[str, Any]:
        counts = {
            source: {
                name: {"documents": cell[0], "characters": cell[1]}
                for name, cell in sorted(found.items())
            }
            for source, found in sorted(self.counts.items())
        }
        return {"sources": counts, "dropped": dict(sorted(self.samples.items()))}

    def table(self) -> str:
        names = [
            name for name in (*FILTERS, "exact duplicate", "near duplicate") if self.total(name)
        ]
        lines = [
            "| source | kept | characters kept | " + " | ".join(names) + " |",
            "|---" * (3 + len(names)) + "|",
        ]
        for source, found in sorted(self.counts.items()):
            cells = [
                source,
                f"{found[KEPT][0]:,}",
                f"{found[KEPT][1]:,}",
                *(f"{found[name][0]:,}" for name in names),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)


class Spill:
    """Documents on their way to shards: a hash says where each goes, so that sorting needs one shard in memory."""

    def __init__(self, folder: Path, shards: int, seed: int) -> None:
        folder.mkdir(parents=True)
        self.folder, self.seed = folder, seed
        self.files = [
            (folder / f"{number:03}").open("w", encoding="utf-8")
            for number in range(max(1, shards))
        ]

    def add(self, document: Document, weight: float) -> None:
        copies = int(weight) + (unit_hash(f"{self.seed}/weight/{document.id}") < weight % 1)
        for copy in range(copies):
            name = document.id if copy == 0 else f"{document.id}+{copy}"
            place = unit_hash(f"{self.seed}/order/{name}")
            record = {
                "id": name,
                "text": document.text,
                "source": document.source,
                "group": document.group,
            }
            line = json.dumps(record, ensure_ascii=False)
            self.files[int(place * len(self.files))].write(f"{place:.17f}\t{line}\n")

    def publish(self, output: Path, passes: Iterable[Pass]) -> dict[str, Any]:
        """Write the shards in order after the last passes; returns how much, and the hash of all of it."""
        written, characters, digest = 0, 0, hashlib.sha256()
        for number, file in enumerate(self.files):
            file.close()
            place = Path(file.name)
            lines = sorted(place.read_text(encoding="utf-8").split("\n")[:-1])
            place.unlink()
            records = [json.loads(line.split("\t", 1)[1]) for line in lines]
            for last in passes:
                records = last(records)
            if not records:
                continue
            content = "".join(
                json.dumps(record, ensure_ascii=False) + "\n" for record in records
            ).encode()
            (output / f"part-{number:05}.jsonl.zst").write_bytes(zstandard.compress(content))
            digest.update(content)
            written += len(records)
            characters += sum(len(record["text"]) for record in records)
        shutil.rmtree(self.folder)
        return {
            "written": {
                "documents": written,
                "characters": characters,
                "sha256": digest.hexdigest(),
            }
        }


def _hub(paths: Iterable[str | Path]) -> list[str]:
    return [str(path) for path in paths if str(path).startswith(HUB)]


def _local(paths: Iterable[str | Path]) -> list[str | Path]:
    return [path for path in paths if not str(path).startswith(HUB)]


def _pieces(paths: list[str | Path], limit: int | None) -> Iterator[Document]:
    """Documents, those that are very long cut at line ends."""
    local = read_documents(_local(paths)) if _local(paths) else iter(())
    for document in itertools.chain(local, *(read_hub(name, limit) for name in _hub(paths))):
        yield from sections(document, LONGEST)


def _chunks(documents: Iterator[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    size = 0
    for document in itertools.chain(documents, [None]):
        if document is not None:
            chunk.append(document)
            size += len(document.text)
        if chunk and (document is None or len(chunk) == CHUNK_DOCUMENTS or size > CHUNK_CHARACTERS):
            yield chunk
            chunk, size = [], 0


def _clean(language: str | None, chunk: list[Document]) -> list[tuple[Document, str | None]]:
    made = [Document(d.id, plain(d.text), d.source, d.group) for d in chunk]
    return [(document, fault(document.text, language)) for document in made]
