"""What differs between two models on the same items: paired differences, and what they bear out."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np

from lep.evaluation.measures import Figure, Key, Measure, figure, measures
from lep.evaluation.records import Record
from lep.settings import EvaluateSettings
from lep.statistics import Estimate, bounds, paired_difference

Wanted = Collection[tuple[str, str | None]]  # metrics, and the task or None
MARGIN = 0.02  # a smaller loss counts as none: of a share, or relative in bits and in tokens


@dataclass(frozen=True)
class Contrast:
    """A measure of two models on the same items.

    `gain` is positive where the second model is better: a difference of shares, and for bits and
    symbols per token the difference divided by the first model's value.
    """

    before: float
    after: float
    gain: Estimate
    unchanged: bool = False  # whether both models are right in the same items

    @property
    def gain_interval(self) -> tuple[float, float, float]:
        """The gain, and its 95% interval."""
        return self.gain.value, self.gain.low, self.gain.high

    @property
    def within_margin(self) -> bool:
        """Whether the interval excludes a loss of the margin."""
        return self.gain.low > -MARGIN

    @property
    def is_level(self) -> bool:
        """Whether the interval excludes a gain of the margin, too."""
        return self.within_margin and self.gain.high < MARGIN

    @property
    def outcome(self) -> str:
        """`better` if the 95% interval of the gain is above zero, `same` if it excludes a loss of
        `MARGIN` or no item changed, `worse` if it is below zero, else `unclear`.

        Empty for a single unit, which has no interval, and where a value is no number.
        """
        if self.gain.count < 2 or not np.isfinite(self.gain_interval).all():
            return ""
        if self.gain.low > 0:
            return "better"
        if self.unchanged or self.within_margin:
            return "same"
        return "worse" if self.gain.high < 0 else "unclear"


class Original:
    """The first model, that others are compared with.

    Of its records, the `wanted` measures (metric, task) count. `settings` give the number of
    resamples and their seed.
    """

    def __init__(self, records: Iterable[Record], wanted: Wanted, settings: EvaluateSettings):
        self._measures = selected(records, wanted)
        self._wanted, self._draws = wanted, (settings.bootstrap, settings.seed)
        self._figures = {key: figure(m, *self._draws) for key, m in self._measures.items()}

    def contrasts(self, records: Iterable[Record]) -> dict[Key, Contrast]:
        """Another model's measures that this one has too, by metric, language and task."""
        others = selected(records, self._wanted)
        pairs = {key: self._contrast(others[key]) for key in self._measures if key in others}
        return {key: each for key, each in pairs.items() if each}

    def _contrast(self, other: Measure) -> Contrast | None:
        """Over the items that both models have; None if there are none.

        Both are resampled alike, so that the interval is that of paired differences.
        """
        first = self._measures[other.key]
        items = [item for item in first.values if item in other.values]
        first, second = (replace(m, values={i: m.values[i] for i in items}) for m in (first, other))
        whole = len(items) == len(self._measures[other.key].values)
        before = self._figures[other.key] if whole else figure(first, *self._draws)
        after = figure(second, *self._draws)
        if before is None or after is None:
            return None
        if first.unit != "share":
            gain = relative(before, after)
            if first.unit.startswith("bits"):  # fewer are better
                gain = replace(gain, value=-gain.value, low=-gain.high, high=-gain.low)
            return Contrast(before.value, after.value, gain)
        gain = bounds(after.value - before.value, after.drawn - before.drawn, before.count)
        if not first.is_mean_share:
            return Contrast(before.value, after.value, gain)
        differences = second.array(items) - first.array(items)
        low, high = max(gain.low, -1.0), min(gain.high, 1.0)
        gain = paired_difference(differences) or replace(gain, low=low, high=high)
        return Contrast(before.value, after.value, gain, not differences.any())


def relative(before: Figure, after: Figure) -> Estimate:
    """The change of a value that is never below zero, as a share of what it was before.

    The interval is that of the ratio's logarithm, so that no end is a loss of more than all.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # without bits there is no number
        value = np.log(np.divide(after.value, before.value))
        drawn = np.log(after.drawn / before.drawn)
        interval = bounds(value, drawn, before.count)
    ends = (interval.value, interval.low, interval.high)
    value, low, high = (float(np.expm1(end)) for end in ends)
    return Estimate(value, low, high, interval.count)


def selected(records: Iterable[Record], wanted: Wanted) -> dict[Key, Measure]:
    """The measures with one of the names `wanted`, by metric, language and task."""
    return {m.key: m for m in measures(records) if (m.metric, m.task) in wanted}
