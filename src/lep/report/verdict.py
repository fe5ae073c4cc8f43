"""The verdict on a run in a line: what the new language costs, and what answers are worth now."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lep.errors import CheckpointError, foreign
from lep.evaluation.measures import NEW_MASS, Key, measures
from lep.evaluation.records import Record, Score, load_records
from lep.report.paired import MARGIN, Contrast, Original
from lep.report.run_record import CellRecord, RunRecord, read_scores
from lep.settings import EvaluateSettings
from lep.statistics import ratio

JOINT = "joint training"  # the model that the verdict is on, if the run has it
MOST_NEW_MASS = 0.01  # of the probability in old text: the verdict tells of more
LEAST_RIGHT = 0.1  # if both models are right less often, bits compare their answers
COST, RIGHT = "symbols per token", "exact match"
TEXT_BITS, ANSWER_BITS = "bits per byte", "answer bits per byte"
METRICS = (COST, RIGHT, ANSWER_BITS, TEXT_BITS)
LANGUAGES = """
    am Amharic, ar Arabic, be Belarusian, bg Bulgarian, bn Bengali, cs Czech, da Danish, de German,
    dv Divehi, el Greek, en English, es Spanish, et Estonian, fa Persian, fi Finnish, fr French,
    gu Gujarati, he Hebrew, hi Hindi, hu Hungarian, hy Armenian, id Indonesian, it Italian,
    ja Japanese, ka Georgian, kk Kazakh, km Khmer, kn Kannada, ko Korean, ky Kyrgyz, lo Lao,
    lt Lithuanian, lv Latvian, ml Malayalam, mn Mongolian, mr Marathi, my Burmese, ne Nepali,
    nl Dutch, or Odia, pl Polish, pt Portuguese, ro Romanian, ru Russian, si Sinhala, sk Slovak,
    sr Serbian, sv Swedish, sw Swahili, ta Tamil, te Telugu, tg Tajik, th Thai, ti Tigrinya,
    tr Turkish, tt Tatar, uk Ukrainian, ur Urdu, uz Uzbek, vi Vietnamese, zh Chinese
"""
NAMES = dict(pair.split() for pair in LANGUAGES.split(","))


def run_verdict(folder: str | Path) -> str | None:
    """The verdict on a finished run: on its joint training, or else on its best model.

    Of a grid, the first cell. None where the run has nothing to compare. Raises `LepError` for a
    run that is not finished or not whole.
    """
    folder = Path(folder)
    cell = RunRecord.load(folder).cells[0]
    models, language = compared_models(cell), cell.recipe["language"]
    if len(models) < 2:
        return None
    first, *others = models
    with foreign(f"{folder} is no whole run", "run its recipe again", CheckpointError):
        chosen = judged_model(folder, cell)
        original, adapted = (
            load_records(folder / models[title] / "records.jsonl") for title in (first, chosen)
        )
        sentences = verdict(original, adapted, [language], cell.evaluate_settings)
    if sentences is None:
        return None
    parts = [cell_name(cell)] if cell.seed is not None else []
    if chosen != JOINT:
        of = f" (the best of {len(others)} models, chosen on the same items)"
        parts += [chosen + of if others[1:] else chosen]
    return ": ".join([*parts, sentences])


def compared_models(cell: CellRecord) -> dict[str, str]:
    """The models that the verdict compares, with the stages of their scores: the original first."""
    return cell.instruct_models if len(cell.instruct_models) > 1 else cell.base_models


def judged_model(folder: Path, cell: CellRecord) -> str:
    """The title of the model that the verdict is on: joint training, or else the best one."""
    models = compared_models(cell)
    if JOINT in models:
        return JOINT
    scores = {title: read_scores(folder, models[title]) for title in [*models][1:]}
    return best(scores, cell.recipe["language"])


def cell_name(cell: CellRecord) -> str:
    """The combination and the seed of a grid's cell."""
    return ", ".join([*cell.labels.values(), f"seed {cell.seed}"])


def best(scores: dict[str, list[Score]], language: str) -> str:
    """The model with most right answers in the language, then fewest bits of answers, of text.

    Right answers do not count where no model has more than a few (`LEAST_RIGHT`).
    """

    def rank(title: str) -> list[float]:
        values = {(s.metric, s.task): s.value for s in scores[title] if s.language == language}
        if few:
            values.pop((RIGHT, None), None)
        signs = {RIGHT: 1, ANSWER_BITS: -1, TEXT_BITS: -1}
        ranks = [sign * values.get((metric, None), math.nan) for metric, sign in signs.items()]
        return [-math.inf if math.isnan(value) else value for value in ranks]

    right = [s for each in scores.values() for s in each if (s.metric, s.task) == (RIGHT, None)]
    few = all(s.value < LEAST_RIGHT for s in right if s.language == language)
    return max(scores, key=rank)


