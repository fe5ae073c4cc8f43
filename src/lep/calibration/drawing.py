"""Tasks over words and sentences of a text, drawn so that each new token comes equally often."""

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lep.checkpoint.reader import Checkpoint
from lep.corpus.copies import runs_of
from lep.corpus.language import SCRIPTS, is_unspaced
from lep.corpus.tasks import (
    COPIES,
    PROMPTS,
    SENTENCE_CHARACTERS,
    TASKS,
    WORD,
    TaskItem,
    sentences,
    usable,
)

# How often each task is drawn. Answers of one word teach few tokens, and teach where to stop; three
# times as many of them cost more copies than they gained first and last words (docs/log.md).
WEIGHTS = {
    "copy_sentence": 3,
    "copy_paragraph": 1,
    "first_word": 2,
    "last_word": 2,
    "word_after": 2,
}
WORDS = {"copy_paragraph": (12, 24)}  # of a text, at least and at most
FEW_WORDS = (4, 10)  # of other tasks
READ_CHARACTERS = 20_000_000  # of text that words are counted in
MOST_WORDS, LONGEST_WORD = 200_000, 30
WORDS_OF_TOKEN = 20  # the most frequent ones
SENTENCE_TEXT = 4_000_000  # characters of text that sentences are taken from
# Share of the tasks that are about a real sentence, as it comes: they teach where answers end,
# which words without sense do not.
NATURAL = 0.4
FIRST_WORDS = 100  # of which one without spaces tells the language
# What stands between words drawn together and after them, by script, where it is not " " and ".".
MARKS = {
    "Armenian": (" ", "։"),
    "Bengali": (" ", "।"),
    "Devanagari": (" ", "।"),
    "Ethiopic": (" ", "።"),
    "Han": ("，", "。"),
    "Japanese": ("、", "。"),
    "Khmer": (" ", "។"),
    "Lao": (" ", ""),
    "Myanmar": (" ", "။"),
    "Thai": (" ", ""),
}
USUAL_MARKS = (" ", ".")


@dataclass(frozen=True)
class Words:
    """Words of a text with their new tokens, and frequent words by token.

    Where words have no spaces between them, a word is what stands between two marks.
    """

    tokens: dict[str, list[int]]  # new tokens of each word
    of_token: dict[int, list[str]]
    frequent: list[str]
    weights: list[int]  # of the frequent words
    sentences: list[str]

    @classmethod
    def count(
        cls,
        checkpoint: Checkpoint,
        language: str,
        texts: Iterable[str],
        new: set[int],
        heldout: set[int] = frozenset(),  # type: ignore[assignment]
    ) -> "Words":
        """Count the words, and tokenise each as it is at the beginning and inside of a sentence.

        Sentences that share a run of words with `heldout` are left out (`copies.runs_of`).
        """
        counts: Counter[str] = Counter()
        natural: list[str] = []
        characters = 0
        for text in texts:
            if characters < SENTENCE_TEXT:
                natural += _sentences(text, language, heldout)
            counts.update(w for w in WORD.findall(text) if len(w) <= LONGEST_WORD)
            characters += len(text)
            if characters > READ_CHARACTERS:
                break
        words = [word for word, _ in counts.most_common(MOST_WORDS)]
        if not words:
            return cls({}, {}, [], [], natural)
        gap, _ = MARKS.get(SCRIPTS.get(language, ""), USUAL_MARKS)
        twice = [f"{word}{gap}{word}" for word in words]
        encoded = checkpoint.tokenizer(twice, add_special_tokens=False)["input_ids"]
        tokens = {w: [i for i in ids if i in new] for w, ids in zip(words, encoded, strict=True)}
        of_token: dict[int, list[str]] = defaultdict(list)
        for word, ids in tokens.items():  # the most frequent ones first
            for index in set(ids):
                if len(of_token[index]) < WORDS_OF_TOKEN:
                    of_token[index].append(word)
        return cls(tokens, dict(of_token), words, [counts[word] for word in words], natural)


