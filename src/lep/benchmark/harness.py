"""Run benchmark tasks on a model: one record for each item, with its prompt, its output and its scores."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from lep.benchmark.quiet import NEEDS_HARNESS, quiet
from lep.benchmark.tasks import FOLDER
from lep.checkpoint.reader import Checkpoint
from lep.corpus.prepare import unit_hash
from lep.errors import LepError
from lep.inference.models import Description, context_of
from lep.settings import BenchmarkSettings
from lep.tokenizer.chat import chat_ids

BASE_SHOTS = 5  # of a model without a chat template; an instruct model gets none


class Benchmark:
    """The tasks asked for, loaded once for a model. Needs lm-evaluation-harness (`lep[eval]`).

    Raises `LepError` without it, `CorpusError` for data that are missing or lack a field.
    """

    def __init__(
        self, checkpoint: Checkpoint | Description, names: list[str], settings: BenchmarkSettings
    ) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        template = bool(checkpoint.tokenizer.chat_template)
        if settings.chat and not template:
            raise LepError(
                f"{checkpoint.folder} has no chat template, so it cannot be asked as a chat model: leave --chat out, "
                "or give its instruct version"
            )
        self.chat = template if settings.chat is None else settings.chat
        self.shots = (
            settings.shots if settings.shots is not None else 0 if self.chat else BASE_SHOTS
        )
        try:
            from lm_eval import utils
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise LepError(NEEDS_HARNESS) from error
        if not hasattr(
            utils.env.from_string, "cache_info"
        ):  # it compiles a template again for every item and example
            utils.env.from_string = lru_cache(utils.env.from_string)
        with quiet():
            place = {"tokenizer": str(checkpoint.folder)} | (
                {"data": str(settings.data)} if settings.data else {}
            )
            manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=place)
            self.tasks = manager.load(names)["tasks"]
        if self.chat:
            prefixes = {
                task.config.gen_prefix
                for task in self.tasks.values()
                if not task.config.metadata.get("plain")
            }
            for prefix in sorted(filter(None, prefixes)):
                _check_prefix(checkpoint, prefix)

    def records(
        self, answering: Callable[[bool, bool], Any], place: Path
    ) -> Iterator[dict[str, Any]]:
        """Ask what `answering(generates, chat)` gives; answers are kept under `place` as they come."""
        context = context_of(self.checkpoint)
        for name, task in self.tasks.items():
            plain = task.config.metadata.get("plain", False)
            generates = task.OUTPUT_TYPE == "generate_until"
            chat = self.chat and not plain
            if generates:
                room = task.config.generation_kwargs["max_gen_toks"]
                task.set_config(
                    "generation_kwargs", {"max_gen_toks": min(room, context // 2)}, update=True
                )
            most = task.config.num_fewshot
            if not plain:
                task.set_config(
                    "num_fewshot", self.shots if most is None else min(most, self.shots)
                )
            yield from self._task(
                name, task, answering(generates, chat), chat, context, place / f"{name}.jsonl"
            )

    def _task(
        self, name: str, task: Any, model: Any, chat: bool, context: int, place: Path
    ) -> Iterator[dict[str, Any]]:
        from lm_eval.evaluator import evaluate

        from lep.benchmark.recorded import Recorded, request_key

        asked = Recorded(model, self._length, context, place)
        task.set_fewshot_seed(self.settings.seed)
        chosen = self.chosen(list(task.eval_docs))
        try:
            with quiet():
                found = evaluate(
                    asked,
                    {"tasks": {name: task}, "groups": {}},
                    bootstrap_iters=0,
                    log_samples=True,
                    samples=None if chosen is None else {name: chosen},
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,
                )["samples"][name]
        finally:
            asked.close()
        kind = "generate_until" if task.OUTPUT_TYPE == "generate_until" else "loglikelihood"
        for sample in found:
            arguments = sample["arguments"]
            record = {
                "kind": "benchmark",
                "task": name,
                "language": task.config.metadata["language"],
                "id": sample["doc"]["id"],
                "unit": sample["doc"]["unit"],
                "chat": chat,
                "shots": task.config.num_fewshot,
                "prompt": str(getattr(arguments[0][0], "prompt", arguments[0][0])),
                "target": sample["target"],
            }
            if any(request_key(kind, each) in asked.too_long for each in arguments):
                yield record | {"too_long": True}
                continue
            said = [response[0] for response in sample["resps"]]
            if kind == "loglikelihood":
                record["choices"] = {
                    each[1]: answer[0] for each, answer in zip(arguments, said, strict=True)
                }
            else:
                record |= {"output": str(said[0]), "tokens": said[0].tokens}
            yield record | {"scores": {metric: sample[metric] for metric in sample["metrics"]}}

    def chosen(self, docs: list[dict[str, Any]]) -> list[int] | None:
        """Places of the documents to ask about: whole units by a fixed hash until there are `limit`; None for all."""
        if not self.settings.limit or self.settings.limit >= len(docs):
            return None
        units: dict[str, list[int]] = {}
        for place, doc in enumerate(docs):
            units.setdefault(doc["unit"], []).append(place)
        taken: list[int] = []
        for unit in sorted(units, key=lambda unit: unit_hash(f"{self.settings.seed}/{unit}")):
            if len(taken) < self.settings.limit:
                taken += units[unit]
        return sorted(taken)

    def _length(self, asked: Any) -> int:
        """Tokens of a text, or of a conversation up to where the answer begins."""
        tokenizer = self.checkpoint.tokenizer
        if isinstance(asked, str):
            return len(tokenizer.backend_tokenizer.encode(asked).ids)
        return len(chat_ids(tokenizer, asked, ask=True))


def _check_prefix(checkpoint: Checkpoint | Description, prefix: str) -> None:
    """Raise `LepError` when the template cannot begin an answer, as questions with choices need."""
    begun = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": prefix}]
    try:
        text = checkpoint.tokenizer.apply_chat_template(
            begun, tokenize=False, continue_final_message=True
        )
    except (TemplateError, ValueError) as error:
        raise LepError(
            f"the chat template of {checkpoint.folder} cannot begin an answer ({error}): ask it as a base model, with "
            "--no-chat"
        ) from error
    if not text.endswith(prefix):
        raise LepError(
            f"the chat template of {checkpoint.folder} changes how an answer begins, '{prefix}' to "
            f"'{text[-len(prefix) :]}': ask it as a base model, with --no-chat"
        )
