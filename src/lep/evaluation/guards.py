"""What an adapted model still does like the original: answers to the same prompts, side by side."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lep.benchmark.metrics import repetition
from lep.checkpoint.reader import Checkpoint
from lep.errors import CorpusError
from lep.evaluation.records import PromptRecord
from lep.evaluation.spans import Messages, answer_nats, greedy_answers
from lep.settings import EvaluateSettings
from lep.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class Original:
    """The original model: its vocabulary, and its answers (empty if unfinished) once known."""

    vocabulary: Vocabulary
    answers: list[str] | None


def prompt_records(
    model: Any,
    checkpoint: Checkpoint,
    prompts: list[Messages],
    original: Original,
    settings: EvaluateSettings,
) -> Iterator[PromptRecord]:
    """Greedy answers to the prompts, and the nats of the original model's answers to them.

    Without known answers the model is the original itself. Raises `CorpusError` when none of its
    answers ends within `settings.answer_tokens`.
    """
    size = settings.batch_size
    answers = greedy_answers(
        model, checkpoint, prompts, settings.answer_tokens, size, label="prompts"
    )
    expected = original.answers
    if expected is None:  # an answer that was cut off at the length limit is no whole turn
        expected = [answer.text if answer.finished else "" for answer in answers]
    if not any(expected):
        raise CorpusError(
            f"the original model ends none of its answers to {len(prompts)} prompts within "
            f"{settings.answer_tokens} tokens: give prompts that it can answer briefly"
        )
    ended = [i for i, text in enumerate(expected) if text]
    turns = [[*prompts[i], {"role": "assistant", "content": expected[i]}] for i in ended]
    losses = answer_nats(model, checkpoint, turns, size, "original answers")
    nats = {ended[k]: loss for k, loss in losses.items()}
    known = {token.content for token in original.vocabulary.tokens if token}
    tokens = checkpoint.vocabulary.tokens
    new = {i for i, token in enumerate(tokens) if token and token.content not in known}
    for i, answer in enumerate(answers):
        yield PromptRecord(
            id=str(i),
            prompt=prompts[i],
            answer=answer.text,
            finished=float(answer.finished),
            repetition=repetition(answer.text),
            tokens=answer.tokens,
            new_tokens=sum(index in new for index in answer.ids),
            original_answer=expected[i],
            nats=nats.get(i),
            bytes=len(expected[i].encode()) if i in nats else None,
        )
