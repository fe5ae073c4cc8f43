"""Carry the adapted embeddings of a base model into its instruct model (section 3.5 of the paper)."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lep.checkpoint.adapter import added, saved_factors
from lep.checkpoint.ids import check_named, remap_generation_config, remap_ids
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import Rows
from lep.checkpoint.writer import resized_config, write_checkpoint
from lep.corpus.read import stream_texts
from lep.linear_map import FitReport
from lep.propagation import METHODS, Propagation, propagated_rows
from lep.publish import check_output, publishing
from lep.settings import PropagateSettings
from lep.tokenizer.idmap import IdMap
from lep.tokenizer.load import check_loaders, write_tokenizer
from lep.tokenizer.prune import token_counts
from lep.tokenizer.vocabulary import Vocabulary
from lep.transfer.family import Family, Recipient, first_rows
from lep.transfer.initialise import LOADER_TEXTS
from lep.transfer.mappings import save_mappings
from lep.transfer.row_streams import carried_rows, recipient_rows

RECORD = "propagation.json"


def propagate(
    base: str | Path,
    instruct: str | Path,
    adapted: str | Path,
    output: Path,
    settings: PropagateSettings | None = None,
) -> dict[str, FitReport]:
    """Write the instruct model with the adapted base model's vocabulary and embeddings to `output`.

    Rows are carried by the method of `settings`; those of added tokens are the instruct model's, and those that only
    it has are appended. Body, generation settings and chat template are the instruct model's.

    Returns the fit of each table. Raises `CheckpointError` when the three models do not belong together.
    """
    settings = settings or PropagateSettings()
    check_output(output)
    family = Family.open(base, instruct, adapted)
    weights = use_weights(family, settings.frequency_text) if settings.frequency_text else None
    tables, reports = {}, {}
    for kind in family.mappings:
        found = METHODS[settings.of(kind)](family.case(kind, weights, settings.ridge).problem)
        tables[kind], reports[kind] = propagated(family, kind, found), found.report
    record = settings.model_dump() | {
        "fit": {kind: fit_record(report) for kind, report in reports.items()}
    }
    write_result(family.recipient, all_rows(family, tables), {RECORD: as_json(record)}, output)
    return reports


def propagated(family: Family, kind: str, found: Propagation) -> Rows:
    """A table of the result, made when it is written; only then are the tables that it is made of in memory."""

    def carried() -> Iterator[Tensor]:
        case = family.applied(kind)
        return propagated_rows(case.problem, found, case.adapted)

    return recipient_rows(family.recipient, family.instruct.tables.by_kind()[kind], carried)


def fit_record(report: FitReport) -> dict[str, Any]:
    """A fit as JSON, which knows no infinity."""
    return asdict(report) | ({"penalty": "infinite"} if report.penalty == inf else {})


def as_json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def use_weights(family: Family, paths: list[str]) -> Tensor:
    """What each target row counts in a fit: the root of its uses in a text, so that no frequent token decides alone."""
    size = family.mappings["input"].target_size
    counts = token_counts(family.adapted.tokenizer.backend_tokenizer, stream_texts(paths), size)
    return torch.from_numpy(np.sqrt(counts.astype(np.float64)))


def initialise_instruct(
    base: str | Path, instruct: str | Path, adapted: str | Path, output: Path
) -> None:
    """Write the instruct model with the adapted vocabulary and untrained rows, `M E_inst`, to `output`.

    What there is without any training: the control that every propagation has to beat.
    """
    family = Family.open(base, instruct, adapted)
    names = family.instruct.tables.by_kind()
    tables = {kind: _untrained(family, kind, name) for kind, name in names.items()}
    record = {"method": "none, untrained rows", "fit": {}}
    write_result(
        family.recipient, all_rows(family, tables, trained=False), {RECORD: as_json(record)}, output
    )


def _untrained(family: Family, kind: str, name: str) -> Rows:
    def mixed() -> Iterator[Tensor]:
        base = family.base.tensor(family.base.tables.by_kind()[kind])
        table = first_rows(family.instruct.tensor(name), base)
        return (part(table) for part in family.mappings[kind].chunks(table.shape[1]))

    return recipient_rows(family.recipient, name, mixed)


def all_rows(family: Family, tables: dict[str, Rows], *, trained: bool = True) -> dict[str, Rows]:
    """The tables by their names, with every other tensor that changes; `trained`: with what was learned in it."""
    chat = family.instruct
    others = {name: carried_rows(family, name, trained=trained) for name in chat.tables.others}
    if (
        trained
    ):  # what training added to the body of the base is added to that of the instruct model
        others |= added(chat, saved_factors(family.adapted.folder))
    return {chat.tables.by_kind()[kind]: table for kind, table in tables.items()} | others


def write_result(
    recipient: Recipient, replaced: dict[str, Rows], notes: dict[str, str], output: Path
) -> None:
    """Publish an instruct model with new tables and the new vocabulary; `notes` are files for its `lep/`, by name."""
    chat = recipient.model
    id_map = IdMap.between(chat.vocabulary, Vocabulary.of(recipient.tokenizer))
    moved = id_map.moved | {old: new for old, new in recipient.ids.items() if old != new}
    check_named(
        chat,
        {i for i in id_map.dropped if chat.vocabulary.tokens[i] is not None} - set(recipient.ids),
    )
    with publishing(output) as partial:
        config = remap_ids(chat.config, moved)
        resized = resized_config(config, recipient.rows, chat.tables.size_settings)
        write_checkpoint(chat, replaced, partial, config | resized)
        remap_generation_config(partial, moved)
        write_tokenizer(recipient.tokenizer_spec(), chat.folder, partial, chat.tokenizer)
        save_mappings(recipient.mappings, partial)
        for name, content in notes.items():
            (partial / "lep" / name).write_text(content, encoding="utf-8")
        result = Checkpoint(partial).check()
        specials = "".join(list(chat.vocabulary.added_ids())[:8])
        check_loaders(partial, [*LOADER_TEXTS, specials], result.tokenizer)
