"""A model behind lm-evaluation-harness that keeps every answer on disk as it comes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from aiohttp import ClientError, ClientResponseError
from lm_eval.api.model import LM, CacheHook
from lm_eval.models.api_models import TemplateAPI

from lep.errors import LepError
from lep.publish import fingerprint

SPECIAL = 2  # tokens that a tokenizer may put around a text
CHUNK = 4_000  # requests that are in work at once


class Said(str):
    """A generated text that knows how many tokens it was written in."""

    tokens: int | None

    def __new__(cls, text: str, tokens: int | None) -> "Said":
        said = super().__new__(cls, text)
        said.tokens = tokens
        return said


class Recorded(LM):
    """A model whose every answer is kept in a file as it comes, so that a run that was ended goes on where it was.

    A request longer than the context gets no answer: `too_long` holds its key.
    """

    def __init__(self, model: Any, length: Callable[[Any], int], context: int, place: Path) -> None:
        super().__init__()
        self.model, self.length = model, length
        self.context = min(context, getattr(model, "context", context))
        self.too_long: set[str] = set()
        self.known: dict[str, Any] = {}
        if place.exists():
            lines = place.read_bytes().split(b"\n")[:-1]  # a line that a kill cut short has no end
            self.known = dict(json.loads(line) for line in lines)
            place.write_bytes(b"".join(line + b"\n" for line in lines))
        self.file = place.open("a", encoding="utf-8")
        model.set_cache_hook(self)

    # what lm-evaluation-harness calls for each answer, as it is made
    def add_partial(self, kind: str, request: tuple[Any, ...], answer: Any) -> None:
        if kind == "generate_until":
            answer = [answer, self.model.written(answer)]
        self._keep(request_key(kind, request), answer)

    def _keep(self, key: str, answer: Any) -> None:
        self.known[key] = answer
        self.file.write(json.dumps([key, answer], ensure_ascii=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.model.set_cache_hook(CacheHook(None))
        self.file.close()

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        spare = getattr(self.model, "spare", 1)
        self._ask(
            "loglikelihood",
            requests,
            lambda args: self._tokens(args[0] + args[1], self.context + spare) - spare,
        )
        unknown = (float("-inf"), False)
        return [
            tuple(self.known.get(request_key("loglikelihood", r.args), unknown)) for r in requests
        ]  # type: ignore

    def generate_until(self, requests: list[Any]) -> list[str]:
        self._ask("generate_until", requests, lambda args: self._written(args))
        return [
            Said(*self.known.get(request_key("generate_until", r.args), ("", 0))) for r in requests
        ]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError

    def _written(self, arguments: tuple[Any, ...]) -> int:
        context, room = (
            arguments[0],
            arguments[1]["max_gen_toks"] - min(0, getattr(self.model, "spare", 0)),
        )
        if isinstance(context, str):
            return self._tokens(context, self.context - room) + room
        return (
            self.length(json.loads(context.prompt)) + room
        )  # a conversation, which the server will put into words

    def _tokens(self, text: str, limit: int) -> int:
        """Tokens of a text; a text of few bytes has no more tokens, and need not be cut into them to know."""
        most = len(text.encode()) + SPECIAL
        return most if most <= limit else self.length(text) + 1

    def _ask(self, kind: str, asked: list[Any], length: Callable[[Any], int]) -> None:
        todo = []
        for request in asked:
            key = request_key(kind, request.args)
            if length(request.args) > self.context:
                self.too_long.add(key)
            elif key not in self.known:
                todo.append(request)
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            try:
                answers = getattr(self.model, kind)(chunk)
            except (requests.HTTPError, ClientResponseError, KeyError, TypeError) as error:
                if not isinstance(self.model, TemplateAPI):
                    raise
                raise LepError(
                    f"the server refuses what is asked ({type(error).__name__}: {error}): it must serve this model, "
                    "and give prompt log-probabilities (echo with logprobs) where choices are scored"
                ) from error
            except (requests.RequestException, ClientError, TimeoutError) as error:
                done = sum(request_key(kind, r.args) in self.known for r in todo)
                raise LepError(
                    f"the server stopped answering after {done:,} of {len(todo):,} requests "
                    f"({error or type(error).__name__}): start it again and give the same command, which goes on "
                    "from there"
                ) from error
            for request, answer in zip(
                chunk, answers, strict=True
            ):  # what the hook was not called for
                key = request_key(kind, request.args)
                if key not in self.known:
                    self._keep(key, [answer, None] if kind == "generate_until" else answer)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> Any:
        return self.model.apply_chat_template(
            chat_history, add_generation_prompt=add_generation_prompt
        )

    @property
    def tokenizer_name(self) -> str:
        return self.model.tokenizer_name


def request_key(kind: str, arguments: tuple[Any, ...]) -> str:
    """The same for the same question, in every run."""
    return fingerprint(
        [kind, *(each if isinstance(each, (str, dict)) else each.prompt for each in arguments)]
    )
