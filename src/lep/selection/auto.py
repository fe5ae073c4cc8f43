"""Choose a propagation without labels: the candidate that stays nearest to the original model.

Every candidate is measured on plain text of both languages and on the original instruct model's own
answers. One half of the text and the prompts decides; the other gives the reported figures.
"""

import json
import math
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lep.checkpoint.reader import Checkpoint
from lep.corpus.files import Text
from lep.corpus.prepare import unit_hash
from lep.corpus.read import Document, question, read_messages
from lep.errors import CheckpointError, CorpusError
from lep.evaluation.records import AnswerRecord, encode
from lep.evaluation.score import Material
from lep.inference.generate import check_prompts
from lep.inference.models import context_of, load_model
from lep.publish import check_output
from lep.result import Result
from lep.selection.candidates import Candidates, Name, check_memory
from lep.selection.figures import all_measures, language_sides, score, veto
from lep.selection.probe import HALVES, Probe, Record, record_half
from lep.settings import EvaluateSettings, PropagateSettings, SelectSettings
from lep.statistics import Estimate
from lep.transfer.family import Family
from lep.transfer.propagate import RECORD, as_json, fit_record
from lep.transfer.write import write_recipient

ORIGINAL = ("original", "original")


@dataclass(frozen=True)
class Selection(Result):
    """The chosen candidate, and the measures of all on both halves of the material."""

    output: Path
    chosen: str
    best_reported: str  # what the other half would have chosen
    vetoed: dict[str, str]  # candidate -> reason
    languages: dict[str, str]  # language -> "new" or "original"
    measures: dict[str, dict[str, dict[str, Estimate]]]  # half -> candidate -> measure

    def table(self, half: str = "report") -> str:
        """The measures of one half; the chosen candidate is marked."""
        rows = self.measures[half]
        lines = [" | ".join([f"{'candidate':32}", *next(iter(rows.values()))])]
        for name, row in rows.items():
            title = ("* " if name == self.chosen else "  ") + name
            cells = [
                f"{e.value:.4f} ({e.low:.4f}-{e.high:.4f})".rjust(len(column))
                for column, e in row.items()
            ]
            reason = [self.vetoed[name]] if name in self.vetoed else []
            lines.append(" | ".join([f"{title:32}", *cells, *reason]))
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """The choice as JSON."""
        return {
            "chosen": self.chosen,
            "chosen_vetoed": self.vetoed.get(self.chosen),
            "languages": self.languages,
            "best on the other half": self.best_reported,
            "vetoed": self.vetoed,
            "measures": asdict(self)["measures"],
        }

    def __str__(self) -> str:
        other = self.best_reported
        lines = [self.table(), f"chosen: {self.chosen}; on the reported half: {other}"]
        if reason := self.vetoed.get(self.chosen):
            lines.append(f"every candidate does more harm than allowed; the chosen one: {reason}")
        return "\n".join(lines)


def label(name: Name) -> str:
    """`exact`, or `exact, output ridge` where the tables differ."""
    return name[0] if name[0] == name[1] else f"{name[0]}, output {name[1]}"


def propagate_auto(
    base: str | Path,
    instruct: str | Path,
    adapted: str | Path,
    output: str | Path,
    text: Text,
    prompts: str | Path,
    settings: PropagateSettings | None = None,
    select: SelectSettings | None = None,
    **options: Any,
) -> Selection:
    """Write the instruct model with the tables of the candidate nearest to the original.

    The score is the bits per byte of the original model's own answers, plus the divergence of the
    next byte from what it expected there. A candidate is vetoed if text or answers in an original
    language get significantly worse by more than `select.veto`; if all are, the nearest is taken.
    Every candidate is tried for both tables first, then for the output and for the input table of
    the best one. `lep/selection.json` and `.jsonl` hold all figures. `options` are fields of
    `SelectSettings`.

    Raises `BodyTooLarge` when the body does not fit into memory, and `CorpusError` when no prompt
    can be used.
    """
    output, settings = Path(output), settings or PropagateSettings()
    select = SelectSettings.given(select, options)
    check_output(output)
    material = _material(text, prompts, select)
    family = Family.open(base, instruct, adapted)
    check_memory(family.instruct)
    check_prompts(family.instruct.tokenizer, material.prompts, context_of(family.instruct))
    probe, original = _ask(family.instruct, material, select)
    with closing(Candidates(family, settings, output)) as candidates:
        records = _measured(candidates, probe, original)
    chosen = _best(records, "choose", select)
    selection = _selection(output, chosen, records, select)
    fits = {kind: fit_record(fit.report) for kind, fit in candidates.fits(chosen).items()}
    record = {"method": "auto", "input": chosen[0], "output": chosen[1], "fit": fits}
    lines = (
        {"candidate": label(name)} | encode(each) | {"half": record_half(each)}
        for name, members in records.items()
        for each in members
    )
    notes = {
        RECORD: as_json(record),
        "selection.json": as_json(selection.record() | {"settings": select.model_dump()}),
        "selection.jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
    }
    write_recipient(family.recipient, candidates.tensors(chosen), notes, output)
    return selection


