"""Choose a propagation without labels, by what the candidates do: how near each one stays to the original model.

Every candidate is measured on plain text of both languages and on the original instruct model's own answers. One
half of the text and the prompts decides; the other half gives the figures that are reported with the choice.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import Rows
from lep.corpus.prepare import unit_hash
from lep.corpus.read import question, read_messages
from lep.errors import CheckpointError, CorpusError
from lep.evaluation.evaluate import items, windows
from lep.inference.models import device, load_model
from lep.propagation import Propagation
from lep.publish import check_output
from lep.selection.probe import HALVES, Probe
from lep.settings import EvaluateSettings, PropagateSettings, SelectSettings
from lep.statistics import Estimate, estimate
from lep.transfer.family import Family
from lep.transfer.propagate import RECORD, as_json, fit, fit_record, result_tensors, token_weights
from lep.transfer.write import write_recipient

BITS = 1 / math.log(2)
UNCHANGED = 0.99  # tokens of a text after over before: at least this in a language that the adaptation leaves alone
LEAST_UNITS = 5  # documents or answers, of which something can be surely worse
ORIGINAL = ("original", "original")
Name = tuple[str, str]  # methods of the input and of the output table
Records = dict[Name, list[dict[str, Any]]]


@dataclass(frozen=True)
class Selection:
    """What was chosen and why: the measures of every candidate on both halves."""

    chosen: Name
    best_reported: Name  # what the other half would have chosen
    vetoed: dict[Name, str]
    languages: dict[str, str]  # language -> "new" or "original"
    measures: dict[str, dict[Name, dict[str, Estimate]]]  # half -> candidate -> measure

    def table(self, half: str = "report") -> str:
        """The measures of one half, the chosen candidate marked."""
        rows = self.measures[half]
        columns = list(next(iter(rows.values())))
        lines = [" | ".join(["candidate".ljust(32), *columns])]
        for name, found in rows.items():
            title = ("* " if name == self.chosen else "  ") + label(name)
            cells = [
                f"{e.value:.4f} ({e.low:.4f}-{e.high:.4f})".rjust(len(c)) for c, e in found.items()
            ]
            lines.append(
                " | ".join([title.ljust(32), *cells])
                + (f" | {self.vetoed[name]}" if name in self.vetoed else "")
            )
        return "\n".join(lines)


def label(name: Name) -> str:
    """`exact`, or `exact, output ridge` where the tables differ."""
    return name[0] if name[0] == name[1] else f"{name[0]}, output {name[1]}"


def propagate_auto(
    base: str | Path,
    instruct: str | Path,
    adapted: str | Path,
    output: Path,
    text: dict[str, list[str | Path]],
    prompts: str | Path,
    settings: PropagateSettings | None = None,
    select: SelectSettings | None = None,
) -> Selection:
    """Write the instruct model with the tables of the candidate that stays nearest to the original instruct model.

    The score is the bits per byte of the original model's own answers plus the divergence of what is expected
    next from what it expected, on its own answers. A candidate under which plain text or answers of an original
    language surely get worse by more than `select.veto` is out; where all are, the nearest is taken, and
    `Selection.vetoed` names it. First all candidates are tried for both tables, then
    each for the output and the input table of the best one. `lep/selection.json` and `.jsonl` hold every figure.

    Raises `BodyTooLarge` when the body does not fit into memory, `CorpusError` without usable prompts.
    """
    settings, select = settings or PropagateSettings(), select or SelectSettings()
    check_output(output)
    questions = [question(record["messages"]) for record in read_messages(prompts)]
    questions.sort(key=lambda messages: unit_hash(messages[-1]["content"]))
    family = Family.open(base, instruct, adapted)
    check_memory(family.instruct)
    probe, original = _ask(family.instruct, text, questions[: select.prompts], select)
    candidates = Candidates(family, settings, output)
    try:
        selection, records = _search(candidates, probe, original, select)
    finally:
        candidates.close()
    record = {
        "method": "auto",
        "input": selection.chosen[0],
        "output": selection.chosen[1],
        "fit": {
            kind: fit_record(found.report)
            for kind, found in candidates.fits(selection.chosen).items()
        },
    }
    described = {
        "chosen": label(selection.chosen),
        "chosen_vetoed": selection.vetoed.get(selection.chosen),
        "languages": selection.languages,
        "best on the other half": label(selection.best_reported),
        "vetoed": {label(name): why for name, why in selection.vetoed.items()},
        "measures": {
            half: {
                label(name): {m: asdict(e) for m, e in found.items()}
                for name, found in rows.items()
            }
            for half, rows in selection.measures.items()
        },
        "settings": select.model_dump(),
    }
    lines = [{"candidate": label(name)} | each for name, found in records.items() for each in found]
    notes = {
        RECORD: as_json(record),
        "selection.json": as_json(described),
        "selection.jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
    }
    write_recipient(family.recipient, candidates.rows(selection.chosen), notes, output)
    return selection


class Candidates:
    """The candidates' tables in one loaded body."""

    def __init__(self, family: Family, settings: PropagateSettings, output: Path) -> None:
        self.family, self.place = family, output.with_name(output.name + ".candidate")
        weights = token_weights(family, settings.frequency_text)
        self.problems = {
            kind: family.problem(kind, weights, settings.ridge) for kind in family.mappings
        }
        self._fits: dict[tuple[str, str], Propagation] = {}
        self._loaded: tuple[Any, Checkpoint] | None = None

    def fits(self, name: Name) -> dict[str, Propagation]:
        """The propagation of each table."""
        for kind, method in self._named(name):
            if kind in self.problems and (kind, method) not in self._fits:
                self._fits[kind, method] = fit(self.problems[kind], method)
        return {
            kind: self._fits[kind, method]
            for kind, method in self._named(name)
            if kind in self.problems
        }

    def tables(self, name: Name) -> dict[str, Tensor]:
        """The tables of the result."""
        return {
            kind: torch.cat(list(self.family.propagated(kind, propagation).chunks()))
            for kind, propagation in self.fits(name).items()
        }

    def rows(self, name: Name) -> dict[str, Rows]:
        """Everything that is written for a candidate."""
        return result_tensors(self.family, self.fits(name))

    def load(self, name: Name) -> tuple[Any, Checkpoint]:
        """The body with a candidate's tables, and its checkpoint; the body is loaded once."""
        tables = self.tables(name)
        if self._loaded is None:
            shutil.rmtree(self.place, ignore_errors=True)
            write_recipient(self.family.recipient, self.rows(name), {}, self.place)
            self._loaded = load_model(self.place)
        model = self._loaded[0]
        model.get_input_embeddings().weight.data.copy_(tables["input"])
        if "output" in tables:
            model.get_output_embeddings().weight.data.copy_(tables["output"])
        return self._loaded

    def _named(self, name: Name) -> list[tuple[str, str]]:
        return list(zip(("input", "output"), name, strict=True))

    def close(self) -> None:
        """Remove what was written for the trial."""
        shutil.rmtree(self.place, ignore_errors=True)


