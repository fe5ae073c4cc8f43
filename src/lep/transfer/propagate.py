"""Carry adapted embeddings of a base model into its instruct model (paper, section 3.5)."""

import json
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lep.checkpoint.adapter import added, saved_factors
from lep.checkpoint.stream import Rows
from lep.corpus.read import stream_texts
from lep.errors import CheckpointError
from lep.linear_map import FitReport
from lep.propagation import METHODS, UNFITTED, UNPENALISED, Problem, Propagation
from lep.publish import check_output
from lep.result import Result
from lep.settings import PropagateSettings
from lep.sums import NoRowsError
from lep.tokenizer.prune import token_counts
from lep.transfer.family import Family
from lep.transfer.mappings import check_output_method
from lep.transfer.write import write_recipient

RECORD = "propagation.json"


@dataclass(frozen=True)
class Propagated(Result):
    """The fit of each table, and where the model was written."""

    output: Path
    fits: dict[str, FitReport]

    def __str__(self) -> str:
        lines = [f"{kind}: {fit}" for kind, fit in self.fits.items()]
        return "\n".join([*lines, f"written to {self.output}"])


def propagate(
    base: str | Path,
    instruct: str | Path,
    adapted: str | Path,
    output: str | Path,
    settings: PropagateSettings | None = None,
    **options: Any,
) -> Propagated:
    """Write the instruct model with the adapted base model's vocabulary and embeddings.

    Rows of the instruct model's added tokens stay its own, and those that only it has are appended.
    Body, generation settings and chat template are the instruct model's.

    Raises `CheckpointError` when the three models do not belong together, or have no rows to fit a
    map on.
    """
    output, settings = Path(output), PropagateSettings.given(settings, options)
    check_output(output)
    family = Family.open(base, instruct, adapted)
    _check_options(family, settings)
    weights = token_weights(family, settings.frequency_text)
    problems = {kind: family.problem(kind, weights, settings.ridge) for kind in family.mappings}
    propagations = {kind: fit(problem, settings.of(kind)) for kind, problem in problems.items()}
    fits = {kind: propagation.report for kind, propagation in propagations.items()}
    record = settings.model_dump() | {"fit": {kind: fit_record(f) for kind, f in fits.items()}}
    tensors, notes = result_tensors(family, propagations), {RECORD: as_json(record)}
    write_recipient(family.recipient, tensors, notes, output)
    return Propagated(output, fits)


def _check_options(family: Family, settings: PropagateSettings) -> None:
    """Raise `CheckpointError` for options that would do nothing."""
    check_output_method(family.instruct, settings.output_method)
    methods = {settings.of(kind) for kind in family.mappings}
    for option, given, without in (
        ("--ridge", settings.ridge is not None, UNPENALISED),
        ("--frequency-text", bool(settings.frequency_text), UNFITTED),
    ):
        if given and methods <= {*without}:
            raise CheckpointError(
                f"{option} changes nothing with --method {' and '.join(sorted(methods))}: leave it "
                "out, or take a method that fits a map, such as ridge"
            )


def fit(problem: Problem, method: str) -> Propagation:
    """Solve a problem. Raises `CheckpointError` where there are no rows to fit a map on."""
    try:
        return METHODS[method](problem)
    except NoRowsError as error:
        raise CheckpointError(
            "no ordinary token is left to fit the linear map on: take --method swap, or a "
            "frequency text that uses such tokens"
        ) from error


def token_weights(family: Family, paths: list[str]) -> Tensor | None:
    """Weights (V_target,) of a fit: the root of each token's count in a text, or None without text.

    The root keeps frequent tokens from deciding alone.
    """
    if not paths:
        return None
    size = family.mappings["input"].target_size
    tokenizer = family.adapted.tokenizer.backend_tokenizer
    counts = token_counts(tokenizer, stream_texts(paths), size)
    return torch.from_numpy(np.sqrt(counts.astype(np.float64)))


def result_tensors(family: Family, propagations: dict[str, Propagation]) -> dict[str, Rows]:
    """All tensors of the instruct model that change, by name.

    What an adapter taught the base model's body is added to the instruct model's.
    """
    names, others = family.instruct.tables.by_kind(), family.instruct.tables.others
    tensors = {names[kind]: family.propagated(kind, each) for kind, each in propagations.items()}
    tensors |= {name: family.other(name, trained=True) for name in others}
    return tensors | added(family.instruct, saved_factors(family.adapted.folder))


def initialise_instruct(
    base: str | Path, instruct: str | Path, adapted: str | Path, output: str | Path
) -> None:
    """Write the instruct model with the adapted vocabulary and untrained rows, `M E_inst`.

    This is the control that every propagation has to beat.
    """
    family = Family.open(base, instruct, adapted)
    tables = family.instruct.tables
    tensors = {name: family.untrained(kind) for kind, name in tables.by_kind().items()}
    tensors |= {name: family.other(name, trained=False) for name in tables.others}
    record = {"method": "none, untrained rows", "fit": {}}
    write_recipient(family.recipient, tensors, {RECORD: as_json(record)}, Path(output))


def fit_record(report: FitReport) -> dict[str, Any]:
    """A fit as JSON, which has no infinity."""
    return asdict(report) | ({"penalty": "infinite"} if report.penalty == inf else {})


def as_json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2, allow_nan=False) + "\n"
