"""The original instruct model writes prompts itself, which it answers afterwards."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from lep.calibration.drafts import Draft, Writer
from lep.calibration.filters import WRONG_LANGUAGE, reason_to_drop_draft
from lep.calibration.openings import Sentences
from lep.calibration.saved import append_lines, cut_half_line, whole_lines
from lep.corpus.duplicates import Duplicates
from lep.corpus.files import Text, file_stamps
from lep.corpus.read import Record, write_records
from lep.corpus.trigrams import Trigrams, of_one_script
from lep.errors import CorpusError, note
from lep.files import write_json
from lep.progress import progress
from lep.publish import check_output, fingerprint, publishing
from lep.result import Result
from lep.settings import OwnPromptSettings

PROMPTS, DRAFTS, COUNTS = "prompts.jsonl", "drafts.jsonl", "prompts.json"
SAVED = "checkpoint-drafts"  # folder of an unfinished run
MOST_DRAFTS = 4  # for each prompt that is wanted
LEAST_KEPT, LEAST_DRAFTS = 0.1, 64  # share of the drafts with which it goes on after so many
SAMPLED = 2_000  # sentences of a language by which it is told from others of its script
MEASURED = 32  # sentences beside which a draft is word salad or not
NEAR = 0.7  # Jaccard similarity of near duplicates
KEPT, DUPLICATE, SURPLUS = "kept", "duplicate", "more than needed"
SHOWN_CHARACTERS = 60  # of a draft in a message
FEW = 0.5  # of the prompts that are wanted: fewer deserve a warning
Batch = list[Draft]
Saved = dict[str, list[Batch]]  # by language


@dataclass(frozen=True)
class OwnPrompts(Result):
    """Drafts by language and outcome: those that are `kept`, and those without use by reason."""

    counts: dict[str, dict[str, int]]
    wanted: dict[str, int]  # by language
    output: Path

    def __str__(self) -> str:
        lines = [f"{language}: {_listed(counts)}" for language, counts in self.counts.items()]
        return "\n".join([*lines, *self.warnings, f"wrote {self.output}"])

    @property
    def warnings(self) -> list[str]:
        """A line for each language in which few drafts are of use."""
        return [
            f"warning: {counts[KEPT]:,} of {self.wanted[language]:,} prompts in {language}, after "
            f"{sum(counts.values()):,} drafts: look at {self.output / DRAFTS}, the original model "
            "may not know the language well enough"
            for language, counts in self.counts.items()
            if counts[KEPT] < FEW * self.wanted[language]
        ]


def write_prompts(
    original: str | Path,
    text: Text,
    output: str | Path,
    settings: OwnPromptSettings | None = None,
    *,
    wanted: Mapping[str, int] | None = None,
    each: bool = True,
    **options: Any,
) -> OwnPrompts:
    """Let the instruct model `original` write prompts in the languages of `text`, {code: paths}.

    The model's chat template is cut where the user begins to write, and the model continues from
    there to the end of the turn (Magpie, Xu et al. 2024, arXiv:2406.08464). One to three words of a
    question in `text`, or of another sentence where questions are few, decide the language. There
    are `own_prompts` of the settings in each language, or as many as `wanted` says of it.

    The folder `output` gets `prompts.jsonl` with the prompts as `messages` records, `drafts.jsonl`
    with all that was written and why it was dropped, and `prompts.json` with the counts. An
    interrupted run is continued.

    Raises `TokenizerError` for a model without chat template or with one that changes what the user
    writes, `CorpusError` for text without sentences, and where a language gets no prompt (with
    `each`; otherwise only where none gets any, and a note names the others).
    """
    output, settings = Path(output), OwnPromptSettings.given(settings, options)
    check_output(output)
    if not text or not settings.own_prompts:
        given = "own prompts is 0" if text else "there is no text"
        raise CorpusError(
            f"no prompts to write: {given}, give --text LANGUAGE=PATH and --own-prompts N"
        )
    writer = Writer(original, settings)
    wanted = dict(wanted or dict.fromkeys(text, settings.own_prompts))
    pools = [Sentences.of(code, paths, MOST_DRAFTS * wanted[code]) for code, paths in text.items()]
    known = of_one_script({pool.language: pool.sentences(SAMPLED) for pool in pools})
    parts = [_Part(writer, p, wanted[p.language], known.get(p.language)) for p in pools]
    stamps = {language: file_stamps(paths) for language, paths in text.items()}
    key = fingerprint([writer.checkpoint.stamp(), stamps, settings.model_dump(), wanted])
    with publishing(output, resume_key=key) as partial:
        try:
            with _saved(partial / SAVED) as (saved, file):
                faults = [part.write(saved[part.language], file) for part in parts]
            without = [fault for fault in faults if fault]
            if without and (each or len(without) == len(parts)):
                raise CorpusError(without[0])
            for fault in without:
                note(fault)
        except CorpusError:  # nothing in there is worth another run
            shutil.rmtree(partial / SAVED)
            raise
        counts = {part.language: dict(part.counts) for part in parts}
        records = [record for part in parts for record in part.records]
        kept = [record for record in records if record["dropped"] is None]
        names = ("messages", "language")
        write_records(partial / PROMPTS, ({name: each[name] for name in names} for each in kept))
        write_records(partial / DRAFTS, records)
        write_json(partial / COUNTS, counts, indent=1)
        shutil.rmtree(partial / SAVED)
    return OwnPrompts(counts, wanted, output)


@contextmanager
def _saved(folder: Path) -> Iterator[tuple[Saved, IO[bytes]]]:
    """Batches by language that an interrupted run saved, and the file to add others to."""
    folder.mkdir(exist_ok=True)
    path, saved = folder / DRAFTS, defaultdict[str, list[Batch]](list)
    with path.open("ab") as file:
        cut_half_line(file, path)
        for line in whole_lines(path):
            saved[line["language"]].append([Draft(**draft) for draft in line["drafts"]])
        yield saved, file


class _Part:
    """The drafts in one language, and what becomes of each."""

    def __init__(
        self, writer: Writer, pool: Sentences, wanted: int, trigrams: Trigrams | None
    ) -> None:
        """`trigrams` are those of the languages of the same script, if there are others.

        Raises `CorpusError` for a model without room to write.
        """
        self.writer, self.pool, self.settings = writer, pool, writer.settings
        self.wanted, self.trigrams = wanted, trigrams
        self.language = pool.language
        self.openings = pool.openings(MOST_DRAFTS * wanted, self.settings.prompt_seed)
        writer.check_room(self.openings)
        self.duplicates = Duplicates("minhash", NEAR)
        self.records: list[Record] = []
        self.counts = Counter({KEPT: 0})

    def write(self, saved: Sequence[Batch], file: IO[bytes]) -> str | None:
        """Use the batches that are saved, and save others to a file.

        Where no draft is of use, the fault.
        """
        batches = self._batches(saved, file)
        for batch in progress(batches, f"batches of prompts, {self.language}"):
            self._add(batch)
        if self.counts[KEPT]:
            return None
        text = self.records[-1]["messages"][0]["content"][:SHOWN_CHARACTERS]
        return (
            f"none of {len(self.records):,} prompts that {self.writer.original} wrote in "
            f"{self.language} is of use ({_listed(+self.counts)}; the last begins {text!r}): "
            "give prompts in a file (--prompts FILE), or ask for none (adapt.own_prompts=0)"
        )

    def _batches(self, saved: Sequence[Batch], file: IO[bytes]) -> Iterator[Batch]:
        """Saved and new batches, until there are enough prompts, or drafts that are of no use."""
        size, median = self.settings.prompt_batch, None
        for number, start in enumerate(range(0, len(self.openings), size)):
            if self.counts[KEPT] >= self.wanted:
                return
            drafts = len(self.records)
            if drafts >= LEAST_DRAFTS and self.counts[KEPT] < LEAST_KEPT * drafts:
                return  # the model never learned what users write
            if number < len(saved):
                yield saved[number]
                continue
            if median is None:
                usual = self.pool.usual(MEASURED, self.settings.prompt_seed)
                median = self.writer.median(usual)
            openings = self.openings[start : start + size]
            batch = self.writer.drafts(f"{self.language} {number}", openings, median)
            append_lines(file, [{"language": self.language, "drafts": list(map(asdict, batch))}])
            yield batch

    def _add(self, batch: Batch) -> None:
        reasons = [self._reason(draft) for draft in batch]
        usable = [draft.text for draft, reason in zip(batch, reasons, strict=True) if not reason]
        verdicts = iter(self.duplicates.verdicts(usable))
        for draft, reason in zip(batch, reasons, strict=True):
            outcome = reason or (DUPLICATE if next(verdicts) else KEPT)
            if outcome == KEPT and self.counts[KEPT] == self.wanted:
                outcome = SURPLUS
            self.counts[outcome] += 1
            dropped = None if outcome == KEPT else outcome
            messages = [{"role": "user", "content": draft.text}]
            facts = {"language": self.language, "opening": draft.opening, "dropped": dropped}
            self.records.append({"messages": messages, **facts})

    def _reason(self, draft: Draft) -> str | None:
        reason = reason_to_drop_draft(draft, self.pool.script)
        if reason is None and self.trigrams and self.trigrams.excludes(draft.text, self.language):
            return WRONG_LANGUAGE
        return reason


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())
