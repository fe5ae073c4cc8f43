"""`Probe`: what an instruct model says and expects, and how far another one with another vocabulary is from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.corpus.prepare import unit_hash
from lep.corpus.read import Document
from lep.corpus.tasks import TaskItem
from lep.errors import CorpusError
from lep.evaluation.evaluate import task_records, text_records
from lep.evaluation.spoken import Spoken
from lep.inference.generate import answers
from lep.inference.likelihood import sequence_nats
from lep.inference.next_byte import divergence, first_bytes, next_byte_nats
from lep.settings import EvaluateSettings, SelectSettings

HALVES = ("choose", "report")


def half_of(key: str) -> str:
    """Which half of the material a document or prompt belongs to, by a fixed hash."""
    return HALVES[unit_hash("select/" + key) >= 0.5]


@dataclass(frozen=True)
class Probe:
    """Plain text, the original instruct model's own answers, and what it expected at each border of its tokens."""

    text: dict[str, list[Document]]
    copies: list[TaskItem]
    conversations: list[list[dict[str, Any]]]
    spoken: list[Spoken]  # under the original vocabulary
    expected: list[Tensor]  # log P of the next byte at each of `spoken.places`, (places, 257)
    settings: SelectSettings

    @classmethod
    def of(
        cls,
        model: Any,
        checkpoint: Checkpoint,
        text: dict[str, list[Document]],
        copies: list[TaskItem],
        prompts: list[list[dict[str, Any]]],
        settings: SelectSettings,
    ) -> "Probe":
        """Ask the original model. Raises `CorpusError` when it ends no answer by itself."""
        conversations = []
        for batch in answers(
            model,
            checkpoint.tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            label="own answers",
        ):
            for answer in batch:
                if answer.finished and answer.text:
                    said = {"role": "assistant", "content": answer.text}
                    conversations.append((answer.index, [*prompts[answer.index], said]))
        if not conversations:
            raise CorpusError(
                f"none of {len(prompts)} prompts got an answer that ends within {settings.max_new_tokens} tokens: "
                "give prompts that the instruct model can answer briefly"
            )
        ordered = [messages for _, messages in sorted(conversations, key=lambda pair: pair[0])]
        found = [(messages, Spoken.of(checkpoint, messages)) for messages in ordered]
        ordered = [messages for messages, said in found if said]
        spoken = [said for _, said in found if said]
        if not spoken:
            raise CorpusError(
                f"the chat template of {checkpoint.folder} changes every answer that becomes part of a "
                "conversation: choosing by the model's own answers is not possible, name a --method"
            )
        classes = first_bytes(
            checkpoint.vocabulary, checkpoint.shape(checkpoint.tables.names[-1])[0]
        )
        expected = next_byte_nats(
            model, classes, [(s.ids, list(s.places.values())) for s in spoken]
        )
        return cls(text, copies, ordered, spoken, expected, settings)

    def measure(self, model: Any, checkpoint: Checkpoint) -> list[dict[str, Any]]:
        """A record for each text window, answer and copy: nats, bytes, divergence from the original, its half."""
        settings = EvaluateSettings(batch_size=self.settings.batch_size)
        records = list(text_records(model, checkpoint, self.text, settings))
        records += self._answer_records(model, checkpoint)
        if self.copies:
            records += task_records(model, checkpoint, self.copies, settings)
        # sections of one document, `document#number`, stay together
        return [
            r | {"half": half_of(r["id"].rsplit("#", 1)[0] if "id" in r else r["question"])}
            for r in records
        ]

    def _answer_records(self, model: Any, checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
        made = [Spoken.of(checkpoint, messages) for messages in self.conversations]
        here = [now or then for now, then in zip(made, self.spoken, strict=True)]
        assert all(made), "the result has the instruct model's template"
        nats = sequence_nats(
            model, [(s.ids, s.start) for s in here], self.settings.batch_size, "own answers, bits"
        )
        ends = sequence_nats(
            model, [(s.ids, s.stop) for s in here], self.settings.batch_size, "ends of turn"
        )
        shared = [
            sorted(then.places.keys() & now.places.keys())
            for then, now in zip(self.spoken, here, strict=True)
        ]
        classes = first_bytes(
            checkpoint.vocabulary, checkpoint.shape(checkpoint.tables.names[-1])[0]
        )
        found = next_byte_nats(
            model,
            classes,
            [
                (s.ids, [s.places[b] for b in borders])
                for s, borders in zip(here, shared, strict=True)
            ],
        )
        for index, (then, borders) in enumerate(zip(self.spoken, shared, strict=True)):
            rows = [list(then.places).index(border) for border in borders]
            messages = self.conversations[index]
            yield {
                "kind": "answer",
                "question": messages[-2]["content"],
                "answer": messages[-1]["content"],
                "nats": nats[index],
                "end_nats": ends[index],
                "bytes": len(messages[-1]["content"].encode()),
                "divergence_nats": divergence(self.expected[index][rows], found[index])
                .sum()
                .item(),
                "borders": len(borders),
                "same_cuts": then.places.keys() == here[index].places.keys(),
            }
