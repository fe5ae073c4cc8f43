"""Which of a few languages of one script a text is in, by the runs of three letters in it."""

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import regex

from lep.corpus.language import SCRIPTS, dominant_script

LEAST_RUNS = 20  # in a text that is judged
LEAST_KNOWN = 2_000  # in the text of each language
MARGIN = 0.25  # nats a run by which another language must be likelier
UNSEEN = 0.1  # of the likelihood, for runs that a language has not shown
_GAP = regex.compile(r"[^\p{L}\p{M}]+")


@dataclass(frozen=True)
class Trigrams:
    """Runs of three letters in text of several languages, counted (Cavnar & Trenkle 1994)."""

    counts: dict[str, Counter[str]]

    @cached_property
    def distinct(self) -> int:
        """Number of different runs in all languages."""
        return len(set().union(*self.counts.values()))

    @classmethod
    def of(cls, texts: Mapping[str, Iterable[str]]) -> "Trigrams":
        """As many runs of each language, drawn at random: one with more would know more.

        Languages with too little text are left out, and nothing is said of them.
        """
        every = {code: [r for text in given for r in runs(text)] for code, given in texts.items()}
        enough = {code: known for code, known in every.items() if len(known) >= LEAST_KNOWN}
        least, rng = min(map(len, enough.values()), default=0), random.Random(0)
        return cls({code: Counter(rng.sample(known, least)) for code, known in enough.items()})

    def excludes(self, text: str, language: str) -> bool:
        """Whether a text is surely in another of the languages."""
        text_runs = runs(text)
        if language not in self.counts or len(text_runs) < LEAST_RUNS:
            return False
        nats = {code: self._nats(text_runs, code) for code in self.counts}
        return nats[language] - min(nats.values()) > MARGIN * len(text_runs)

    def _nats(self, text_runs: list[str], language: str) -> float:
        """Minus the logarithm of the likelihood.

        A share of it is that of any run, the same in each language (Jelinek & Mercer 1980).
        """
        counts = self.counts[language]
        known = (1 - UNSEEN) / counts.total()
        return -sum(math.log(known * counts[run] + UNSEEN / self.distinct) for run in text_runs)


def of_one_script(texts: Mapping[str, Sequence[str]]) -> dict[str, Trigrams]:
    """By language, the runs of all languages of its script, where it is not alone in it."""
    scripts: dict[str | None, list[str]] = {}
    for language, every in texts.items():
        script = SCRIPTS.get(language) or dominant_script("\n".join(every))
        scripts.setdefault(script, []).append(language)
    groups = [codes for codes in scripts.values() if len(codes) > 1]
    counted = [(codes, Trigrams.of({code: texts[code] for code in codes})) for codes in groups]
    return {code: trigrams for codes, trigrams in counted for code in codes}


def runs(text: str) -> list[str]:
    """Every run of three characters of the letters in lower case, with one space between words.

    >>> runs("Да, я")
    [' да', 'да ', 'а я', ' я ']
    """
    letters = f" {_GAP.sub(' ', text.lower()).strip()} "
    return [letters[start : start + 3] for start in range(len(letters) - 2)]
