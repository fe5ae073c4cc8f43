"""Run benchmark tasks on a model: a record of each item with prompt, answer and scores."""

import io
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from lep.benchmark.tasks import FOLDER
from lep.checkpoint.reader import Checkpoint
from lep.corpus.prepare import unit_hash
from lep.errors import CorpusError, LepError
from lep.inference.models import Description, context_of
from lep.settings import BenchmarkSettings
from lep.tokenizer.chat import chat_ids, rendered

BASE_SHOTS = 5  # of a model without a chat template; an instruct model gets none
NEEDS_HARNESS = "benchmark tasks and servers need lm-evaluation-harness: pip install '.[eval]'"


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord:
    """An item of a benchmark task: likelihoods of its choices or the output, and its scores."""

    kind: ClassVar[str] = "benchmark"
    task: str
    language: str
    id: str
    unit: str  # that scores are averaged over: the item, a pair, an exam variant
    chat: bool
    shots: int
    prompt: str
    target: Any
    too_long: bool | None = None  # for the model's context; then there is no answer
    choices: dict[str, float] | None = None  # log p in nats
    output: str | None = None
    tokens: int | None = None  # of the output; None where a server does not say
    scores: dict[str, tuple[str, Any]] | None = None  # (unit, value) by metric


class Benchmark:
    """Benchmark tasks, loaded once for a model. Needs lm-evaluation-harness (`lep[eval]`).

    Raises `LepError` without it, `CorpusError` for data that are missing or lack a field.
    """

    def __init__(
        self, checkpoint: Checkpoint | Description, names: list[str], settings: BenchmarkSettings
    ) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        template = bool(checkpoint.tokenizer.chat_template)
        if settings.chat and not template:
            raise LepError(
                f"{checkpoint.folder} has no chat template, so it cannot be asked as a chat model: "
                "leave --chat out, or give its instruct version"
            )
        self.chat = template if settings.chat is None else settings.chat
        default = 0 if self.chat else BASE_SHOTS
        self.shots = default if settings.shots is None else settings.shots
        self.tasks = self._load(names)
        prefixes = {t.config.gen_prefix for t in self.tasks.values() if self._is_chat(t)}
        for prefix in sorted(filter(None, prefixes)):
            _check_prefix(checkpoint, prefix)

    def _load(self, names: list[str]) -> dict[str, Any]:
        try:
            from lm_eval import utils
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise LepError(NEEDS_HARNESS) from error
        if not hasattr(utils.env.from_string, "cache_info"):  # else each item compiles it again
            utils.env.from_string = lru_cache(utils.env.from_string)
        metadata = {"tokenizer": str(self.checkpoint.folder)}
        if self.settings.data:
            metadata["data"] = str(self.settings.data)
        with quiet():
            manager = TaskManager(include_path=FOLDER, include_defaults=False, metadata=metadata)
            return manager.load(names)["tasks"]

    def _is_chat(self, task: Any) -> bool:
        return self.chat and not task.config.metadata.get("plain")

    def records(
        self, answering: Callable[[bool, bool], Any], folder: Path
    ) -> Iterator[BenchmarkRecord]:
        """Ask the model that `answering(generates, chat)` gives; answers are kept in `folder`."""
        for name, task in self.tasks.items():
            config, generates = task.config, task.OUTPUT_TYPE == "generate_until"
            if generates:
                half = context_of(self.checkpoint) // 2
                room = min(config.generation_kwargs["max_gen_toks"], half)
                task.set_config("generation_kwargs", {"max_gen_toks": room}, update=True)
            if not config.metadata.get("plain"):
                most = self.shots if config.num_fewshot is None else config.num_fewshot
                task.set_config("num_fewshot", min(most, self.shots))
            model = answering(generates, self._is_chat(task))
            yield from self._task(name, task, model, folder / f"{name}.jsonl")

    def _task(self, name: str, task: Any, model: Any, file: Path) -> Iterator[BenchmarkRecord]:
        from lm_eval.evaluator import evaluate

        from lep.benchmark.recorded import Recorded, request_key

        task.set_fewshot_seed(self.settings.seed)
        chosen, chat = self.chosen(list(task.eval_docs)), self._is_chat(task)
        recorded = Recorded(model, self._length, context_of(self.checkpoint), file)
        with closing(recorded), quiet():
            samples = evaluate(
                recorded,
                {"tasks": {name: task}, "groups": {}},
                bootstrap_iters=0,
                log_samples=True,
                samples=None if chosen is None else {name: chosen},
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )["samples"][name]
        method = "generate_until" if task.OUTPUT_TYPE == "generate_until" else "loglikelihood"
        for sample in samples:
            keys = {request_key(method, arguments) for arguments in sample["arguments"]}
            answer = _answer(sample) if keys.isdisjoint(recorded.too_long) else {"too_long": True}
            prompt = sample["arguments"][0][0]
            yield BenchmarkRecord(
                task=name,
                language=task.config.metadata["language"],
                id=sample["doc"]["id"],
                unit=sample["doc"]["unit"],
                chat=chat,
                shots=task.config.num_fewshot,
                prompt=str(getattr(prompt, "prompt", prompt)),
                target=sample["target"],
                **answer,
            )

    def chosen(self, docs: list[dict[str, Any]]) -> list[int] | None:
        """Indices of the items to ask: whole units by a fixed hash up to `limit`; None for all."""
        limit = self.settings.limit
        if not limit or limit >= len(docs):
            return None
        units: dict[str, list[int]] = defaultdict(list)
        for index, doc in enumerate(docs):
            units[doc["unit"]].append(index)
        taken: list[int] = []
        for unit in sorted(units, key=lambda unit: unit_hash(f"{self.settings.seed}/{unit}")):
            if len(taken) < limit:
                taken += units[unit]
        return sorted(taken)

    def _length(self, prompt: Any) -> int:
        """Tokens of a text, or of a conversation up to where the answer begins."""
        tokenizer = self.checkpoint.tokenizer
        if isinstance(prompt, str):
            return len(tokenizer.backend_tokenizer.encode(prompt).ids)
        return len(chat_ids(tokenizer, prompt, ask=True))


def _answer(sample: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record that an answer gives."""
    scores = {metric: sample[metric] for metric in sample["metrics"]}
    answers = [response[0] for response in sample["resps"]]
    if hasattr(answers[0], "tokens"):
        return {"output": str(answers[0]), "tokens": answers[0].tokens, "scores": scores}
    pairs = zip(sample["arguments"], answers, strict=True)
    return {"choices": {choice: nats for (_, choice), (nats, _) in pairs}, "scores": scores}


def chat_text(tokenizer: Any, messages: list[dict[str, str]], *, ask: bool) -> str:
    """A conversation up to where the next answer begins with `ask`, else without its end."""
    options = {"add_generation_prompt": ask, "continue_final_message": not ask}
    return rendered(tokenizer, messages, **options)


def _check_prefix(checkpoint: Checkpoint | Description, prefix: str) -> None:
    """Raise `LepError` when the template cannot begin an answer, as questions with choices need."""
    begun = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": prefix}]
    template = f"the chat template of {checkpoint.folder}"
    advice = "ask it as a base model, with --no-chat"
    try:
        text = chat_text(checkpoint.tokenizer, begun, ask=False)
    except CorpusError as error:
        raise LepError(f"{template} cannot begin an answer ({error}): {advice}") from error
    if not text.endswith(prefix):
        change = f"changes how an answer begins, '{prefix}' to '{text[-len(prefix) :]}'"
        raise LepError(f"{template} {change}: {advice}")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-evaluation-harness, which logs every step, and requests with their keys."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
