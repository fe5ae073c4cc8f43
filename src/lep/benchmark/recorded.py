"""A model behind lm-evaluation-harness that keeps every answer on disk as it comes."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from aiohttp import ClientError, ClientResponseError
from lm_eval.api.model import LM, CacheHook
from lm_eval.models.api_models import TemplateAPI

from lep.durable import sync
from lep.errors import CorpusError, LepError, foreign, redacted
from lep.progress import Lines
from lep.publish import fingerprint

SPECIAL = 2  # tokens that a tokenizer may put around a text
CHUNK = 4_000  # requests in work at once
SYNC_SECONDS = 1  # between writing answers to the disk itself: some models give thousands a second
ODD_REPLIES = (LookupError, TypeError, ValueError, AttributeError, RecursionError)
REFUSALS = (requests.HTTPError, ClientResponseError, *ODD_REPLIES)
BREAKDOWNS = (requests.RequestException, ClientError, TimeoutError)


class Output(str):
    """A generated text that knows how many tokens it was written in."""

    tokens: int | None

    def __new__(cls, text: str, tokens: int | None) -> "Output":
        output = super().__new__(cls, text)
        output.tokens = tokens
        return output


class Recorded(LM):
    """A model whose answers are kept in a file, so that an interrupted run can continue.

    A request longer than the context gets no answer; `too_long` holds its key.
    """

    def __init__(self, model: Any, length: Callable[[Any], int], context: int, file: Path) -> None:
        """`length` counts the tokens of a text or conversation."""
        super().__init__()
        self.model, self.length = model, length
        self.context = min(context, getattr(model, "context", context))
        self.spare = getattr(model, "spare", 1)
        self.too_long: set[str] = set()
        self.label, self.progress = f"answers to {file.stem}", Lines("", 0)
        self.known: dict[str, Any] = {}
        if file.exists():
            whole, end, _ = file.read_bytes().rpartition(b"\n")  # a kill may have cut the last line
            with foreign(f"{file} holds no answers", "delete it", CorpusError):
                self.known = dict(map(json.loads, whole.splitlines()))
            os.truncate(file, len(whole + end))
        self.file, self.synced = file.open("a", encoding="utf-8"), time.monotonic()
        model.set_cache_hook(self)

    def add_partial(self, method: str, request: tuple[Any, ...], answer: Any) -> None:
        """Keep an answer as it comes: called by lm-evaluation-harness."""
        written = method == "generate_until"
        kept = [answer, self.model.written(answer)] if written else answer
        self._keep(request_key(method, request), kept)

    def _keep(self, key: str, answer: Any) -> None:
        self.known[key] = answer
        self.progress.one_more()
        self.file.write(json.dumps([key, answer], ensure_ascii=False) + "\n")
        self.file.flush()
        if time.monotonic() > self.synced + SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        sync(self.file)
        self.synced = time.monotonic()

    def close(self) -> None:
        self.model.set_cache_hook(CacheHook(None))
        self._sync()
        self.file.close()

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        answers = self._answers("loglikelihood", requests, self._scored_tokens)
        return [(float("-inf"), False) if a is None else (a[0], a[1]) for a in answers]

    def generate_until(self, requests: list[Any]) -> list[str]:
        answers = self._answers("generate_until", requests, self._written_tokens)
        return [Output(*(answer or ("", 0))) for answer in answers]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError

    def _scored_tokens(self, arguments: tuple[Any, ...]) -> int:
        """Tokens that scoring a text takes of the context."""
        return self._tokens(arguments[0] + arguments[1], self.context + self.spare) - self.spare

    def _written_tokens(self, arguments: tuple[Any, ...]) -> int:
        """Tokens that a prompt and its longest answer take of the context."""
        prompt, room = arguments[0], arguments[1]["max_gen_toks"] - min(0, self.spare)
        if isinstance(prompt, str):
            return self._tokens(prompt, self.context - room) + room
        return self.length(json.loads(prompt.prompt)) + room  # the server applies the template

    def _tokens(self, text: str, limit: int) -> int:
        """At most this many tokens of a text; a text of few bytes is not tokenised."""
        most = len(text.encode()) + SPECIAL
        return most if most <= limit else self.length(text) + 1

    def _answers(
        self, method: str, requests: list[Any], length: Callable[[tuple[Any, ...]], int]
    ) -> list[Any]:
        """The answer to each request, None where it is too long; only new requests are asked."""
        keyed = [(request_key(method, request.args), request) for request in requests]
        self.too_long |= {key for key, request in keyed if length(request.args) > self.context}
        skipped = self.too_long | self.known.keys()
        todo = [(key, request) for key, request in keyed if key not in skipped]
        self.progress = Lines(self.label, len(todo))
        for start in range(0, len(todo), CHUNK):
            self._ask(method, todo, todo[start : start + CHUNK])
        return [self.known.get(key) for key, _ in keyed]

    def _ask(self, method: str, todo: list[tuple[str, Any]], chunk: list[tuple[str, Any]]) -> None:
        try:
            answers = getattr(self.model, method)([request for _, request in chunk])
        except REFUSALS as error:
            if not isinstance(self.model, TemplateAPI):
                raise
            raise LepError(
                f"the server refuses a request ({type(error).__name__}: {redacted(str(error))}): "
                "it must serve this model, and give prompt log-probabilities (echo with logprobs) "
                "for choices"
            ) from error
        except BREAKDOWNS as error:
            done = f"{sum(key in self.known for key, _ in todo):,} of {len(todo):,} requests"
            reason = redacted(str(error)) or type(error).__name__
            raise LepError(
                f"the server stopped answering after {done} ({reason}): "
                "start it again and give the same command, which goes on from there"
            ) from error
        for (key, _), answer in zip(chunk, answers, strict=True):
            if key not in self.known:  # the model did not call `add_partial`
                self._keep(key, [answer, None] if method == "generate_until" else answer)

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> Any:
        return self.model.apply_chat_template(chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        return self.model.tokenizer_name


def request_key(method: str, arguments: tuple[Any, ...]) -> str:
    """The same string for the same request in every run."""
    parts = (each if isinstance(each, (str, dict)) else each.prompt for each in arguments)
    return fingerprint([method, *parts])
