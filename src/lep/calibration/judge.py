"""A model that grades answers from 1 to 5: in memory, or behind an OpenAI-compatible server."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import regex
import requests

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, LepError, redacted
from lep.inference.generate import answers
from lep.inference.models import load_writer
from lep.progress import progress
from lep.web import retrying, whole_reply

PROMPT = """\
Grade the last answer of this conversation from 1 to 5, by its language and by whether it answers \
what was asked.
5: faultless language, and a full answer to the question
4: small slips that do not disturb, and an answer to the question
3: clear mistakes in the language, or only part of an answer
2: hard to read, or hardly about the question
1: not readable, in the wrong language, or not about the question
Reply with the digit alone.

{conversation}

Grade:"""
REMINDER = "Reply with one digit from 1 to 5 and nothing else."
REPLY_TOKENS, BATCH = 16, 16
CONCURRENT, SECONDS, TRIES = 8, 120, 4
MOST_UNGRADED = 10  # in a row
BAD_REQUEST, RETRIED = 400, (429, 500, 502, 503, 504)
_THOUGHT = regex.compile(r"<think>.*?(</think>|$)", regex.DOTALL)
_SCALE = regex.compile(
    r"(?<!\d)1\s*(?:-|–|to|\.\.\.?|до)\s*5(?!\d)|/\s*5(?!\d)|\bout of\s*5(?!\d)", regex.IGNORECASE
)
_GRADE = regex.compile(r"(?<![\d.,])[1-5](?![\d]|[.,]\d)")

Conversation = list[dict[str, Any]]


class NoReply(str):
    """What a server sent instead of a reply: never a grade, whatever digits it holds."""


def read_grade(reply: str) -> int | None:
    """The grade in a reply, or None where there is none, or several.

    >>> good = ("4", "Grade: 5.", "3/5", "<think>2?</think> 4", "On a scale of 1 to 5, 4.")
    >>> [read_grade(reply) for reply in good]
    [4, 5, 3, 4, 4]
    >>> [read_grade(reply) for reply in ("good", "10", "4.5", "3 or 4", "1-5")]
    [None, None, None, None, None]
    """
    if isinstance(reply, NoReply):
        return None
    grades = set(_GRADE.findall(_SCALE.sub(" ", _THOUGHT.sub(" ", reply))))
    return int(grades.pop()) if len(grades) == 1 else None


class Judge(Protocol):
    """A model that replies to conversations."""

    name: str

    def replies(self, conversations: Sequence[Conversation]) -> list[str]: ...


def load_judge(source: str) -> Judge:
    """A judge by its name: `MODEL@URL` behind a server, else a local folder or hub id."""
    name, at, url = source.partition("@http")
    return ServedModel(name, f"http{url}") if at else LocalModel(name)


def grades(
    judge: Judge, answered: Sequence[tuple[Conversation, str]], saved_in: str
) -> Iterator[int | None]:
    """The grade of each (conversation, answer), in order; None after two replies without one.

    Raises `LepError` when the judge does not reply, or gives no grade ten times in a row. The
    message names the file `saved_in` of the answers and grades so far.
    """
    saved, ungraded = f"answers and grades so far are kept in {saved_in}", 0
    for start in progress(range(0, len(answered), BATCH), "batches of grades"):
        prompts = [_prompt(*pair) for pair in answered[start : start + BATCH]]
        for reply in _replies(judge, prompts, saved):
            grade = read_grade(reply)
            ungraded = ungraded + 1 if grade is None else 0
            if ungraded >= MOST_UNGRADED:
                raise LepError(
                    f"the judge {judge.name} gives no grades: asked for a digit from 1 to 5 it "
                    f"said {redacted(reply)[:60]!r}; {saved}: give another judge, or none"
                )
            yield grade


def _replies(judge: Judge, prompts: list[Conversation], saved: str) -> list[str]:
    """A reply to each prompt: the second one where the first has no grade."""
    try:
        replies = judge.replies(prompts)
        again = [i for i, reply in enumerate(replies) if read_grade(reply) is None]
        second = [_again(prompts[i], replies[i]) for i in again]
        for i, reply in zip(again, judge.replies(second), strict=True):
            replies[i] = reply
        return replies
    except requests.RequestException as error:
        reason = f"does not answer after {TRIES} tries ({redacted(str(error))})"
        advice = "give the same command when it is back"
        if isinstance(error, requests.HTTPError) and error.response is not None:
            reply = redacted(error.response.text)[:200]
            reason = f"refuses ({redacted(str(error))}: {reply!r})"
            advice = "correct its name, URL or key, and give the same command"
        raise LepError(f"the judge {judge.name} {reason}; {saved}: {advice}") from error


def _again(prompt: Conversation, reply: str) -> Conversation:
    """The second request: with a reminder after a reply, else the same."""
    reminder = {"role": "user", "content": REMINDER}
    return prompt if isinstance(reply, NoReply) else [*prompt, _assistant(reply), reminder]


def _prompt(conversation: Conversation, answer: str) -> Conversation:
    messages = [*conversation, _assistant(answer)]
    text = "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
    return [{"role": "user", "content": PROMPT.format(conversation=text)}]


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


class LocalModel:
    """An instruct model in memory with greedy replies."""

    def __init__(self, source: str) -> None:
        self.name = source
        if not Checkpoint(source).check().tokenizer.chat_template:
            advice = "so it cannot judge: give an instruct model"
            raise CheckpointError(f"{source} has no chat template, {advice}")
        self.model, self.checkpoint = load_writer(source)

    def replies(self, conversations: Sequence[Conversation]) -> list[str]:
        sizes: Any = {"max_new_tokens": REPLY_TOKENS, "batch_size": BATCH}
        tokenizer = self.checkpoint.tokenizer
        batches = answers(
            self.model, tokenizer, conversations, **sizes, label="grades", leave_out=True
        )
        replies = {answer.index: answer.text for batch in batches for answer in batch}
        return [replies[index] for index in range(len(conversations))]


class ServedModel:
    """A model behind `/chat/completions`; the key is in OPENAI_API_KEY, if there is one."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, f"{url.rstrip('/')}/chat/completions"
        self.session = retrying(TRIES, RETRIED, CONCURRENT)
        if key := os.environ.get("OPENAI_API_KEY"):
            self.session.headers["Authorization"] = f"Bearer {key}"

    def replies(self, conversations: Sequence[Conversation]) -> list[str]:
        with ThreadPoolExecutor(CONCURRENT) as pool:
            return list(pool.map(self._reply, conversations))

    def _reply(self, conversation: Conversation) -> str:
        request: Any = {
            "model": self.name,
            "messages": conversation,
            "temperature": 0,
            "max_tokens": 64 * REPLY_TOKENS,  # some models think first
        }
        response = whole_reply(self.session, "POST", self.url, SECONDS, json=request)
        if response.status_code == BAD_REQUEST:  # usually too long: no grade for this answer
            return NoReply(response.text)
        response.raise_for_status()
        return _content(response.text)


def _content(body: str) -> str:
    """The text of a well-formed completion; anything else is no reply."""
    try:
        match json.loads(body):
            case {"choices": [{"message": {"content": str() as text}}, *_]}:
                return text
            case {"choices": [{"message": {"content": None}}, *_]}:
                return ""
    except (ValueError, RecursionError):
        pass
    return NoReply(body)
