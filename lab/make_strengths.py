"""Train instruct models of three strengths: tuning moves them by three different distances.

    python lab/make_strengths.py --data DATA [--output runs/lab/strengths]

How far tuning moves a model decides how its embeddings can be propagated. The lab pair itself is a
strong case (tuning moved its embedding rows by 55 and 84%). Here the *base* model has seen
instructions, as current base models have: it is the lab pair's instruct model, trained further on
half plain text. Tuning on tasks (and 15% plain text) at three learning rates gives `weak`, `middle`
and `strong`, which all solve the tasks. The script prints how far each has moved. Finished models
are not trained again.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from make_pair import (
    BLOCK,
    LANGUAGES,
    SHARES,
    TUNING_CHARACTERS,
    chat_tokenizer,
    publish,
    split_corpus,
    train,
    tuning_blocks,
    tuning_items,
)
from transformers import LlamaForCausalLM, set_seed

from lep.tokenizer.load import load_tokenizer

PAIR = Path(__file__).parent / "pair"
SEED = 40
MIXED_TOKENS, MIXED_RATE, TUNING_TOKENS = 4_000_000, 1e-3, 1_000_000
PLAIN_SHARE = 0.23  # of the samples: about half of the tokens
TUNING_PLAIN_SHARE = 0.05  # of the samples: about 15% of the tokens, as in the lab pair
RATES = {"weak": 2e-4, "middle": 1e-3, "strong": 4e-3}


def moved(base: Path, instruct: Path) -> dict[str, float]:
    """|instruct - base| / |base| for each table without special rows, and for the body."""
    special = set(load_tokenizer(base).all_special_ids) | {3, 4, 5, 6}
    before, after = (
        LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (base, instruct)
    )
    parts = ("input", "output", "body")
    groups: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {part: [] for part in parts}
    for name, tensor in before.items():
        part = {"model.embed_tokens.weight": "input", "lm_head.weight": "output"}.get(name, "body")
        rows = (
            [i for i in range(len(tensor)) if i not in special] if part != "body" else slice(None)
        )
        groups[part].append((tensor[rows], after[name][rows]))
    return {
        part: float(
            sum((b - a).square().sum() for a, b in pairs) ** 0.5
            / sum(a.square().sum() for a, _ in pairs) ** 0.5
        )
        for part, pairs in groups.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train/en and train/ru"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/lab/strengths"))
    parser.add_argument("--only", nargs="+", default=["base", *RATES], help="models to train")
    arguments = parser.parse_args()
    output = arguments.output
    splits = {
        language: split_corpus(arguments.data, language, TUNING_CHARACTERS)
        for language in LANGUAGES
    }
    tokenizer, generation = chat_tokenizer(PAIR / "base")
    plain_tokenizer = load_tokenizer(PAIR / "base")
    for name in ["base", *RATES]:
        if name not in arguments.only or (output / name).exists():
            continue
        set_seed(SEED)
        mixed = name == "base"
        rate, tokens = (MIXED_RATE, MIXED_TOKENS) if mixed else (RATES[name], TUNING_TOKENS)
        model = LlamaForCausalLM.from_pretrained(
            PAIR / "instruct" if mixed else output / "base", dtype=torch.float32
        )
        items = tuning_items(splits, SEED + mixed, 0.6 if mixed else 0.5, SHARES)
        rng = random.Random(SEED + mixed)
        blocks = tuning_blocks(
            splits, tokenizer, tokens, items, rng, PLAIN_SHARE if mixed else TUNING_PLAIN_SHARE
        )
        seconds = train(
            model, blocks, output / "work" / name, learning_rate=rate, weight_decay=0.0, bf16=False
        )
        if not mixed:
            model.generation_config = generation
        facts = {
            "training_tokens": len(blocks) * BLOCK,
            "seconds": round(seconds),
            "learning_rate": rate,
        }
        publish(model, plain_tokenizer if mixed else tokenizer, output / name, facts)
    for name in RATES:
        if (output / name).exists():
            shares = moved(output / "base", output / name)
            print(name, json.dumps({part: round(share, 3) for part, share in shares.items()}))


if __name__ == "__main__":
    main()
