"""A model that grades answers from 1 to 5: in memory, or behind an OpenAI-compatible server."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import regex
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, LepError
from lep.inference.generate import answers
from lep.inference.models import load_model

PROMPT = """\
Grade the last answer of this conversation from 1 to 5, by its language and by whether it answers what was asked.
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
MOST_UNGRADED = 10  # one after the other
BAD_REQUEST = 400
_THOUGHT = regex.compile(r"<think>.*?(</think>|$)", regex.DOTALL)
_SCALE = regex.compile(
    r"(?<!\d)1\s*(?:-|–|to|\.\.\.?|до)\s*5(?!\d)|/\s*5(?!\d)|\bout of\s*5(?!\d)", regex.IGNORECASE
)
_GRADE = regex.compile(r"(?<![\d.,])[1-5](?![\d]|[.,]\d)")

Conversation = list[dict[str, Any]]


def read_grade(reply: str) -> int | None:
    """The grade that a reply gives, or None where it gives none, or several.

    >>> [read_grade(reply) for reply in ("4", "Grade: 5.", "3/5", "<think>2?</think> 4", "On a scale of 1 to 5, 4.")]
    [4, 5, 3, 4, 4]
    >>> [read_grade(reply) for reply in ("good", "10", "4.5", "3 or 4", "1-5")]
    [None, None, None, None, None]
    """
    found = set(_GRADE.findall(_SCALE.sub(" ", _THOUGHT.sub(" ", reply))))
    return int(found.pop()) if len(found) == 1 else None


class Model(Protocol):
    """Something that replies to conversations."""

    name: str

    def replies(self, conversations: Sequence[Conversation]) -> list[str]: ...


class Judge:
    """Grades by a model's replies. A reply without a grade is asked for once more."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @staticmethod
    def _kept(kept_in: str) -> str:
        return f"answers and grades so far are kept in {kept_in}"

    def grades(
        self, answered: Sequence[tuple[Conversation, str]], kept_in: str
    ) -> Iterator[int | None]:
        """The grade of each (conversation, answer), in order; None where two replies held none.

        Raises `LepError` when ten answers in a row get no grade; `kept_in` is where the user finds those that were
        given.
        """
        ungraded = 0
        for start in range(0, len(answered), BATCH):
            asked = [_request(*pair) for pair in answered[start : start + BATCH]]
            try:
                replies = self.model.replies(asked)
                found = [read_grade(reply) for reply in replies]
                again = [i for i, grade in enumerate(found) if grade is None]
                reminded = [
                    [*asked[i], _said(replies[i]), {"role": "user", "content": REMINDER}]
                    for i in again
                ]
                for i, reply in zip(
                    again, self.model.replies(reminded) if again else [], strict=True
                ):
                    replies[i], found[i] = reply, read_grade(reply)
            except requests.HTTPError as error:
                said = error.response.text[:200] if error.response is not None else ""
                raise LepError(
                    f"the judge {self.model.name} refuses ({error}: {said!r}); "
                    f"{self._kept(kept_in)}: mend its name, URL or key, and give the same command"
                ) from error
            except requests.RequestException as error:
                raise LepError(
                    f"the judge {self.model.name} does not answer after {TRIES} tries ({error}); "
                    f"{self._kept(kept_in)}: give the same command when it is there again"
                ) from error
            for reply, grade in zip(replies, found, strict=True):
                ungraded = ungraded + 1 if grade is None else 0
                if ungraded >= MOST_UNGRADED:
                    raise LepError(
                        f"the judge {self.model.name} gives no grades: asked for a digit from 1 to 5 it said "
                        f"{reply[:60]!r}; {self._kept(kept_in)}: give another judge, or none"
                    )
                yield grade


def _request(conversation: Conversation, answer: str) -> Conversation:
    lines = [
        f"{message['role']}: {message['content']}" for message in [*conversation, _said(answer)]
    ]
    return [{"role": "user", "content": PROMPT.format(conversation="\n\n".join(lines))}]


def _said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def make_judge(source: str) -> Judge:
    """A judge by its name: `MODEL@URL` behind a server, else a local folder or hub id."""
    name, at, url = source.partition("@http")
    return Judge(ServedModel(name, f"http{url}") if at else LocalModel(name))


class LocalModel:
    """An instruct model in memory; its replies are greedy."""

    def __init__(self, source: str) -> None:
        self.name = source
        if not Checkpoint(source).check().tokenizer.chat_template:
            raise CheckpointError(
                f"{source} has no chat template, so it cannot judge: give an instruct model"
            )
        self.model, self.checkpoint = load_model(source)

    def replies(self, conversations: Sequence[Conversation]) -> list[str]:
        found = {
            answer.index: answer.text
            for batch in answers(
                self.model,
                self.checkpoint.tokenizer,
                conversations,
                max_new_tokens=REPLY_TOKENS,
                batch_size=BATCH,
                label="grades",
            )
            for answer in batch
        }
        return [found[i] for i in range(len(conversations))]


class ServedModel:
    """A model behind `/chat/completions`; the key is read from OPENAI_API_KEY, where there is one."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, url.rstrip("/")
        self.session = requests.Session()
        retry = Retry(
            total=TRIES - 1,
            backoff_factor=0.5,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=None,
        )
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=CONCURRENT))
        if key := os.environ.get("OPENAI_API_KEY"):
            self.session.headers["Authorization"] = f"Bearer {key}"

    def replies(self, conversations: Sequence[Conversation]) -> list[str]:
        with ThreadPoolExecutor(CONCURRENT) as pool:
            return list(pool.map(self._reply, conversations))

    def _reply(self, conversation: Conversation) -> str:
        # room for models that think before they reply
        asked: Any = {
            "model": self.name,
            "messages": conversation,
            "temperature": 0,
            "max_tokens": 64 * REPLY_TOKENS,
        }
        answer = self.session.post(f"{self.url}/chat/completions", json=asked, timeout=SECONDS)
        if (
            answer.status_code == BAD_REQUEST
        ):  # longer than its context, most of all: this answer gets no grade
            return answer.text
        answer.raise_for_status()
        try:
            return answer.json()["choices"][0]["message"]["content"] or ""
        except (ValueError, LookupError, TypeError):
            return answer.text  # no grade is read from it, unless it is one
