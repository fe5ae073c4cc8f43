"""Rules that decide which of a model's own answers are worth learning from."""

from collections import Counter

import regex

from lep.corpus.language import dominant_script, script_share
from lep.inference.generate import Answer

SMALLEST_SHARE = 0.5  # of the letters, in the script of the question
REPEATED_WORDS, REPEATED_SHARE = 4, 0.25  # a run of four words may not fill a quarter of an answer
LEAST_CHARACTERS = 10  # of an answer whose mean likelihood says something
GREETING_WORDS = 2  # that may come back once
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_QUESTION = regex.compile(r"[?？؟;՞፧]\s*$")


def reason_to_drop(question: str, answer: Answer) -> str | None:
    """Why an answer is not used, or None.

    `too long` (the prompt, for the context), `empty`, `cut off`, `wrong language`, `echo` (the
    question and nothing else), `repeating`, `word salad` (more surprising to the model than what
    people ask it).
    """
    if answer.too_long:
        return "too long"
    text = answer.text.strip()
    if not text:
        return "empty"
    if not answer.finished:
        return "cut off"
    script = dominant_script(question)
    if script and dominant_script(text) and script_share(text, script) < SMALLEST_SHARE:
        return "wrong language"
    if echoes(question, text):
        return "echo"
    if repeats(text) and not repeats(question):
        return "repeating"
    surprising = answer.surprise is not None and answer.surprise > 1
    return "word salad" if surprising and len(text) >= LEAST_CHARACTERS else None


def echoes(question: str, text: str) -> bool:
    """Whether a text is the whole question, perhaps several times, but for case and punctuation.

    A greeting may come back, and the text of a question that asks to repeat it.

    >>> echoes("Where is the river?", "where is the river"), echoes("Hello!", "Hello!")
    (True, False)
    >>> echoes("Repeat: a dog and a cat", "a dog and a cat")
    False
    """
    question_words, answer_words = (_WORD.findall(each.casefold()) for each in (question, text))
    times = len(answer_words) // len(question_words) if question_words else 0
    greeting = (
        times == 1 and len(question_words) <= GREETING_WORDS and not _QUESTION.search(question)
    )
    return times > 0 and answer_words == question_words * times and not greeting


def repeats(text: str) -> bool:
    """Whether a run of four words occurs three times and fills over a quarter of the text."""
    words = text.split()
    starts = range(len(words) - REPEATED_WORDS + 1)
    runs = Counter(tuple(words[i : i + REPEATED_WORDS]) for i in starts)
    times = max(runs.values(), default=0)
    return times >= 3 and times * REPEATED_WORDS > REPEATED_SHARE * len(words)
