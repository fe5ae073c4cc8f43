"""Run benchmark tasks on a model: one record for each item, with prompt, output and scores."""

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import TemplateError

from lep.benchmark.tasks import FOLDER
from lep.checkpoint.reader import Checkpoint
from lep.corpus.prepare import unit_hash
from lep.errors import LepError
from lep.inference.models import Description, context_of
from lep.settings import BenchmarkSettings
from lep.tokenizer.chat import chat_ids

BASE_SHOTS = 5  # of a model without a chat template; an instruct model gets none
NEEDS_HARNESS = (
    "benchmark tasks and servers need lm-evaluation-harness: install lep with its extra 'eval'"
)


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord:
    """An item of a benchmark task: likelihoods of its choices or the written output, and scores."""

    kind: ClassVar[str] = "benchmark"
    task: str
    language: str
    id: str
    unit: str  # that scores are averaged over: the item, a pair, an exam variant
    chat: bool
    shots: int
    prompt: str
    target: Any
    too_long: bool | None = None  # for the model's context; then nothing below is known
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
        self.chat = bool(checkpoint.tokenizer.chat_template)
        if settings.chat and not self.chat:
            raise LepError(
                f"{checkpoint.folder} has no chat template, so it cannot be asked as a chat model: "
                "leave --chat out, or give its instruct version"
            )
        self.chat = self.chat if settings.chat is None else settings.chat
        default = 0 if self.chat else BASE_SHOTS
        self.shots = default if settings.shots is None else settings.shots
        self.tasks = self._load(names)
        configs = [task.config for task in self.tasks.values() if self._is_chat(task)]
        for prefix in sorted({config.gen_prefix for config in configs if config.gen_prefix}):
            _check_prefix(checkpoint, prefix)

    def _load(self, names: list[str]) -> dict[str, Any]:
        """The tasks of lm-evaluation-harness by name."""
        try:
            from lm_eval import utils
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise LepError(NEEDS_HARNESS) from error
        # it compiles a template again for every item and example
        if not hasattr(utils.env.from_string, "cache_info"):
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
        context = context_of(self.checkpoint)
        for name, task in self.tasks.items():
            generates = task.OUTPUT_TYPE == "generate_until"
            if generates:
                room = min(task.config.generation_kwargs["max_gen_toks"], context // 2)
                task.set_config("generation_kwargs", {"max_gen_toks": room}, update=True)
            if not task.config.metadata.get("plain"):
                most = task.config.num_fewshot
                shots = self.shots if most is None else min(most, self.shots)
                task.set_config("num_fewshot", shots)
            model = answering(generates, self._is_chat(task))
            yield from self._task(name, task, model, folder / f"{name}.jsonl")

    def _task(self, name: str, task: Any, model: Any, file: Path) -> Iterator[BenchmarkRecord]:
        from lm_eval.evaluator import evaluate

        from lep.benchmark.recorded import Recorded, request_key

        recorded = Recorded(model, self._length, context_of(self.checkpoint), file)
        task.set_fewshot_seed(self.settings.seed)
        chosen = self.chosen(list(task.eval_docs))
        try:
            with quiet():
                samples = evaluate(
                    recorded,
                    {"tasks": {name: task}, "groups": {}},
                    bootstrap_iters=0,
                    log_samples=True,
                    samples=None if chosen is None else {name: chosen},
                    apply_chat_template=self._is_chat(task),
                    fewshot_as_multiturn=self._is_chat(task),
                )["samples"][name]
        finally:
            recorded.close()
        method = "generate_until" if task.OUTPUT_TYPE == "generate_until" else "loglikelihood"
        for sample in samples:
            keys = {request_key(method, arguments) for arguments in sample["arguments"]}
            too_long = not keys.isdisjoint(recorded.too_long)
            yield self._record(name, task, sample, too_long=too_long)

    def _record(
        self, name: str, task: Any, sample: dict[str, Any], *, too_long: bool
    ) -> BenchmarkRecord:
        doc, arguments = sample["doc"], sample["arguments"]
        prompt = arguments[0][0]
        record = BenchmarkRecord(
            task=name,
            language=task.config.metadata["language"],
            id=doc["id"],
            unit=doc["unit"],
            chat=self._is_chat(task),
            shots=task.config.num_fewshot,
            prompt=str(getattr(prompt, "prompt", prompt)),
            target=sample["target"],
        )
        if too_long:
            return replace(record, too_long=True)
        scores = {metric: sample[metric] for metric in sample["metrics"]}
        answers = [response[0] for response in sample["resps"]]
        if task.OUTPUT_TYPE == "generate_until":
            (text,) = answers
            return replace(record, output=str(text), tokens=text.tokens, scores=scores)
        choices = {each[1]: nats for each, (nats, _) in zip(arguments, answers, strict=True)}
        return replace(record, choices=choices, scores=scores)

    def chosen(self, docs: list[dict[str, Any]]) -> list[int] | None:
        """Indices of the items to ask: whole units by a fixed hash up to `limit`; None for all."""
        limit = self.settings.limit
        if not limit or limit >= len(docs):
            return None
        units: dict[str, list[int]] = {}
        for index, doc in enumerate(docs):
            units.setdefault(doc["unit"], []).append(index)
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


def _check_prefix(checkpoint: Checkpoint | Description, prefix: str) -> None:
    """Raise `LepError` when the template cannot begin an answer, as questions with choices need."""
    begun = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": prefix}]
    template = f"the chat template of {checkpoint.folder}"
    advice = "ask it as a base model, with --no-chat"
    try:
        text = checkpoint.tokenizer.apply_chat_template(
            begun, tokenize=False, continue_final_message=True
        )
    except (TemplateError, ValueError) as error:
        raise LepError(f"{template} cannot begin an answer ({error}): {advice}") from error
    if not text.endswith(prefix):
        changed = text[-len(prefix) :]
        raise LepError(
            f"{template} changes how an answer begins, '{prefix}' to '{changed}': {advice}"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-evaluation-harness, which reports every step and draws bars even into files.

    Its faults are exceptions all the same.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
