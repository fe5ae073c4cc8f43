"""A small random body for a real tokenizer: transformers and llama.cpp continue texts with it.

Two layers, 64 wide, bf16, of the architecture that the tokenizer comes from, with a row for each
token. Weights have a standard deviation of 0.08, which nearly keeps the variance from layer to
layer: logits have one of 0.64, and each prompt another answer. Larger ones would differ by more
than `NATS` because llama.cpp rounds activations to bf16, smaller ones would all be alike.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from operator import eq
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

HIDDEN, LAYERS, HEADS, CONTEXT = 64, 2, 2, 1024
WEIGHTS = 0.08  # standard deviation
TOKENS, ALTERNATIVES = 8, 20  # of an answer, and of its first token
NATS = 0.02  # allowed between log-probabilities
CLEAR = 2 * NATS  # between the two likeliest tokens: then allowed differences change no answer
SECONDS = 300


@dataclass(frozen=True)
class Comparison:
    """Two programs on the same prompts."""

    prompts: int
    ids_equal: int
    nats: float  # largest difference of a log-probability of the first token
    clear_tokens: int  # of greedy answers, up to the first step with two that are nearly as likely
    tokens_equal: int  # of these


def save_body(folder: Path, kind: str, rows: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a random model of the type `kind` beside its tokenizer."""
    torch.manual_seed(0)
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")
    }
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes |= {"max_position_embeddings": CONTEXT, "vocab_size": rows}
    if kind != "gpt2":
        sizes |= {"intermediate_size": 2 * HIDDEN, "num_key_value_heads": 1}
        sizes |= {"head_dim": HIDDEN // HEADS}
    if kind == "gemma3_text":
        sizes |= {"query_pre_attn_scalar": HIDDEN // HEADS}
    config = AutoConfig.for_model(kind, initializer_range=WEIGHTS, **sizes, **special)
    model = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder)


def compare(
    folder: Path, file: Path, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> Comparison:
    """llama.cpp with the exported file, and transformers (float32) with the folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids_equal = clear = equal = 0
    nats = 0.0
    for prompt, other in zip(prompts, _by_llama_cpp(file, prompts), strict=True):
        ids = tokenizer(prompt)["input_ids"]
        ids_equal += ids == other["prompt"]
        answer, steps = _greedy(model, ids)
        values = steps[other["step"]]
        nats = max(nats, *(abs(float(values[i]) - value) for i, value in other["first"]))
        length = _clear_tokens(steps)
        clear += length
        equal += sum(map(eq, answer[:length], other["answer"]))
    return Comparison(len(prompts), ids_equal, nats, clear, equal)


def _clear_tokens(steps: list[torch.Tensor]) -> int:
    """How many tokens come before the first two that are nearly as likely."""
    best = torch.stack(steps).topk(2).values
    clear = (best[:, 0] - best[:, 1] > CLEAR).tolist()
    return clear.index(False) if False in clear else len(clear)


@torch.no_grad()
def _greedy(model: PreTrainedModel, ids: list[int]) -> tuple[list[int], list[torch.Tensor]]:
    """The likeliest next tokens, and log-probabilities (vocabulary,) at each step."""
    answer, steps = list[int](), list[torch.Tensor]()
    for _ in range(TOKENS):
        logits = model(torch.tensor([ids + answer]), logits_to_keep=1).logits[0, -1]
        steps.append(logits.log_softmax(-1))
        answer.append(int(logits.argmax()))
    return answer, steps


def _by_llama_cpp(file: Path, prompts: list[str]) -> list[dict]:
    with tempfile.TemporaryDirectory() as temporary:
        result = Path(temporary) / "answers.json"
        script = Path(__file__).with_name("llama_cpp_answers.py")
        request = {"prompts": prompts, "tokens": TOKENS, "alternatives": ALTERNATIVES}
        process = subprocess.run(
            [sys.executable, str(script), str(file), str(result)],
            input=json.dumps(request),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
        )
        if not result.exists():
            raise RuntimeError(f"llama.cpp did not answer:\n{process.stderr[-2000:]}")
        return json.loads(result.read_text(encoding="utf-8"))
