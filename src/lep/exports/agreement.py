"""Whether a converted model has the probabilities and the answers of the original."""

from dataclasses import dataclass

import torch

from lep.checkpoint.pretrained import load_pretrained
from lep.errors import CheckpointError
from lep.exports.job import Job
from lep.exports.sample import prompts

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "q8_0": torch.float32}
TOLERANCE = {"f32": 0.02, "bf16": 0.02, "f16": 0.02, "q8_0": 0.5}  # nats
LIKELIEST, ANSWER_TOKENS, PROMPT_TOKENS = 10, 20, 100


@dataclass(frozen=True)
class Behaviour:
    """What a model does with `prompts`, lists of token ids.

    `likeliest` are the ids of the tokens with the highest probabilities after each token,
    `log_probabilities` those probabilities in nats. An answer ends before the first token that has
    a rival within twice the tolerance: what comes next may be another text.
    """

    prompts: list[list[int]]
    likeliest: list[list[list[int]]]
    log_probabilities: list[list[list[float]]]
    answers: list[list[int]]


@torch.inference_mode()
def behaviour(job: Job) -> Behaviour:
    """What transformers computes in float32 with the weights that are exported.

    The weights are rounded to the type of the export first: what it costs is no fault of the
    converter.
    """
    model = load_pretrained(job.source, DTYPES[job.type]).float().eval()
    texts = [ids[:PROMPT_TOKENS] for ids in prompts(job.tokenizer)]
    likeliest, values, answers = [], [], []
    for ids in texts:
        inputs = torch.tensor([ids], device=model.device)
        top = model(inputs).logits[0].log_softmax(-1).topk(LIKELIEST)
        likeliest.append(top.indices.tolist())
        values.append(top.values.tolist())
        answers.append(_answer(model, inputs, job.ends, TOLERANCE[job.type]))
    return Behaviour(texts, likeliest, values, answers)


def _answer(
    model: torch.nn.Module, inputs: torch.Tensor, ends: list[int], tolerance: float
) -> list[int]:
    """The greedy answer up to where it is a close call."""
    result = model.generate(  # type: ignore[operator]
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    answer: list[int] = []
    for index, logits in zip(result.sequences[0, inputs.shape[1] :], result.logits, strict=True):
        first, second = logits[0].log_softmax(-1).topk(2).values.tolist()
        if first - second < 2 * tolerance:
            break
        answer.append(int(index))
    return answer


def check_agreement(
    expected: Behaviour,
    values: list[list[list[float]]],
    answers: list[list[int]],
    kind: str,
    way_out: str,
) -> str:
    """How near log-probabilities and answers of a converted model are to the expected ones.

    Raises `CheckpointError` where they are further away than the tolerance of the type `kind`.
    """
    pairs = zip(expected.log_probabilities, values, strict=True)
    differences = torch.cat([(torch.tensor(a) - torch.tensor(b)).abs() for a, b in pairs])
    worst, limit = differences.max().item(), TOLERANCE[kind]
    if not worst <= limit:  # not a number either
        raise CheckpointError(
            f"the converted model gives other probabilities than transformers (log-probabilities "
            f"differ by up to {worst:.3f} nat, more than {limit}), nothing was written: {way_out}"
        )
    for prompt, answer, other in zip(expected.prompts, expected.answers, answers, strict=True):
        if other[: len(answer)] != answer:
            raise CheckpointError(
                f"the converted model continues the ids {prompt[-5:]} with {other[: len(answer)]}, "
                f"transformers with {answer}; nothing was written: {way_out}"
            )
    tokens, count = sum(map(len, expected.answers)), len(answers)
    return (
        f"log-probabilities within {worst:.4f} nat of transformers' at {len(differences):,} "
        f"positions, {tokens} tokens of {count} greedy answers equal"
    )
