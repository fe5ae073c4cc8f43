"""What answers the benchmark's requests: a model in memory, or one behind an OpenAI-compatible server.

Both are lm-evaluation-harness's own; what is ours is that every answer is kept on disk as it comes, that both cut text
into tokens in the same way, and that nothing is ever cut to fit.
"""

from bisect import bisect_left
from pathlib import Path
from typing import Any

import requests
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from transformers import GenerationConfig

from lep.benchmark.quiet import quiet
from lep.benchmark.recorded import Recorded
from lep.benchmark.scoring import continuation_nats
from lep.checkpoint.reader import Checkpoint
from lep.errors import LepError
from lep.inference.models import Description, context_of
from lep.tokenizer.chat import TEMPLATE_OPTIONS

SECONDS, CONCURRENT, TRIES = 600, 8, 3


class InMemory(HFLM):
    """A loaded model. Scores continuations in its own way, many times as fast with examples before the questions."""

    spare = 1  # tokens of a scored text beyond the context: the last one is predicted, not seen

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
        # no lengths, penalties or sampling of the makers'
        model.generation_config = GenerationConfig(
            eos_token_id=model.generation_config.eos_token_id
        )
        self.latest: list[int] = []
        self._encoded: dict[str, list[int]] = {}

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """As lm-evaluation-harness has it, with the texts cut into tokens once, on all cores."""
        texts = list(
            {
                text
                for context, choice in (r.args for r in requests)
                for text in (context, context + choice)
            }
        )
        begins = self.tokenizer.bos_token or "\0"
        for special in (True, False):
            asks = (
                self.add_bos_token is None
            )  # a template has put what it wants before a conversation
            group = [
                text for text in texts if text and (asks and not text.startswith(begins)) == special
            ]
            found = self.tokenizer.backend_tokenizer.encode_batch(group, add_special_tokens=special)
            self._encoded |= {
                text: encoding.ids for text, encoding in zip(group, found, strict=True)
            }
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            self._encoded = {}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, *_: Any, **__: Any
    ) -> list[int]:
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
            range(len(ids)),
            len(text),
            key=lambda k: len(self.tokenizer.decode(ids[:k], skip_special_tokens=True)),
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
    templated = (
        False  # whether texts are conversations, which begin with what their template begins with
    )

    def tok_encode(self, string: str, left_truncate_len: int | None = None, **kwargs: Any) -> Any:
        if not isinstance(string, str):
            return [self.tok_encode(each, left_truncate_len) for each in string]
        begins = self.tokenizer.bos_token and string.startswith(self.tokenizer.bos_token)
        special = kwargs.get("add_special_tokens")
        return self.tokenizer.encode(
            string,
            add_special_tokens=not (begins or self.templated) if special is None else special,
        )


class Chat(_Counting, LocalChatCompletion):
    """Answers from `/v1/chat/completions`; the server applies the model's template."""

    def _create_payload(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return super()._create_payload(*arguments, **options) | {
            "chat_template_kwargs": TEMPLATE_OPTIONS
        }


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
            "model": self.name,
            "tokenizer": str(checkpoint.folder),
            "max_length": self.context,
            "num_concurrent": CONCURRENT,
            "max_retries": TRIES,
            "timeout": SECONDS,
            "batch_size": 1,
        }
        self.completions = Completions(
            base_url=f"{self.url}/completions", tokenizer_backend="huggingface", **common
        )
        self.completions.tokenizer = checkpoint.tokenizer
        self.chat = Chat(base_url=f"{self.url}/chat/completions", **common)
        self.completions.context = self.chat.context = self.context

    def answering(self, generates: bool, chat: bool) -> LM:
        """What to ask: chat for answers, else completions."""
        self.completions.templated = chat
        return self.chat if generates and chat else self.completions

    def text_nats(self, texts: list[str], place: Path) -> list[float]:
        """-log p of each text in nats; answers are kept in the file `place`."""
        asked = Recorded(
            self.completions,
            lambda text: len(self.completions.tok_encode(text)),
            self.context,
            place,
        )
        try:
            found = asked.loglikelihood(
                [Instance("loglikelihood", {}, ("", text), i) for i, text in enumerate(texts)]
            )
        finally:
            asked.close()
        if asked.too_long:
            raise LepError(
                f"{len(asked.too_long)} of {len(texts)} windows of text are longer than the model's context"
            )
        return [-nats for nats, _ in found]
