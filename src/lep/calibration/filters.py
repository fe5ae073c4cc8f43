"""Rules that decide which of a model's own answers are worth learning from."""

from collections import Counter

from lep.corpus.language import dominant_script, script_share
from lep.inference.generate import Answer

SMALLEST_SHARE = 0.5  # of the letters, in the script of the question
REPEATED_WORDS, REPEATED_SHARE = (
    4,
    0.25,
)  # a run of four words may not make up a quarter of an answer


def reason_to_drop(question: str, answer: Answer) -> str | None:
    """Why an answer is not used, or None: `empty`, `cut off`, `wrong language`, `repeating`."""
    text = answer.text.strip()
    if not text:
        return "empty"
    if not answer.finished:
        return "cut off"
    script = dominant_script(question)
    if (
        script is not None
        and dominant_script(text) is not None
        and script_share(text, script) < SMALLEST_SHARE
    ):
        return "wrong language"
    if repeats(text) and not repeats(question):
        return "repeating"
    return None


def repeats(text: str) -> bool:
    """Whether one run of four words makes up more than a quarter of the text, and occurs at least three times."""
    words = text.split()
    runs = Counter(
        tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)
    )
    if not runs:
        return False
    times = runs.most_common(1)[0][1]
    return times >= 3 and times * REPEATED_WORDS > REPEATED_SHARE * len(words)
