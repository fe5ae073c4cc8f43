"""The candidates of a choice as loaded models, and what the weights alone say about them."""

import math
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import Rows
from lep.errors import CheckpointError
from lep.inference.models import device, load_model
from lep.propagation import Propagation
from lep.publish import partial_path
from lep.settings import PropagateSettings
from lep.transfer.family import Family
from lep.transfer.propagate import fit, result_tensors, token_weights
from lep.transfer.write import write_recipient

Name = tuple[str, str]  # methods of the input and of the output table


class Candidates:
    """The candidates' tables in one loaded body. `close` removes the trial's files."""

    def __init__(self, family: Family, settings: PropagateSettings, output: Path) -> None:
        self.family = family
        self.folder = partial_path(output.with_name(f"{output.name}.candidate"))
        weights, ridge = token_weights(family, settings.frequency_text), settings.ridge
        self.problems = {kind: family.problem(kind, weights, ridge) for kind in family.mappings}
        self._fit = cache(lambda kind, method: fit(self.problems[kind], method))
        self._loaded: tuple[Any, Checkpoint] | None = None

    def fits(self, name: Name) -> dict[str, Propagation]:
        """The propagation of each table; each method is fitted once."""
        methods = zip(("input", "output"), name, strict=True)
        return {kind: self._fit(kind, method) for kind, method in methods if kind in self.problems}

    def tensors(self, name: Name) -> dict[str, Rows]:
        """All tensors that a candidate changes."""
        return result_tensors(self.family, self.fits(name))

    def load(self, name: Name) -> tuple[Any, Checkpoint]:
        """The body with a candidate's tables, and its checkpoint; the body is loaded once."""
        if self._loaded is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_recipient(self.family.recipient, self.tensors(name), {}, self.folder)
            self._loaded = load_model(self.folder)
        for kind, propagation in self.fits(name).items():
            embeddings = getattr(self._loaded[0], f"get_{kind}_embeddings")()
            rows = self.family.propagated(kind, propagation).chunks()
            embeddings.weight.data.copy_(torch.cat(list(rows)))
        return self._loaded

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class BodyTooLarge(CheckpointError):
    """A model too large to run here; `weight_report` needs no run."""


def weight_report(base: str | Path, instruct: str | Path, adapted: str | Path) -> str:
    """How well the linear maps, and W = I, explain held-out rows, for each table."""
    lines = ["table  | method     | held-out residual |         W = I | penalty"]
    family = Family.open(base, instruct, adapted)
    for kind in family.mappings:
        problem = family.problem(kind)
        for method in ("overlap", "conversion", "ridge", "procrustes"):
            report = fit(problem, method).report
            penalty = "-" if report.penalty is None else f"{report.penalty:g}"
            residuals = (report.heldout, report.heldout_identity)
            heldout, identity = ("-" if r is None else f"{r:.4f}" for r in residuals)
            figures = f"{heldout:>17} | {identity:>13} | {penalty}"
            lines.append(f"{kind:6} | {method:10} | {figures}")
    return "\n".join(lines)


def check_memory(checkpoint: Checkpoint) -> None:
    """Raise `BodyTooLarge` when the model, with its tables twice, does not fit into free memory.

    `load_model` loads it in float32 on a CPU, as stored on a GPU.
    """
    gpu, entries, tables = device().type == "cuda", checkpoint.entries, checkpoint.tables.names
    if gpu:
        torch.cuda.empty_cache()  # of an earlier stage
    parts = (entries[name] for name in (*entries, *tables))
    needed = sum(part.nbytes if gpu else 4 * math.prod(part.shape) for part in parts)
    free = torch.cuda.mem_get_info()[0] if gpu else free_memory()
    if needed > free:
        raise BodyTooLarge(
            f"choosing by function needs {checkpoint.folder} in memory, {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: name a --method after the fits above, or take a larger "
            "machine"
        )


def free_memory() -> float:
    """Bytes available without swapping; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
