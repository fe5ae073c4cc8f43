"""How fast a model answers: our batches beside a plain loop around transformers' `generate`.

    python benchmarks/generation.py MODEL --prompts FILE [--count 64] [--batch 32] [--tokens 96] \\
        [--rounds 2]

The plain loop answers the prompts in their order, so many at once, in float32. Ours sorts them by
length, lets rows that have ended leave a batch, and on a CPU packs the weights
(`lep.inference.packed`), in bf16 where the CPU is faster at it. Greedy; both are given the same
prompts, and alternate. Printed are seconds and characters a second, and how many answers are equal:
different batches round differently.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lep.corpus.read import question, read_messages
from lep.evaluation.spans import greedy_answers
from lep.inference.generate import end_tokens
from lep.inference.models import load_model, load_writer
from lep.tokenizer.chat import chat_ids

Prompts = list[list[dict[str, Any]]]


@torch.inference_mode()
def plain(model: Any, tokenizer: Any, prompts: Prompts, batch: int, tokens: int) -> list[str]:
    """The answers of a plain loop."""
    ends, texts = end_tokens(model), []
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends)
    options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": pad}
    for start in range(0, len(prompts), batch):
        rows = [chat_ids(tokenizer, each, ask=True) for each in prompts[start : start + batch]]
        ids = pad_sequence([torch.tensor(row) for row in rows], True, pad, "left")
        mask = pad_sequence(
            [torch.ones(len(row), dtype=torch.int64) for row in rows], True, 0, "left"
        )
        inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        written = model.generate(**inputs, **options)[:, ids.shape[1] :].tolist()
        kept = [[*takewhile(lambda token: token not in ends, row)] for row in written]
        texts += [tokenizer.decode(row, skip_special_tokens=True).strip() for row in kept]
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--prompts", required=True, help="jsonl with messages")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    a = parser.parse_args()
    prompts = [question(record["messages"]) for record in read_messages(a.prompts)][: a.count]
    simple, checkpoint = load_model(a.model)
    packed, _ = load_writer(a.model)

    def ours() -> list[str]:
        found = greedy_answers(packed, checkpoint, prompts, a.tokens, a.batch, label="answers")
        return [answer.text for answer in found]

    ways: dict[str, Callable[[], list[str]]] = {
        "plain": lambda: plain(simple, checkpoint.tokenizer, prompts, a.batch, a.tokens),
        "ours": ours,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    texts: dict[str, list[str]] = {}
    for _ in range(a.rounds):
        for way, answer in ways.items():
            began = time.perf_counter()
            texts[way] = answer()
            seconds[way].append(time.perf_counter() - began)
    print("| way | seconds | characters/s | speed, plain = 1 |\n|---|---|---|---|")
    usual = statistics.median(seconds["plain"])
    for way, times in seconds.items():
        middle, written = statistics.median(times), sum(map(len, texts[way]))
        print(f"| {way} | {middle:.1f} | {written / middle:.1f} | {usual / middle:.2f} |")
    equal = sum(map(str.__eq__, texts["plain"], texts["ours"]))
    print(f"{equal} of {len(prompts)} answers are equal")


if __name__ == "__main__":
    main()