class BodyTooLarge(CheckpointError):
    """A model that cannot be asked here; `weight_report` says what can be said without asking."""


def weight_report(base: str | Path, instruct: str | Path, adapted: str | Path) -> str:
    """How well the maps explain rows they never saw, table by table: all that weights alone can say."""
    lines = ["table  | method     | held-out residual |         W = I | penalty"]
    family = Family.open(base, instruct, adapted)
    for kind in family.mappings:
        problem = family.problem(kind)
        for method in ("overlap", "conversion", "ridge", "procrustes"):
            report = fit(problem, method).report
            penalty = "-" if report.penalty is None else f"{report.penalty:g}"
            lines.append(
                f"{kind:6} | {method:10} | {report.heldout:17.4f} | {report.identity:13.4f} | {penalty}"
            )
    return "\n".join(lines)


def check_memory(checkpoint: Checkpoint) -> None:
    """Raise `BodyTooLarge` when the model, its tables twice, does not fit into free memory.

    As it is loaded (`load_model`): in float32 on a CPU, as it is stored on a GPU.
    """
    gpu = device().type == "cuda"
    if gpu:
        torch.cuda.empty_cache()  # what an earlier stage left
    sizes = {
        name: entry.nbytes if gpu else 4 * math.prod(entry.shape)
        for name, entry in checkpoint.entries.items()
    }
    needed = sum(sizes.values()) + sum(sizes[name] for name in checkpoint.tables.names)
    free = torch.cuda.mem_get_info()[0] if gpu else free_memory()
    if needed > free:
        raise BodyTooLarge(
            f"choosing by function needs {checkpoint.folder} in memory, {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB "
            "are free: name a --method after the fits above, or take a larger machine"
        )


