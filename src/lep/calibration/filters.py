"""Rules that decide which of a model's own answers are worth learning from."""

from collections import Counter

from lep.corpus.language import dominant_script, script_share
from lep.inference.generate import Answer

SMALLEST_SHARE = 0.5  # of the letters, in the script of the question
REPEATED_WORDS, REPEATED_SHARE = 4, 0.25  # a run of four words may not fill a quarter of an answer


def reason_to_drop(question: str, answer: Answer) -> str | None:
    """Why an answer is not used, or None.

    `too long` (the prompt, for the context), `empty`, `cut off`, `wrong language`, `repeating`.
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
    return "repeating" if repeats(text) and not repeats(question) else None


def repeats(text: str) -> bool:
    """Whether a run of four words occurs three times and fills over a quarter of the text."""
    words = text.split()
    starts = range(len(words) - REPEATED_WORDS + 1)
    runs = Counter(tuple(words[i : i + REPEATED_WORDS]) for i in starts)
    times = max(runs.values(), default=0)
    return times >= 3 and times * REPEATED_WORDS > REPEATED_SHARE * len(words)
