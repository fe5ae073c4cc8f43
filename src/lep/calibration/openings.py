"""First words of sentences, with which a model begins prompts in their language."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, cycle, islice

import regex

from lep.calibration.filters import QUESTION, in_other_script
from lep.corpus.files import Paths
from lep.corpus.language import SCRIPTS, UNSPACED, dominant_script
from lep.corpus.read import stream_texts
from lep.corpus.tasks import SENTENCE_CHARACTERS, sentences
from lep.errors import CorpusError

OPENING_WORDS = 3  # at most
MOST_CHARACTERS = 5_000_000  # of text in which questions are looked for
# A word with its punctuation; in scripts without spaces one character.
_WORD = rf"(?:[{UNSPACED}]\p{{M}}*+|[^\s{UNSPACED}]++)"
_OPENINGS = [
    regex.compile(rf"(?=\p{{L}}){_WORD}(?:\s*+{_WORD}){{0,{more}}}+")
    for more in range(OPENING_WORDS)
]
_PUNCTUATION = regex.compile(r"[^\p{L}\p{M}\p{N}]+$")


@dataclass(frozen=True)
class Sentences:
    """Questions and other sentences of a text in one script."""

    language: str
    script: str
    questions: list[str]
    others: list[str]

    def sentences(self, most: int) -> list[str]:
        """Some of the sentences, at most so many."""
        return [*islice(chain(self.questions, self.others), most)]

    @classmethod
    def of(cls, language: str, paths: Paths, enough: int) -> "Sentences":
        """Read `paths` up to `enough` questions, or `MOST_CHARACTERS`.

        The script is that of the language, or for codes that are not known that of most sentences.
        Raises `CorpusError` for missing paths, and a corpus without any text.
        """
        wanted, characters = SCRIPTS.get(language), 0
        scripts: Counter[str] = Counter()
        pool: dict[tuple[str, bool], dict[str, None]] = {}  # by script, questions apart
        for text in stream_texts(paths):
            for sentence in sentences(text):
                if script := dominant_script(sentence):
                    key = script, QUESTION.search(sentence) is not None
                    pool.setdefault(key, {})[sentence] = None
                    scripts[script] += 1
            characters += len(text)
            first = wanted or max(scripts, key=scripts.__getitem__, default="")
            if characters > MOST_CHARACTERS or len(pool.get((first, True), ())) >= enough:
                break
        questions, others = (list(pool.get((first, is_one), ())) for is_one in (True, False))
        return cls(language, first, questions, others)

    def openings(self, count: int, seed: int) -> list[str]:
        """So many openings of one to three words.

        Those of questions come first, then those of other sentences, each once; then again. Raises
        `CorpusError` where there is none.
        """
        rng = random.Random(f"{seed}/{self.language}")
        texts = [*self._openings(self.questions, rng), *self._openings(self.others, rng)]
        if not texts:
            kind = f"in {self.script} script" if self.script else "in a script that lep knows"
            raise CorpusError(
                f"the {self.language} text has no sentence {kind}, and a prompt begins with words "
                f"of one: give text in the language '{self.language}', or --prompts FILE"
            )
        return list(islice(cycle(dict.fromkeys(texts)), count))

    def _openings(self, texts: list[str], rng: random.Random) -> Iterator[str]:
        """Openings of all texts in a random order, then others of all, in another order."""
        sizes = [rng.sample(range(1, OPENING_WORDS + 1), OPENING_WORDS) for _ in texts]
        for turn in range(OPENING_WORDS):
            for i in rng.sample(range(len(texts)), len(texts)):
                opening = first_words(texts[i], sizes[i][turn])
                if self.script and not in_other_script(opening, self.script):
                    yield opening

    def usual(self, count: int, seed: int) -> list[str]:
        """So many sentences of usual length, or of any where there are none, drawn at random."""
        shortest, longest = SENTENCE_CHARACTERS
        texts = [*self.questions, *self.others]
        texts = [text for text in texts if shortest <= len(text) <= longest] or texts
        return random.Random(f"{seed}/{self.language}").sample(texts, min(count, len(texts)))


def first_words(sentence: str, count: int) -> str:
    """The first words of a sentence as it spells them, without what is before and after them.

    >>> first_words("— Скажите, пожалуйста, где река?", 2), first_words("你好吗？", 2)
    ('Скажите, пожалуйста', '你好')
    """
    words = _OPENINGS[count - 1].search(sentence)
    return _PUNCTUATION.sub("", words[0]) if words else ""