def free_memory() -> float:
    """Bytes that can be had without swapping; unlimited where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _ask(
    instruct: Checkpoint,
    text: dict[str, list[str | Path]],
    prompts: list[Any],
    select: SelectSettings,
) -> tuple[Probe, list[dict[str, Any]]]:
    settings = EvaluateSettings(
        characters=select.characters,
        tasks=["copy_sentence"] if select.copies else [],
        items=max(select.copies, 1),
        seed=select.seed,
    )
    documents, copies = windows(text, settings), items(text, settings)
    model, checkpoint = load_model(instruct.folder)
    probe = Probe.of(model, checkpoint, documents, copies, prompts, select)
    found = probe.measure(model, checkpoint)
    for half in HALVES:
        if not any(r["kind"] == "answer" and r["half"] == half for r in found):
            raise CorpusError(
                f"none of the {len(probe.conversations)} usable answers falls into the half to {half} on: give more "
                "prompts"
            )
    return probe, found


def _search(
    candidates: Candidates, probe: Probe, original: list[dict[str, Any]], select: SelectSettings
) -> tuple[Selection, Records]:
    records: Records = {ORIGINAL: original}

    def best(half: str) -> Name:
        tried = [name for name in records if name != ORIGINAL]
        allowed = [name for name in tried if not _veto(records[name], original, half, select)]
        # where every candidate is out, the nearest of all is taken; the table says why each was
        return min(allowed or tried, key=lambda name: _score(records[name], half))

    def try_all(names: list[Name]) -> None:
        for name in names:
            if name not in records:
                records[name] = probe.measure(*candidates.load(name))

    try_all([(method, method) for method in select.candidates])
    if "output" in candidates.problems:
        try_all([(best("choose")[0], method) for method in select.candidates])
        try_all([(method, best("choose")[1]) for method in select.candidates])
    chosen = best("choose")
    vetoed = {
        name: why for name in records if (why := _veto(records[name], original, "choose", select))
    }
    languages = _languages(records[chosen], original)
    measures = {
        half: {
            name: _measures(found, records[chosen], half, select) for name, found in records.items()
        }
        for half in HALVES
    }
    return Selection(chosen, best("report"), vetoed, languages, measures), records


def _score(records: list[dict[str, Any]], half: str) -> float:
    members = [r for r in records if r["kind"] == "answer" and r["half"] == half]
    return (
        sum(r["nats"] + r["divergence_nats"] for r in members)
        / sum(r["bytes"] for r in members)
        * BITS
    )


def _languages(records: list[dict[str, Any]], original: list[dict[str, Any]]) -> dict[str, str]:
    """Which languages the adaptation leaves alone: those that take as many tokens as before."""
    tokens: dict[str, list[int]] = {}
    for after, before in zip(records, original, strict=True):
        if after["kind"] == "text":
            sums = tokens.setdefault(after["language"], [0, 0])
            sums[0] += after["tokens"]
            sums[1] += before["tokens"]
    return {
        code: "original" if now >= UNCHANGED * then else "new"
        for code, (now, then) in tokens.items()
    }


def _veto(
    records: list[dict[str, Any]], original: list[dict[str, Any]], half: str, select: SelectSettings
) -> str:
    """Why a candidate is out, or nothing."""
    kept = {code for code, side in _languages(records, original).items() if side == "original"}
    groups: dict[str, list[tuple[Any, Any]]] = {}
    for after, before in zip(records, original, strict=True):
        if after["half"] == half and after["kind"] == "text" and after["language"] in kept:
            groups.setdefault(f"{after['language']} text", []).append((after, before))
        if after["half"] == half and after["kind"] == "answer" and after["same_cuts"]:
            groups.setdefault("answers without new tokens", []).append((after, before))
    for title, pairs in groups.items():
        parts = by_document(
            [pair[0] for pair in pairs],
            [a["nats"] - (1 + select.veto) * b["nats"] for a, b in pairs],
        )
        if len(parts) < LEAST_UNITS:
            continue  # of so few nothing is sure
        lost = estimate(parts, resamples=select.bootstrap, seed=select.seed)
        if lost.low > 0:
            more = sum(a["nats"] for a, _ in pairs) / sum(b["nats"] for _, b in pairs) - 1
            return f"{title}: {more:+.1%} bits"
    return ""


def by_document(records: list[dict[str, Any]], values: list[float]) -> list[float]:
    """Sums over the windows of each document, which are alike; other records, and one document, stay as they are."""
    sums: dict[Any, float] = {}
    for i, (record, value) in enumerate(zip(records, values, strict=True)):
        unit = record.get("group", i)
        sums[unit] = sums.get(unit, 0.0) + value
    return list(sums.values()) if len(sums) > 1 else values


def _measures(
    records: list[dict[str, Any]], chosen: list[dict[str, Any]], half: str, select: SelectSettings
) -> dict[str, Estimate]:
    """All measures of a candidate on one half, with 95% bootstrap intervals over texts, answers and copies."""
    mine = [(r, c) for r, c in zip(records, chosen, strict=True) if r["half"] == half]
    found: dict[str, Estimate] = {}

    def add(
        title: str, members: list[Any], top: Callable[[Any], float], bottom: Callable[[Any], float]
    ) -> None:
        if members:
            parts = (
                by_document([m[0] for m in members], [side(m) for m in members])
                for side in (top, bottom)
            )
            found[title] = estimate(*parts, resamples=select.bootstrap, seed=select.seed)

    answers = [pair for pair in mine if pair[0]["kind"] == "answer"]
    add(
        "score",
        answers,
        lambda p: BITS * (p[0]["nats"] + p[0]["divergence_nats"]),
        lambda p: p[0]["bytes"],
    )
    add(
        "score less chosen",
        answers,
        lambda p: BITS * sum(p[0][name] - p[1][name] for name in ("nats", "divergence_nats")),
        lambda p: p[0]["bytes"],
    )
    add("answers bits/byte", answers, lambda p: BITS * p[0]["nats"], lambda p: p[0]["bytes"])
    add(
        "next-byte KL bits",
        answers,
        lambda p: BITS * p[0]["divergence_nats"],
        lambda p: p[0]["borders"],
    )
    add("end of turn bits", answers, lambda p: BITS * p[0]["end_nats"], lambda p: 1.0)
    for code in sorted({r["language"] for r, _ in mine if r["kind"] == "text"}):
        texts = [pair for pair in mine if pair[0]["kind"] == "text" and pair[0]["language"] == code]
        add(f"{code} bits/byte", texts, lambda p: BITS * p[0]["nats"], lambda p: p[0]["bytes"])
    for code in sorted({r["language"] for r, _ in mine if r["kind"] == "task"}):
        copies = [
            pair for pair in mine if pair[0]["kind"] == "task" and pair[0]["language"] == code
        ]
        add(f"{code} copied", copies, lambda p: p[0]["exact"], lambda p: 1.0)
    return found