def _sentences(text: str, language: str, heldout: set[int]) -> Iterator[str]:
    """The usable sentences of a text that share no run of words with `heldout`."""
    for sentence in sentences(text):
        if usable(sentence, language, SENTENCE_CHARACTERS) and (
            not heldout or heldout.isdisjoint(runs_of(sentence))
        ):
            yield sentence


class Drawing:
    """Tasks without end; each is about the tokens that came least often so far."""

    def __init__(self, words: Words, language: str, seed: int) -> None:
        self.words, self.language = words, language
        self.rng = random.Random(seed)
        self.gap, self.stop = MARKS.get(SCRIPTS.get(language, ""), USUAL_MARKS)
        has_words = not any(map(is_unspaced, words.frequent[:FIRST_WORDS]))
        self.weights = {t: float(w) for t, w in WEIGHTS.items() if has_words or t in COPIES}
        self.tried, self.solved = Counter[str](), Counter[str]()
        self.counts: Counter[int] = Counter()
        self.heap = [(0, self.rng.random(), index) for index in sorted(words.of_token)]
        heapq.heapify(self.heap)

    def __iter__(self) -> Iterator[TaskItem]:
        wording = PROMPTS.get(self.language, PROMPTS["en"])
        while True:
            task = self.rng.choices([*self.weights], [*self.weights.values()])[0]
            count = self.rng.randint(*WORDS.get(task, FEW_WORDS))
            natural = self.words.sentences and task not in WORDS
            if natural and self.rng.random() < NATURAL:
                text = self.rng.choice(self.words.sentences)
                pair = TASKS[task](text, self.rng)
                if pair is None:
                    continue
                named, answer = pair
                self._count(WORD.findall(answer))
            elif task.startswith("copy"):
                text = answer = self._sentence(self._rare(count))
                named = ""
            else:
                (answer,) = self._rare(1)
                text, named = self._random_sentence(task, answer, count)
            question = wording[task].format(text=text, word=named)
            yield TaskItem(task, self.language, text, question, answer)

    def _random_sentence(self, task: str, answer: str, count: int) -> tuple[str, str]:
        """A sentence of frequent words with the answer among them, and the word before it."""
        others = self.rng.choices(self.words.frequent, self.words.weights, k=count - 1)
        others = list(dict.fromkeys(word for word in others if word != answer)) or ["—"]
        ends = {"first_word": 0, "last_word": len(others)}
        position = ends.get(task, self.rng.randint(1, len(others)))
        words = [*others[:position], answer, *others[position:]]
        text = self._sentence(words) if position else " ".join(words) + self.stop
        return text, text.split()[position - 1] if task == "word_after" else ""

    def _sentence(self, words: Sequence[str]) -> str:
        text = self.gap.join(words)
        return f"{text[:1].upper()}{text[1:]}{self.stop}"

    def _rare(self, count: int) -> list[str]:
        """Words, each with the token that came least often."""
        chosen = []
        for _ in range(count):
            while True:  # entries of the heap may be older than the counts
                times, order, index = heapq.heappop(self.heap)
                if times == self.counts[index]:
                    break
                heapq.heappush(self.heap, (self.counts[index], order, index))
            word = self.rng.choice(self.words.of_token[index])
            chosen.append(word)
            self._count([word])
            heapq.heappush(self.heap, (self.counts[index], self.rng.random(), index))
        return chosen

    def _count(self, words: Iterable[str]) -> None:
        for word in words:
            self.counts.update(set(self.words.tokens.get(word, ())))

    def learn(self, items: Sequence[TaskItem], right: Sequence[int]) -> None:
        """Draw fewer of the tasks that the original model cannot do: by its share of right ones."""
        self.tried.update(item.task for item in items)
        self.solved.update(item.task for item, done in zip(items, right, strict=True) if done)
        if self.solved:  # else nothing says which task would be better
            for task in self.weights:
                share = (self.solved[task] + 1) / (self.tried[task] + 2)
                self.weights[task] = WEIGHTS[task] * share

    def least(self) -> int:
        """How often the token that came least often was drawn."""
        return min(self.counts[index] for index in self.words.of_token)
