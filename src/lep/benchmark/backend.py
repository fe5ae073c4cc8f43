"""Models that answer the benchmark's requests: in memory, or behind an OpenAI-compatible server.

Both extend lm-evaluation-harness's own: they count the tokens of their answers, tokenise alike, and
cut nothing to fit.
"""

import math
from bisect import bisect_left
from contextlib import closing
from pathlib import Path
from typing import Any

import requests
from aiohttp import ClientResponse
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from transformers import GenerationConfig

from lep.benchmark.harness import chat_text, quiet
from lep.benchmark.recorded import Recorded
from lep.benchmark.scoring import continuation_nats
from lep.checkpoint.reader import Checkpoint
from lep.errors import LepError, printable, redacted
from lep.inference.models import Description, context_of
from lep.limits import REPLY_BYTES, REPLY_SECONDS
from lep.progress import progress
from lep.tokenizer.chat import TEMPLATE_OPTIONS
from lep.web import whole_reply

SECONDS, CONCURRENT, TRIES = 600, 8, 3


def adds_special(tokenizer: Any, text: str, *, templated: bool) -> bool:
    """Whether special tokens go before a text. A conversation begins as its template begins it."""
    begin = tokenizer.bos_token
    return not (templated or (begin and text.startswith(begin)))


class InMemory(HFLM):
    """A loaded model. It scores continuations itself: much faster where questions have examples."""

    spare = 1  # tokens of a scored text beyond the context: the last one is predicted, not read

    def __init__(self, model: Any, checkpoint: Checkpoint, batch_size: int) -> None:
        with quiet():
            super().__init__(
                pretrained=model,
                tokenizer=checkpoint.tokenizer,
                batch_size=batch_size,
                max_length=context_of(checkpoint),
                backend="causal",
                chat_template_args=TEMPLATE_OPTIONS,
            )
        ends = model.generation_config.eos_token_id  # without the makers' lengths and sampling
        model.generation_config = GenerationConfig(eos_token_id=ends)
        self.latest: list[int] = []
        self._encoded: dict[str, list[int]] = {}

    def answering(self, generates: bool, chat: bool) -> LM:
        """The model to ask: always this one."""
        self.add_bos_token = False if chat else None
        return self

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """As in lm-evaluation-harness, but all texts are tokenised at once, on all cores."""
        pairs = [request.args for request in requests]
        groups: dict[bool, list[str]] = {True: [], False: []}
        templated = self.add_bos_token is False
        for text in {t for context, choice in pairs for t in (context, context + choice) if t}:
            groups[adds_special(self.tokenizer, text, templated=templated)].append(text)
        for special, group in groups.items():
            encode = self.tokenizer.backend_tokenizer.encode_batch
            encodings = encode(group, add_special_tokens=special)
            self._encoded |= {t: each.ids for t, each in zip(group, encodings, strict=True)}
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            self._encoded = {}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, *_: Any, **__: Any
    ) -> list[int]:
        known = self._encoded.get(string) if add_special_tokens is None else None
        return super().tok_encode(string, add_special_tokens) if known is None else known

    def _loglikelihood_tokens(self, requests: Any, *_: Any, **__: Any) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        pairs = [(context, continuation) for _, context, continuation in requests]
        scores = continuation_nats(self.model, pairs, self.batch_size)
        for number, nats, greedy in progress(scores, "choices scored", len(pairs)):
            answers[number] = (nats, greedy)
            self.cache_hook.add_partial("loglikelihood", requests[number][0], answers[number])
        return answers

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        return chat_text(self.tokenizer, chat_history, ask=add_generation_prompt)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        self.latest = tokens if isinstance(tokens, list) else [tokens]
        return super().tok_decode(tokens, skip_special_tokens=skip_special_tokens)

    def written(self, text: str) -> int:
        """Tokens of the latest answer, up to where the text was cut."""
        ids, decode = self.latest, self.tokenizer.decode

        def length(count: int) -> int:
            return len(decode(ids[:count], skip_special_tokens=True))

        return bisect_left(range(len(ids)), len(text), key=length)


class _Bounded(ClientResponse):
    """A reply of bounded size."""

    async def read(self) -> bytes:
        """Raises `LepError` for a reply above `REPLY_BYTES`."""
        content = bytearray()
        async for piece in self.content.iter_any():
            content += piece
            if len(content) > REPLY_BYTES.value:
                self.close()
            REPLY_BYTES.check(len(content), f"the reply of {self.url}")
        self._body = bytes(content) if self._body is None else self._body
        return await super().read()


class _Counting:
    """Counts an answer's tokens as the server does, without the one that ended it."""

    latest: int | None = None
    context: int

    async def amodel_call(self, session: Any, *arguments: Any, **options: Any) -> Any:
        session._response_class = _Bounded  # lm-evaluation-harness opens it
        return await super().amodel_call(session, *arguments, **options)  # type: ignore[misc]

    def parse_generations(self, outputs: Any, **kwargs: Any) -> list[str]:
        """The text of a well-formed reply. Raises `LepError` for any other: it is no answer."""
        match outputs:
            case {"choices": [{"message": {"content": str() | None as text}} as choice]}:
                pass
            case {"choices": [{"text": str() as text} as choice]}:
                pass
            case _:
                shown = printable(repr(outputs)[:200])
                raise LepError(f"the server's reply holds no answer: {shown}; look at its log")
        self.latest = None
        match outputs:
            case {"usage": {"completion_tokens": int(count)}} if count >= 0:
                self.latest = max(0, count - (choice.get("finish_reason") == "stop"))
        return [text or ""]

    def written(self, text: str) -> int | None:
        return self.latest


