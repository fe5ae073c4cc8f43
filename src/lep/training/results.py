"""What a training returns; the same facts are written beside the model."""

from dataclasses import asdict, dataclass
from pathlib import Path

from lep.files import without_paths, write_json
from lep.result import Result
from lep.settings import LoraSettings, PretrainSettings


@dataclass(frozen=True)
class Loss:
    """The mean loss in nats per token since the previous report, and the learning rate."""

    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Look:
    """What held-out text showed at one step, by language; see `HeldoutText.look`."""

    step: int
    bits_per_byte: dict[str, float]
    copied_bits_per_byte: dict[str, float]
    new_token_share: float | None = None


@dataclass(frozen=True)
class StreamRecord:
    """A stream of a mixture: its tokens, those of them that are learned, and its losses."""

    tokens: int
    share: float  # of all tokens
    learned: int
    losses: list[tuple[int, float]]  # step, mean nats a learned token since the last report


@dataclass(frozen=True)
class Sweep:
    """Bits per byte of the first held-out text by learning rate (None: diverged); the best rate."""

    bits_per_byte: dict[str, float | None]
    best: float

    def __str__(self) -> str:
        rates = [f"{rate}: {bits or 'diverged'}" for rate, bits in self.bits_per_byte.items()]
        return f"bits per byte by rate: {'; '.join(rates)}; took the best one, {self.best:g}"


@dataclass(frozen=True)
class TableRate:
    """The peak learning rate of a table, and its share of the size of the table's known rows."""

    rate: float
    share: float


@dataclass(frozen=True, kw_only=True)
class PretrainResult(Result):
    """A finished pre-training; `print` shows its losses, looks at held-out text, and folder."""

    tokens: int  # trained on
    steps: int
    block_size: int  # tokens
    packed_tokens: int  # of all documents, or of those drawn for this training
    blocks: int
    step_tokens: int  # of a step of whole blocks
    trained_rows: dict[str, int]  # by table
    documents_isolated: bool  # whether documents in a block do not see each other
    frozen_tensors: int  # proven unchanged
    processes: int
    share_of_weights_held: float  # by this process
    losses: list[Loss]
    best_step: int | None  # whose state was kept; None without eval_text
    looks: list[Look] | None
    streams: dict[str, StreamRecord] | None = None  # of a mixture
    new_token_mass: list[tuple[int, float]] | None = None  # step, probability on old text
    below_practice: int | None = None  # new tokens that were learned less than `practice` times
    median_learned: float | None = None  # times that a new token was learned
    seconds: float  # of the steps and the looks, without those that an interruption lost
    look_seconds: float
    rates: dict[str, TableRate] | None = None  # where they are relative to rows
    settings: PretrainSettings  # as used, with tokens, batch and rate settled
    sweep: Sweep | None = None
    output: Path

    def __str__(self) -> str:
        lines = [str(self.sweep)] if self.sweep else []
        lines.append(f"{self.tokens:,} tokens, {_summary(self)}")
        for table, peak in (self.rates or {}).items():
            lines.append(f"peak rate of the {table} table: {peak.share:.3g} of a known row")
        lines += self._mixture()
        for look in self.looks or []:
            bits = ", ".join(f"{name} {value:.4f}" for name, value in look.bits_per_byte.items())
            kept = " (kept)" if look.step == self.best_step else ""
            lines.append(f"step {look.step:,}: bits per byte {bits}{kept}")
        if self.best_step == 0:
            lines.append(
                "no step was better on held-out text than the start, which is kept: train on more "
                "tokens, or at a lower rate"
            )
        if self.looks and self.seconds:
            share = self.look_seconds / self.seconds
            lines.append(f"looks at held-out text took {share:.0%} of the time")
        if not self.documents_isolated:
            lines.append("the model ignores position restarts: a document saw those before it")
        return "\n".join([*lines, f"wrote {self.output}"])

    def _mixture(self) -> list[str]:
        lines = [
            f"{name}: {stream.share:.1%} of the tokens, {stream.learned:,} learned; loss from "
            f"{stream.losses[0][1]:.3f} to {stream.losses[-1][1]:.3f}"
            for name, stream in (self.streams or {}).items()
        ]
        if self.new_token_mass:
            mass = self.new_token_mass[-1][1]
            lines.append(f"new tokens take {mass:.2%} of the probability on old text")
        if self.below_practice is not None:
            times = getattr(self.settings, "practice", 0)
            line = f"{self.below_practice:,} new tokens were learned fewer than {times} times"
            if self.median_learned is not None:
                line = f"a new token was learned {self.median_learned:g} times (median); {line}"
            lines.append(line)
        return lines


@dataclass(frozen=True, kw_only=True)
class TuneResult(Result):
    """A finished tuning or calibration; `print` shows its samples, losses, and folder."""

    steps: int
    losses: list[Loss]
    merge_error: float | None  # of logits, as a share of the largest; None without an adapter
    changed_tensors: list[str]
    samples: int
    too_long: int  # samples left out
    seconds: float
    answers: dict[str, int] | None = None  # of a calibration: kept, and dropped by reason
    copy_tasks: int | None = None  # of a calibration
    settings: LoraSettings
    output: Path

    def __str__(self) -> str:
        lines = [f"{self.samples:,} samples ({self.too_long:,} too long), {_summary(self)}"]
        if self.answers is not None:
            lines.insert(0, f"answers: {self.answers}; copy tasks: {self.copy_tasks}")
        return "\n".join([*lines, f"wrote {self.output}"])


def write_record(result: PretrainResult | TuneResult, file: Path) -> None:
    """Write all fields that apply as JSON, without the folder and the paths that were read."""
    record = asdict(result, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None})
    del record["output"]
    record["settings"] = without_paths(result.settings.model_dump())
    write_json(file, record, indent=1)


def _summary(result: PretrainResult | TuneResult) -> str:
    first, last = result.losses[0].loss, result.losses[-1].loss
    return (
        f"{result.steps:,} steps in {result.seconds:,.1f} s; loss from {first:.3f} to {last:.3f} "
        "nats a token"
    )