def verdict(
    original: Sequence[Record],
    adapted: Sequence[Record],
    languages: Sequence[str],
    settings: EvaluateSettings,
) -> str | None:
    """A few sentences on an adapted model beside its original, from their records.

    They are on tokens of the new `languages`, on answers in them (or on text, without answers),
    and on the other languages. `settings` give the resamples and their seed. None if the models
    have no text and no answers in common.
    """
    wanted = [(metric, None) for metric in METRICS]
    compared = Original(original, wanted, settings).contrasts(adapted)
    codes = {code for metric, code, _ in compared if metric in (TEXT_BITS, RIGHT)}
    by_language = {code: Language.of(code, compared) for code in sorted(codes)}
    new = [by_language.pop(code) for code in languages if code in by_language]
    mass = new_mass(adapted)
    old = [
        each.summary(mass.get(code, 0.0)) for code, each in by_language.items() if each.figures()
    ]
    sentences = [each for one in new for each in one.sentences()]
    sentences += ["; ".join(old)] if old else []
    return " ".join(f"{sentence}." for sentence in sentences) or None


def new_mass(records: Sequence[Record]) -> dict[str, float]:
    """By language, the mean probability that new tokens take where an old token is right."""
    masses = {m.language: m for m in measures(records) if m.metric == NEW_MASS}
    return {code: ratio(mass.array(list(mass.values))) for code, mass in masses.items()}


@dataclass(frozen=True)
class Language:
    """What an adapted model's tokens, answers and text of a language are beside the original's."""

    name: str
    tokens: Contrast | None
    right: Contrast | None  # share of right answers
    answer_bits: Contrast | None  # of the right answers; compared alone where `right` is None
    text_bits: Contrast | None

    @classmethod
    def of(cls, code: str, compared: dict[Key, Contrast]) -> "Language":
        tokens, right, answers, text = (compared.get((metric, code, None)) for metric in METRICS)
        few = right and max(right.before, right.after) < LEAST_RIGHT
        if right and few and right.outcome != "worse":
            right = None
        return cls(NAMES.get(code, code), tokens, right, answers, text)

    def sentences(self) -> list[str]:
        """On tokens, and on answers or else on text."""
        worth = self.worth()[:1]
        return [*([cost(self.name, self.tokens)] if self.tokens else []), *worth]

    def summary(self, mass: float) -> str:
        """That answers and text are as before, or what became of each.

        `mass` is the probability that new tokens take in the language.
        """
        bits = None if self.right and not self.less_likely else self.answer_bits
        compared = [each for each in (self.right, bits, self.text_bits) if each]
        if all(each.outcome in ("better", "same") for each in compared):
            head = "is as before"
            if all(each.within_margin for each in compared):
                head = f"is as good as before within {percent(MARGIN)}"
            text = f"{self.name} {head} ({'; '.join(self.figures())})"
        else:
            clauses, bits = self.worth(), self.text_bits
            if clauses[1:] and bits and bits.is_level:
                clauses[1] = f"and its text is as before ({percent(-bits.gain.value, '+')} bits)"
            text = ", ".join(clauses)
        if self.tokens and self.tokens.outcome == "worse":
            text += f"; {cost(self.name, self.tokens)}"
        taken = f", and new tokens take {percent(mass)} of the probability in its text"
        return text + (taken if mass > MOST_NEW_MASS else "")

    def figures(self) -> list[str]:
        """What was measured, in a word or two each."""
        figures = []
        if self.right:
            share = percent(self.right.after)
            same = f"the same {share} of {self.right.gain.count:,} answers are right"
            figures = [same if self.right.unchanged else f"{share} right"]
        answers = None if self.right else self.answer_bits
        for noun, bits in (("answers", answers), ("text", self.text_bits)):
            if bits:
                figures.append(f"{noun} {percent(-bits.gain.value, '+')} bits")
        return figures

    def worth(self) -> list[str]:
        """A clause on answers, and one on text, of those that were measured."""
        clauses = []
        if self.right:
            clauses.append(answers_in(self.name, self.right) + self.less_likely)
        elif self.answer_bits:
            clauses.append(bits_of(f"{self.name} answers", self.answer_bits))
        if self.text_bits:
            clauses.append(bits_of(f"{self.name} text", self.text_bits))
        return clauses

    @property
    def less_likely(self) -> str:
        """A clause on right answers that cost more bits, where as many are given, or nearly."""
        bits = self.answer_bits
        if not (bits and self.right and self.right.outcome in ("same", "unclear")):
            return ""
        if bits.outcome != "worse":
            return ""
        return f", though right ones became less likely ({amount_of_bits(-bits.gain.value)})"