class Completions(_Counting, LocalCompletionsAPI):
    """`/v1/completions`: log-likelihoods, and answers of models without a chat template.

    Asks for prompt log-probabilities of token ids (`echo` with `logprobs`), as vLLM gives them.
    """

    spare = -1  # the server reads the last token too, and adds one of its own
    templated = False  # whether the texts are conversations

    def tok_encode(self, string: Any, left_truncate_len: int | None = None, **kwargs: Any) -> Any:
        if not isinstance(string, str):
            return [self.tok_encode(each, left_truncate_len) for each in string]
        special = kwargs.get("add_special_tokens")
        if special is None:
            special = adds_special(self.tokenizer, string, templated=self.templated)
        return self.tokenizer.encode(string, add_special_tokens=special)

    @staticmethod
    def parse_logprobs(
        outputs: Any, tokens: Any = None, ctxlens: Any = None, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log p of each continuation. Raises `LepError` unless each token read has its own.

        (The sum over what is not there would be zero: a certain answer.)
        """
        replies = outputs if isinstance(outputs, list) else [outputs]
        choices = [choice for reply in replies for choice in reply["choices"]]
        counts = [len(choice["logprobs"]["token_logprobs"]) for choice in choices]
        if counts != [len(ids) + 1 for ids in tokens]:  # it adds one token
            raise LepError(
                f"the server gives {sum(counts):,} log-probabilities for "
                f"{sum(map(len, tokens)):,} tokens: it must give those of the prompt "
                "(echo with logprobs), and serve this model"
            )
        answers = LocalCompletionsAPI.parse_logprobs(outputs, tokens, ctxlens, **kwargs)
        if not all(math.isfinite(nats) for nats, _ in answers):
            raise LepError("the server gives log-probabilities that are not finite: see its log")
        return answers

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        return chat_text(self.tokenizer, chat_history, ask=add_generation_prompt)


class Chat(_Counting, LocalChatCompletion):
    """`/v1/chat/completions`: answers; the server applies the model's template."""

    def _create_payload(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        payload = super()._create_payload(*arguments, **options)
        return payload | {"chat_template_kwargs": TEMPLATE_OPTIONS}


class Server:
    """A model behind a URL; a local folder or hub id gives its tokenizer and template."""

    def __init__(self, checkpoint: Checkpoint | Description, source: str, url: str) -> None:
        """`source` is what the user called the model.

        Raises `LepError` when nothing answers, or when the server has several other models.
        """
        url = url.rstrip("/")
        served = _served(url)
        known = [name for name in (source, str(checkpoint.folder)) if name in served]
        if not known and len(served) > 1:
            models = f"{', '.join(served)} and not {source}"
            raise LepError(
                f"the server at {redacted(url)} has {models}: serve one model, or that one"
            )
        name = known[0] if known else next(iter(served), str(checkpoint.folder))
        longest = context_of(checkpoint)
        self.context = min(longest, served.get(name) or longest)
        options = {"model": name, "tokenizer": str(checkpoint.folder), "max_length": self.context}
        seconds = min(SECONDS, REPLY_SECONDS.value)
        options |= {"max_retries": TRIES, "timeout": seconds, "num_concurrent": CONCURRENT}
        options |= {"batch_size": 1}
        address, backend = f"{url}/completions", "huggingface"
        self.completions = Completions(base_url=address, tokenizer_backend=backend, **options)
        self.completions.tokenizer = checkpoint.tokenizer
        self.chat = Chat(base_url=f"{url}/chat/completions", **options)
        self.completions.context = self.chat.context = self.context

    def answering(self, generates: bool, chat: bool) -> LM:
        """The model to ask: chat for answers, else completions."""
        self.completions.templated = chat
        return self.chat if generates and chat else self.completions

    def text_nats(self, texts: list[str], file: Path) -> list[tuple[int, float]]:
        """Number of tokens of each text, and -log p in nats; answers are kept in `file`."""
        model, encode = self.completions, self.completions.tok_encode
        instances = [Instance("loglikelihood", {}, ("", text), i) for i, text in enumerate(texts)]
        recorded = Recorded(model, lambda text: len(encode(text)), self.context, file)
        with closing(recorded) as saved, quiet():
            answers = saved.loglikelihood(instances)
        if saved.too_long:
            count = f"{len(saved.too_long)} of {len(texts)}"
            raise LepError(f"{count} windows of text are longer than the model's context")
        counts = (len(encode(text, add_special_tokens=False)) for text in texts)
        return [(count, -nats) for count, (nats, _) in zip(counts, answers, strict=True)]


def _served(url: str) -> dict[str, int | None]:
    """A server's models, each with its context or None; empty if the server does not list them."""
    try:
        answer = whole_reply(requests.Session(), "GET", f"{url}/models", 30)
    except requests.RequestException as error:
        raise LepError(
            f"no OpenAI-compatible server answers at {redacted(url)} ({type(error).__name__}): "
            "start it, or mend the URL, which usually ends in /v1"
        ) from error
    try:
        contexts = {model["id"]: model.get("max_model_len") for model in answer.json()["data"]}
        return {name: n if isinstance(n, int) and n > 0 else None for name, n in contexts.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
