"""How surprising a model's answers are to the model itself, beside the questions that it reads.

What a model writes is more predictable to it than what people write: it takes likely tokens, and
knows the question. Where an answer is not, sampling has left what the model can say. No threshold
is tuned: the questions give it, for each script.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lep.checkpoint.reader import Checkpoint
from lep.corpus.language import dominant_script
from lep.inference.generate import Answer
from lep.inference.likelihood import text_nats

MOST_CHARACTERS = 2_000  # of a text that is measured
QUESTIONS = 64  # of a script, at most, whose median counts


@dataclass(frozen=True)
class Surprise:
    """The scripts of prompts, and a model's median nats per byte of their last questions by script.

    Of many questions, the median is that of a sample, taken at equal distances.
    """

    scripts: list[str | None]  # of each prompt
    medians: dict[str | None, float]

    @classmethod
    def of(
        cls,
        model: Any,
        checkpoint: Checkpoint,
        prompts: Sequence[list[dict[str, Any]]],
        batch_size: int,
    ) -> "Surprise":
        texts = [prompt[-1]["content"] for prompt in prompts]
        scripts, by_script = list(map(dominant_script, texts)), defaultdict(list)
        for script, text in zip(scripts, texts, strict=True):
            by_script[script].append(text)
        medians = {}
        for script, each in by_script.items():
            sample = each[:: math.ceil(len(each) / QUESTIONS)]
            nats = nats_per_byte(model, checkpoint.tokenizer, sample, batch_size, "questions")
            medians[script] = statistics.median(nats)
        return cls(scripts, medians)

    def measured(self, answers: Sequence[Answer]) -> list[Answer]:
        """The answers with nats per byte given the prompt, as a share of their script's median."""
        return [replace(answer, surprise=self._share(answer)) for answer in answers]

    def _share(self, answer: Answer) -> float | None:
        """None where there is nothing to compare: no text, or likelihoods that are not numbers."""
        size = len(answer.text.encode())
        median = self.medians[self.scripts[answer.index]]
        return share_of(median, answer.nats / size) if size else None


def nats_per_byte(
    model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int, label: str
) -> list[float]:
    """-log p of the beginning of each text, as text without a template, by its bytes of UTF-8."""
    texts = [text[:MOST_CHARACTERS] for text in texts]
    nats = text_nats(model, tokenizer, texts, batch_size, label)
    return [loss / max(1, len(text.encode())) for text, (_, loss) in zip(texts, nats, strict=True)]


def share_of(median: float, value: float) -> float | None:
    """A surprise as a share of the median; None where these are not numbers to compare."""
    share = value / median if median else math.nan
    return share if math.isfinite(share) else None