def _material(text: Text, prompts: str | Path, select: SelectSettings) -> Material:
    """Text, copy tasks, and the first prompts in the order of a fixed hash.

    A document lies in one half. Where it is the only one of its language, its windows stand for
    documents, because neither half can do without text.
    """
    questions = [question(record["messages"]) for record in read_messages(prompts)]
    questions.sort(key=lambda messages: unit_hash(messages[-1]["content"]))
    tasks = ["copy_sentence"] if select.copies else []
    limits = select.model_dump(include={"characters", "seed", "batch_size"})
    settings = EvaluateSettings(tasks=tasks, items=max(select.copies, 1), **limits)
    material = Material.of(text, settings, questions[: select.prompts])
    windows = material.windows.items()
    return replace(material, windows={code: _divisible(each) for code, each in windows})


def _divisible(windows: list[Document]) -> list[Document]:
    """Windows with more than one group, if there is more than one window."""
    if len({window.group for window in windows}) > 1:
        return windows
    return [replace(window, group=window.id) for window in windows]


def _ask(
    instruct: Checkpoint, material: Material, select: SelectSettings
) -> tuple[Probe, list[Record]]:
    """The probe, and the original model's own records."""
    model, checkpoint = load_model(instruct.folder)
    probe = Probe.of(model, checkpoint, material, select)
    records = probe.measure(model, checkpoint)
    for half in HALVES:
        if not any(isinstance(r, AnswerRecord) and record_half(r) == half for r in records):
            raise CorpusError(
                f"none of the {len(probe.conversations)} usable answers falls into the half to "
                f"{half} on: give more prompts"
            )
    return probe, records


def _measured(
    candidates: Candidates, probe: Probe, original: list[Record]
) -> dict[Name, list[Record]]:
    """Records of the original and of every candidate that was tried."""
    select, records = probe.settings, {ORIGINAL: original}

    def measure(names: Iterable[Name]) -> None:
        for name in names:
            if name not in records:
                records[name] = probe.measure(*candidates.load(name))

    measure((method, method) for method in select.candidates)
    if "output" in candidates.problems:
        best = _best(records, "choose", select)[0]
        measure((best, method) for method in select.candidates)
        best = _best(records, "choose", select)[1]
        measure((method, best) for method in select.candidates)
    return records


def _best(records: dict[Name, list[Record]], half: str, select: SelectSettings) -> Name:
    """The nearest candidate without a veto, or the nearest of all."""
    tried = [name for name in records if name != ORIGINAL]
    original = records[ORIGINAL]
    allowed = [name for name in tried if not veto(records[name], original, half, select)]
    best = min(allowed or tried, key=lambda name: score(records[name], half))
    if not math.isfinite(score(records[best], half)):
        raise CheckpointError(
            "no candidate gives the original model's answers a finite likelihood: one of the three "
            "models is damaged, or its dtype is too narrow; look at them with lep inspect"
        )
    return best


def _selection(
    output: Path, chosen: Name, records: dict[Name, list[Record]], select: SelectSettings
) -> Selection:
    original, nearest = records[ORIGINAL], records[chosen]
    named = {label(name): each for name, each in records.items()}
    reasons = {name: veto(each, original, "choose", select) for name, each in named.items()}
    vetoed = {name: reason for name, reason in reasons.items() if reason}
    measures = {
        half: {name: all_measures(each, nearest, half, select) for name, each in named.items()}
        for half in HALVES
    }
    best, languages = label(_best(records, "report", select)), language_sides(nearest, original)
    return Selection(output, label(chosen), best, vetoed, languages, measures)
