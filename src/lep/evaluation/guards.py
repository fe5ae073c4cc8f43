"""What an adapted model still does as the original did: on the same prompts, beside the original's own answers."""

from typing import Any

from lep.benchmark.metrics import repetition
from lep.checkpoint.reader import Checkpoint
from lep.errors import CorpusError
from lep.evaluation.spoken import answer_nats
from lep.inference.generate import Answer, answers
from lep.settings import EvaluateSettings
from lep.tokenizer.vocabulary import Vocabulary

Messages = list[dict[str, Any]]


def prompt_records(
    model: Any,
    checkpoint: Checkpoint,
    prompts: list[Messages],
    original: list[str] | None,
    known: Vocabulary,
    settings: EvaluateSettings,
) -> list[dict[str, Any]]:
    """Greedy answers to the prompts, and the nats of the original model's answers to them.

    `original` holds those answers, empty where there was none that ended; without them the model is the original
    itself. `known` is the original's vocabulary. Raises `CorpusError` when no answer of the original ends.
    """
    tokenizer = checkpoint.tokenizer
    given: dict[int, Answer] = {}
    for batch in answers(
        model,
        tokenizer,
        prompts,
        max_new_tokens=settings.answer_tokens,
        batch_size=settings.batch_size,
        label="prompts",
    ):
        given |= {answer.index: answer for answer in batch}
    said = [given[i].text for i in range(len(prompts))]
    # an answer that was cut off at the length limit is no whole turn
    expected = (
        [a.text if a.finished else "" for _, a in sorted(given.items())]
        if original is None
        else original
    )
    if not any(expected):
        raise CorpusError(
            f"the original model ends none of its answers to {len(prompts)} prompts within {settings.answer_tokens} "
            "tokens: give prompts that it can answer briefly"
        )
    answered = [i for i, text in enumerate(expected) if text]
    spoken = [[*prompts[i], {"role": "assistant", "content": expected[i]}] for i in answered]
    found = answer_nats(model, checkpoint, spoken, settings.batch_size, "original answers")
    nats = {answered[place]: loss for place, loss in found.items()}
    old = {token.content for token in known.tokens if token}
    tokens = checkpoint.vocabulary.tokens

    def new(index: int) -> bool:
        token = tokens[index]
        return token is not None and token.content not in old

    return [
        {
            "kind": "prompt",
            "language": "prompts",
            "id": str(i),
            "prompt": prompt,
            "answer": said[i],
            "finished": float(given[i].finished),
            "repetition": repetition(said[i]),
            "tokens": given[i].tokens,
            "new_tokens": sum(map(new, given[i].ids)),
            "original_answer": expected[i],
        }
        | ({"nats": nats[i], "bytes": len(expected[i].encode())} if i in nats else {})
        for i, prompt in enumerate(prompts)
    ]
