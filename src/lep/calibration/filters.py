"""Rules that decide which of a model's own answers and prompts are worth learning from."""

from collections import Counter

import regex

from lep.calibration.drafts import Draft
from lep.corpus.language import UNSPACED, dominant_script, is_unspaced, script_share
from lep.inference.generate import Answer

SMALLEST_SHARE = 0.5  # of the letters, in the script of the question
REPEATED_WORDS, REPEATED_SHARE = 4, 0.25  # a run of four words may not fill a quarter of an answer
REPEATED_CHARACTERS = 8  # of scripts without spaces between words
LOOP = 16  # characters of a run that may come again
LEAST_CHARACTERS = 10  # of an answer whose mean likelihood says something
WORDS_BEYOND = 2  # of a draft, after its opening
WRONG_LANGUAGE = "wrong language"
GREETING_WORDS = 2  # that may come back once
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_DIGITS = regex.compile(r"\p{Nd}+")
_CHARACTER = rf"[{UNSPACED}]\p{{M}}*"
_COUNTED = regex.compile(rf"{_CHARACTER}|(?:(?![{UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}])+")
_STUTTER = regex.compile(r"(?=\p{L})(.{1,20}?)\1{3,}", regex.DOTALL)
_NO_TEXT = regex.compile(r"[\p{Cc}--[\n\t\r]]|\ufffd", regex.V1)
QUESTION = regex.compile(r"(?:[?？؟՞፧]|(?<=\p{Greek});)[»\"”’)」』]*\s*$")


def reason_to_drop(question: str, answer: Answer, script: str | None = None) -> str | None:
    """Why an answer is not used, or None. `script` is the answer's, if it is not the question's.

    `too long` (the prompt, for the context), `empty`, `wrong language`, `echo` (the question and
    nothing else), `repeating`, `word salad` (more surprising to the model than what people ask it).
    An answer that the length limit cut off is kept, unless most of it repeats itself.
    """
    if answer.too_long:
        return "too long"
    text = answer.text.strip()
    if not text:
        return "empty"
    if in_other_script(text, script or dominant_script(question)):
        return WRONG_LANGUAGE
    if echoes(question, text):
        return "echo"
    if (repeats(text) and not repeats(question)) or (not answer.finished and goes_round(text)):
        return "repeating"
    return "word salad" if is_salad(text, answer.surprise) else None


def reason_to_drop_draft(draft: Draft, script: str) -> str | None:
    """Why a model's draft of a prompt in a script is not used, or None.

    `cut off`, `no text` (tokens of the template, or broken characters), `too short` (hardly more
    than the opening), `wrong language`, `repeating`, `word salad` (more surprising to the model
    than what people write).
    """
    text = draft.text.strip()
    if not draft.finished:
        return "cut off"
    if draft.has_controls or _NO_TEXT.search(text):
        return "no text"
    if word_count(text) - word_count(draft.opening) < WORDS_BEYOND:
        return "too short"
    if in_other_script(text, script):
        return WRONG_LANGUAGE
    if repeats(text) or stutters(text):
        return "repeating"
    return "word salad" if is_salad(text, draft.surprise) else None


def in_other_script(text: str, script: str | None) -> bool:
    """Whether most letters of a text, if it has any, are not of a script, if that is known."""
    known = bool(script and dominant_script(text))
    return known and script_share(text, str(script)) < SMALLEST_SHARE


def is_salad(text: str, surprise: float | None) -> bool:
    """Whether a text is more surprising than the median; that of a few characters is chance."""
    return surprise is not None and surprise > 1 and len(text) >= LEAST_CHARACTERS


def word_count(text: str) -> int:
    """Number of words; in scripts without spaces each character counts as one.

    >>> word_count("Где же река?"), word_count("河在哪里？")
    (3, 4)
    """
    return len(_COUNTED.findall(text))


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
        times == 1 and len(question_words) <= GREETING_WORDS and not QUESTION.search(question)
    )
    return times > 0 and answer_words == question_words * times and not greeting


def repeats(text: str) -> bool:
    """Whether a run of four words occurs three times and fills over a quarter of the text.

    Without spaces between words it is a run of eight characters.

    >>> repeats("我喜欢吃苹果和香蕉。" * 5), repeats("人工智能很好。人工智能也难。人工智能是什么？")
    (True, False)
    """
    words, length = text.split(), REPEATED_WORDS
    if is_unspaced(text):
        words, length = _COUNTED.findall(text), REPEATED_CHARACTERS
    runs = Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
    times = max(runs.values(), default=0)
    return times >= 3 and times * length > REPEATED_SHARE * len(words)


def goes_round(text: str) -> bool:
    """Whether most runs of 16 characters in a text repeat earlier ones, numbers aside.

    >>> goes_round("".join(f"{i}. Новые программы и технологии. " for i in range(5)))
    True
    >>> goes_round("Река начинается в горах, течёт через лес и впадает в море.")
    False
    """
    plain = _DIGITS.sub("0", text)
    runs = [plain[i : i + LOOP] for i in range(len(plain) - LOOP + 1)]
    return 2 * len(set(runs)) < len(runs)


def stutters(text: str) -> bool:
    """Whether up to 20 characters, the same four times or more in a row, fill over a quarter.

    >>> stutters("Как ихихихихихихих"), stutters("Как сказать «ха-ха-ха-ха» по-французски?")
    (True, False)
    """
    runs = sum(len(match[0]) for match in _STUTTER.finditer(text))
    return runs > REPEATED_SHARE * len(text)
