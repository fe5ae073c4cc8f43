"""Answers to the same prompts beside the original model's: what an adapted model still does."""

from collections.abc import Iterator
from typing import Any

from lep.benchmark.metrics import repetition
from lep.checkpoint.reader import Checkpoint
from lep.errors import CorpusError
from lep.evaluation.records import PromptRecord
from lep.evaluation.score import Material
from lep.evaluation.spans import answer_nats, greedy_answers
from lep.tokenizer.vocabulary import Vocabulary


def prompt_records(
    model: Any,
    checkpoint: Checkpoint,
    material: Material,
    original: Vocabulary,
    expected: list[str] | None,
) -> Iterator[PromptRecord]:
    """Greedy answers to the prompts, and the nats of the original model's answers to them.

    `expected` are the original model's answers, empty where unfinished; without them the model is
    the original. Raises `CorpusError` when none of them ended within `answer_tokens`.
    """
    prompts, size = material.prompts, material.settings.batch_size
    most = material.settings.answer_tokens
    answers = greedy_answers(model, checkpoint, prompts, most, size, label="prompts")
    if expected is None:  # an answer that was cut off at the length limit is no whole turn
        expected = [answer.text if answer.finished else "" for answer in answers]
    if not any(expected):
        raise CorpusError(
            f"the original model ends none of its answers to {len(prompts)} prompts within "
            f"{most} tokens: give prompts that it can answer briefly"
        )
    ended = [i for i, text in enumerate(expected) if text]
    turns = [[*prompts[i], {"role": "assistant", "content": expected[i]}] for i in ended]
    losses = answer_nats(model, checkpoint, turns, size, "original answers")
    nats = {ended[k]: loss for k, loss in losses.items()}
    known = {token.content for token in original.tokens if token}
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
