"""MLX in a process of its own; `lep.exports.apart` starts it.

python -m lep.exports.run_mlx convert MODEL FOLDER RESULT < QUESTION
python -m lep.exports.run_mlx read FOLDER RESULT < QUESTION
"""

import json
import sys
from typing import Any

from lep.exports.apart import answer

TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "q8_0": "bfloat16"}
APART, COMPOSED = "e\N{COMBINING ACUTE ACCENT}", "\N{LATIN SMALL LETTER E WITH ACUTE}"


def convert(model: str, folder: str, question: dict[str, Any]) -> bool:
    """Convert a model; 8 bits are in groups of 64 values with a scale."""
    from mlx_lm.convert import convert as mlx_convert

    kind = question["type"]
    mlx_convert(model, folder, quantize=kind == "q8_0", q_bits=8, dtype=TYPES[kind])
    return True


def read(folder: str, question: dict[str, Any]) -> dict[str, Any]:
    """Ids of texts, log-probabilities of tokens and greedy answers, as mlx-lm's users get them.

    The arithmetic is float32, so that only the weights' own type makes a difference.
    """
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    model, tokenizer = load(folder)  # type: ignore[misc]
    model.set_dtype(mx.float32)
    values, answers, rows = [], [], 0
    for ids, likeliest in zip(question["prompts"], question["likeliest"], strict=True):
        logits = model(mx.array([ids]))[0]
        scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        rows = scores.shape[-1]
        values.append(mx.take_along_axis(scores, mx.array(likeliest), axis=-1).tolist())
        steps = generate_step(mx.array(ids), model, max_tokens=question["tokens"])
        answers.append(to_end((int(token) for token, _ in steps), tokenizer.eos_token_ids))
    normalizer = tokenizer.backend_tokenizer.normalizer
    return {
        "ids": [tokenizer.encode(t, add_special_tokens=add) for t, add in question["texts"]],
        "composes": normalizer is not None and normalizer.normalize_str(APART) == COMPOSED,
        "rows": rows,
        "ends": sorted(tokenizer.eos_token_ids),
        "log_probabilities": values,
        "answers": answers,
    }


def to_end(tokens: Any, ends: set[int]) -> list[int]:
    """Tokens up to the first one that ends an answer."""
    kept = []
    for token in tokens:
        kept.append(token)
        if token in ends:
            break
    return kept


def _main(verb: str, *arguments: str) -> None:
    *paths, result = arguments
    verbs: dict[str, Any] = {"convert": convert, "read": read}
    answer(result, verbs[verb](*paths, json.load(sys.stdin)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
