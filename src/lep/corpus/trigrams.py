"""Which of a few languages of one script a text is in, by the runs of three letters in it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import regex

from lep.corpus.language import SCRIPTS, dominant_script

LEAST_RUNS = 20  # in a text that is judged
LEAST_KNOWN = 2_000  # in the text of each language
MARGIN = 0.25  # nats a run by which another language must be likelier
_GAP = regex.compile(r"[^\p{L}\p{M}]+")


@dataclass(frozen=True)
class Trigrams:
    """Runs of three letters in text of several languages, counted (Cavnar & Trenkle 1994)."""

    counts: dict[str, Counter[str]]

    @classmethod
    def of(cls, texts: Mapping[str, Iterable[str]]) -> "Trigrams":
        """Languages with too little text are left out, and nothing is said of them."""
        counted = {
            language: Counter(run for text in every for run in runs(text))
            for language, every in texts.items()
        }
        return cls({code: count for code, count in counted.items() if count.total() >= LEAST_KNOWN})

    def excludes(self, text: str, language: str) -> bool:
        """Whether a text is surely in another of the languages."""
        found = runs(text)
        if language not in self.counts or len(found) < LEAST_RUNS:
            return False
        nats = {code: self._nats(found, code) for code in self.counts}
        return nats[language] - min(nats.values()) > MARGIN * len(found)

    def _nats(self, found: list[str], language: str) -> float:
        """Minus the logarithm of the likelihood, with one occurrence more for each run."""
        counts = self.counts[language]
        whole = counts.total() + len(set().union(*self.counts.values()))
        return -sum(math.log((counts[run] + 1) / whole) for run in found)


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
