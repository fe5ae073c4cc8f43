"""What answers the benchmark's requests: a model in memory, or one behind an OpenAI-compatible server.

Both are lm-evaluation-harness's own; what is ours is that every answer is kept on disk as it comes, that both cut text
into tokens in the same way, and that nothing is ever cut to fit.
"""

import json
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from aiohttp import ClientError, ClientResponseError
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from transformers import GenerationConfig

from lep.checkpoint.reader import Checkpoint
from lep.errors import LepError
from lep.evaluation.benchmark import quiet
from lep.evaluation.scoring import continuation_nats
from lep.inference.load import Description, context_of
from lep.publish import fingerprint
from lep.tokenizer.chat import ASKED

SECONDS, CONCURRENT, TRIES = 600, 8, 3
SPECIAL = 2  # tokens that a tokenizer may put around a text
CHUNK = 4_000  # requests that are in work at once


class Said(str):
    """A generated text that knows how many tokens it was written in."""

    tokens: int | None

    def __new__(cls, text: str, tokens: int | None) -> "Said":
        said = super().__new__(cls, text)
        said.tokens = tokens
        return said


class InMemory(HFLM):
    """A loaded model. Scores continuations in its own way, many times as fast with examples before the questions."""

    spare = 1  # tokens of a scored text beyond the context: the last one is predicted, not seen

    def __init__(self, model: Any, checkpoint: Checkpoint, batch_size: int) -> None:
        with quiet():
            super().__init__(pretrained=model, tokenizer=checkpoint.tokenizer, batch_size=batch_size,
                             max_length=context_of(checkpoint), backend="causal",
                             chat_template_args=ASKED)  # fmt: skip
        # no lengths, penalties or sampling of the makers'
        model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
        self.latest: list[int] = []
        self._encoded: dict[str, list[int]] = {}

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As lm-evaluation-harness has it, with the texts cut into tokens once, on all cores."""
        texts = list({text for context, choice in (r.args for r in requests) for text in (context, context + choice)})
        begins = self.tokenizer.bos_token or "\0"
        for special in (True, False):
            asks = self.add_bos_token is None  # a template has put what it wants before a conversation
            group = [text for text in texts if text and (asks and not text.startswith(begins)) == special]
            found = self.tokenizer.backend_tokenizer.encode_batch(group, add_special_tokens=special)
            self._encoded |= {text: encoding.ids for text, encoding in zip(group, found, strict=True)}
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            self._encoded = {}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, *_: Any, **__: Any) -> list[int]:
        known = self._encoded.get(string) if add_special_tokens is None else None
        return super().tok_encode(string, add_special_tokens) if known is None else known

    def answering(self, generates: bool, chat: bool) -> LM:
        """What to ask: the same for everything, but that a conversation begins with what its template begins with."""
        self.add_bos_token = False if chat else None
        return self

    def _loglikelihood_tokens(self, requests: Any, *_: Any, **__: Any) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        pairs = [(context, continuation) for _, context, continuation in requests]
        for number, nats, greedy in continuation_nats(self.model, pairs, self.batch_size):
            answers[number] = (nats, greedy)
            self.cache_hook.add_partial("loglikelihood", requests[number][0], answers[number])
        return answers

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        self.latest = tokens if isinstance(tokens, list) else [tokens]
        return super().tok_decode(tokens, skip_special_tokens=skip_special_tokens)

    def written(self, text: str) -> int:
        """Tokens of the answer decoded last, up to where the text was cut."""
        ids = self.latest
        return bisect_left(
            range(len(ids)), len(text), key=lambda k: len(self.tokenizer.decode(ids[:k], skip_special_tokens=True))
        )


class _Counting:
    """Tokens of an answer as the server counts them, without the one that ended it."""

    latest: int | None = None
    context: int

    def parse_generations(self, outputs: Any, **kwargs: Any) -> list[str]:
        usage, choice = outputs.get("usage") or {}, outputs["choices"][0]
        count = usage.get("completion_tokens")
        self.latest = None if count is None else count - (choice.get("finish_reason") == "stop")
        return super().parse_generations(outputs, **kwargs)  # type: ignore[misc]

    def written(self, text: str) -> int | None:
        return self.latest


class Completions(_Counting, LocalCompletionsAPI):
    """Log-likelihoods, and answers of models without a chat template, from `/v1/completions`.

    Asks for prompt log-probabilities of token ids (`echo` with `logprobs`), as vLLM gives them.
    """

    spare = -1  # the server sees the last one, too, and adds one of its own
    templated = False  # whether texts are conversations, which begin with what their template begins with

    def tok_encode(self, string: str, left_truncate_len: int | None = None, **kwargs: Any) -> Any:
        if not isinstance(string, str):
            return [self.tok_encode(each, left_truncate_len) for each in string]
        begins = self.tokenizer.bos_token and string.startswith(self.tokenizer.bos_token)
        special = kwargs.get("add_special_tokens")
        return self.tokenizer.encode(
            string, add_special_tokens=not (begins or self.templated) if special is None else special
        )


class Chat(_Counting, LocalChatCompletion):
    """Answers from `/v1/chat/completions`; the server applies the model's template."""

    def _create_payload(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return super()._create_payload(*arguments, **options) | {"chat_template_kwargs": ASKED}


class Server:
    """A model behind a URL, for whose tokens and template a local folder or hub id stands."""

    def __init__(self, checkpoint: Checkpoint | Description, source: str, url: str) -> None:
        """`source` is what the model was called. Raises `LepError` when nothing answers, or several other models do."""
        self.url, self.context = url.rstrip("/"), context_of(checkpoint)
        try:
            answer = requests.get(f"{self.url}/models", timeout=30)
        except requests.RequestException as error:
            raise LepError(
                f"no OpenAI-compatible server answers at {url} ({type(error).__name__}): start it, or mend the URL, "
                "which usually ends in /v1"
            ) from error
        try:
            served = {model["id"]: model.get("max_model_len") for model in answer.json()["data"]}
        except (ValueError, KeyError, TypeError, AttributeError):
            served = {}  # some servers have no list, and serve what is asked for
        known = [name for name in (source, str(checkpoint.folder)) if name in served]
        if not known and len(served) > 1:
            raise LepError(
                f"the server at {url} has {', '.join(served)} and not {source}: serve one model, or that one"
            )
        self.name = known[0] if known else next(iter(served), str(checkpoint.folder))
        self.context = min(self.context, served.get(self.name) or self.context)
        common = {
            "model": self.name, "tokenizer": str(checkpoint.folder), "max_length": self.context,
            "num_concurrent": CONCURRENT, "max_retries": TRIES, "timeout": SECONDS, "batch_size": 1,
        }  # fmt: skip
        self.completions = Completions(base_url=f"{self.url}/completions", tokenizer_backend="huggingface", **common)
        self.completions.tokenizer = checkpoint.tokenizer
        self.chat = Chat(base_url=f"{self.url}/chat/completions", **common)
        self.completions.context = self.chat.context = self.context

    def answering(self, generates: bool, chat: bool) -> LM:
        """What to ask: chat for answers, else completions."""
        self.completions.templated = chat
        return self.chat if generates and chat else self.completions

    def text_nats(self, texts: list[str], place: Path) -> list[float]:
        """-log p of each text in nats; answers are kept in the file `place`."""
        asked = Recorded(self.completions, lambda text: len(self.completions.tok_encode(text)), self.context, place)
        try:
            found = asked.loglikelihood([Instance("loglikelihood", {}, ("", text), i) for i, text in enumerate(texts)])
        finally:
            asked.close()
        if asked.too_long:
            raise LepError(f"{len(asked.too_long)} of {len(texts)} windows of text are longer than the model's context")
        return [-nats for nats, _ in found]


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
        self._ask("loglikelihood", requests, lambda args: self._tokens(args[0] + args[1], self.context + spare) - spare)
        unknown = (float("-inf"), False)
        return [tuple(self.known.get(request_key("loglikelihood", r.args), unknown)) for r in requests]  # type: ignore

    def generate_until(self, requests: list[Any]) -> list[str]:
        self._ask("generate_until", requests, lambda args: self._written(args))
        return [Said(*self.known.get(request_key("generate_until", r.args), ("", 0))) for r in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError

    def _written(self, arguments: tuple[Any, ...]) -> int:
        context, room = arguments[0], arguments[1]["max_gen_toks"] - min(0, getattr(self.model, "spare", 0))
        if isinstance(context, str):
            return self._tokens(context, self.context - room) + room
        return self.length(json.loads(context.prompt)) + room  # a conversation, which the server will put into words

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
                if not isinstance(self.model, _Counting):
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
            for request, answer in zip(chunk, answers, strict=True):  # what the hook was not called for
                key = request_key(kind, request.args)
                if key not in self.known:
                    self._keep(key, [answer, None] if kind == "generate_until" else answer)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> Any:
        return self.model.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        return self.model.tokenizer_name


def request_key(kind: str, arguments: tuple[Any, ...]) -> str:
    """The same for the same question, in every run."""
    return fingerprint([kind, *(each if isinstance(each, (str, dict)) else each.prompt for each in arguments)])
