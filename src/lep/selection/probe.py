"""The original model's own answers, and how far each candidate is from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.corpus.prepare import unit_hash
from lep.errors import CorpusError
from lep.evaluation.records import AnswerRecord, TaskRecord, TextRecord
from lep.evaluation.score import Material, task_records, text_records
from lep.evaluation.spans import AnswerSpan, Messages, greedy_answers
from lep.inference.likelihood import sequence_nats
from lep.inference.next_byte import divergence, first_bytes, next_byte_nats
from lep.settings import SelectSettings

HALVES = ("choose", "report")
Record = TextRecord | AnswerRecord | TaskRecord


def half_of(key: str) -> str:
    """The half that a document or prompt belongs to, by a fixed hash."""
    return HALVES[unit_hash("select/" + key) >= 0.5]


def record_half(record: Record) -> str:
    """The half of a record; the windows of a document stay together."""
    if isinstance(record, TextRecord):
        return half_of(record.group or record.id)
    return half_of(record.question)


@dataclass(frozen=True)
class Probe:
    """The original instruct model's own answers, and what it expected at each token border."""

    material: Material
    conversations: list[Messages]
    spans: list[AnswerSpan]  # under the original vocabulary
    expected: list[Tensor]  # log P of the next byte at each border of a span, (borders, 257)
    settings: SelectSettings

    @classmethod
    def of(
        cls, model: Any, checkpoint: Checkpoint, material: Material, settings: SelectSettings
    ) -> "Probe":
        """Ask the original model. Raises `CorpusError` when none of its answers can be used."""
        prompts, most = material.prompts, settings.max_new_tokens
        size = settings.batch_size
        answers = greedy_answers(model, checkpoint, prompts, most, size, label="own answers")
        answered = [
            [*messages, {"role": "assistant", "content": answer.text}]
            for messages, answer in zip(prompts, answers, strict=True)
            if answer.finished and answer.text
        ]
        if not answered:
            raise CorpusError(
                f"none of {len(prompts)} prompts got an answer that ends within {most} tokens: "
                "give prompts that the instruct model can answer briefly"
            )
        pairs = [(each, span) for each in answered if (span := AnswerSpan.of(checkpoint, each))]
        if not pairs:
            raise CorpusError(
                f"the chat template of {checkpoint.folder} changes every answer that becomes part "
                "of a conversation, so its answers cannot decide: name a --method"
            )
        conversations, spans = map(list, zip(*pairs, strict=True))
        positions = [list(span.borders.values()) for span in spans]
        expected = _next_bytes(model, checkpoint, spans, positions)
        return cls(material, conversations, spans, expected, settings)

    def measure(self, model: Any, checkpoint: Checkpoint) -> list[Record]:
        """A record of each text window, answer and copy under a candidate."""
        records: list[Record] = list(text_records(model, checkpoint, self.material))
        records += self._answer_records(model, checkpoint)
        if self.material.items:
            records += task_records(model, checkpoint, self.material)
        return records

    def _answer_records(self, model: Any, checkpoint: Checkpoint) -> Iterator[AnswerRecord]:
        spans = []
        for messages in self.conversations:
            span = AnswerSpan.of(checkpoint, messages)
            assert span is not None, "the result has the instruct model's template"
            spans.append(span)
        size = self.settings.batch_size
        nats = sequence_nats(model, [(s.ids, s.start) for s in spans], size, "own answers, bits")
        ends = sequence_nats(model, [(s.ids, s.stop) for s in spans], size, "ends of turn")
        pairs = list(zip(self.spans, spans, strict=True))
        common = [sorted(then.borders.keys() & now.borders.keys()) for then, now in pairs]
        positions = [[s.borders[b] for b in each] for s, each in zip(spans, common, strict=True)]
        expected = _next_bytes(model, checkpoint, spans, positions)
        for i, (then, now) in enumerate(pairs):
            rows = [list(then.borders).index(border) for border in common[i]]
            question, answer = (message["content"] for message in self.conversations[i][-2:])
            yield AnswerRecord(
                question=question,
                answer=answer,
                nats=nats[i],
                end_nats=ends[i],
                bytes=len(answer.encode()),
                divergence_nats=divergence(self.expected[i][rows], expected[i]).sum().item(),
                borders=len(rows),
                same_cuts=then.borders.keys() == now.borders.keys(),
            )


def _next_bytes(
    model: Any, checkpoint: Checkpoint, spans: list[AnswerSpan], positions: list[list[int]]
) -> list[Tensor]:
    rows = checkpoint.shape(checkpoint.tables.names[-1])[0]
    classes = first_bytes(checkpoint.vocabulary, rows)
    sequences = [(span.ids, each) for span, each in zip(spans, positions, strict=True)]
    return next_byte_nats(model, classes, sequences)