def cost(name: str, tokens: Contrast) -> str:
    """How many tokens a language takes, from the gain in symbols per token."""
    value, *interval = (1 / (1 + gain) - 1 for gain in tokens.gain_interval)
    amount = f"{percent(abs(value))} {'fewer' if value < 0 else 'more'} tokens"
    if tokens.outcome in ("better", "worse"):
        return f"{name} takes {amount}"
    if tokens.before == tokens.after:
        return f"{name} takes as many tokens as before"
    if not tokens.outcome:
        return f"{name} takes {amount} (in one text)"
    if tokens.outcome == "same":
        as_many = "as many tokens as" if tokens.is_level else "no more tokens than"
        return f"{name} takes {as_many} before within {percent(MARGIN)} ({amount})"
    return f"{name} takes {amount}, not distinguishable from none ({span(*interval[::-1])})"


def answers_in(name: str, right: Contrast) -> str:
    """What answers in a language are worth, from the share of right ones."""
    value, low, high = (100 * gain for gain in right.gain_interval)
    shares = f"{percent(right.after)} right, the original {percent(right.before)}"
    figures = f"({shares}; 95% {number(low, '+')} to {number(high, '+')} points)"
    if right.outcome == "same":
        if right.unchanged:
            count = f"{percent(right.after)} of {right.gain.count:,}"
            return f"{name} answers are right where the original's are ({count})"
        margin = f"within {number(100 * MARGIN)} points"
        return f"{name} answers are as good as the original's {margin} {figures}"
    if right.outcome == "unclear":
        return f"{name} answers are not distinguishable from the original's {figures}"
    if right.outcome:
        change = "gained" if right.outcome == "better" else "lost"
        return f"{name} answers {change} {number(abs(value))} points {figures}"
    return f"{name} answers: {shares} (a single one)"


def bits_of(subject: str, bits: Contrast) -> str:
    """How many bits text or answers cost, from the relative gain."""
    value, low, high = (-gain for gain in bits.gain_interval)
    figures = f"({percent(value, '+')}, {span(high, low)})"
    match bits.outcome:
        case "better" | "worse":
            return f"{subject}: {change_in_bits(bits)}"
        case "same":
            as_many = "as many bits as" if bits.is_level else "no more bits than"
            return f"{subject}: {as_many} before within {percent(MARGIN)} {figures}"
        case "unclear":
            return f"{subject}: bits not distinguishable from before {figures}"
    if not math.isfinite(value):
        return f"{subject}: no bits, for the model gives no probabilities"
    return f"{subject}: {amount_of_bits(value)} (a single one)"


def change_in_bits(bits: Contrast) -> str:
    """How many more or fewer bits, with the interval."""
    value, low, high = (-gain for gain in bits.gain_interval)
    return f"{amount_of_bits(value)} ({span(high, low)})"


def amount_of_bits(value: float) -> str:
    """A relative change, without its sign.

    >>> amount_of_bits(-0.1)
    '10% fewer bits'
    """
    return f"{percent(abs(value))} {'fewer' if value < 0 else 'more'} bits"


def span(low: float, high: float) -> str:
    """An interval of relative changes."""
    return f"95% {percent(low, '+')} to {percent(high, '+')}"


def percent(share: float, sign: str = "") -> str:
    return f"{number(100 * share, sign)}%"


def number(value: float, sign: str = "") -> str:
    """One decimal, or none; more where the first digit comes later, down to the third.

    >>> [number(x, "+") for x in (7.0, -0.04, 0.0, 12.34, 3e-5)]
    ['+7', '-0.04', '0', '+12.3', '0']
    """
    if abs(value) < 5e-4:
        return "0"
    text = f"{value:{sign}.1f}"
    return text.removesuffix(".0") if abs(value) >= 0.05 else f"{value:{sign}.1g}"
