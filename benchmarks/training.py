"""Embedding training: seconds per step and memory of four ways, each in its own process.

    python benchmarks/training.py [--steps 8] [--precision auto] \\
        [--vocabulary 128000 --new 20000 --hidden 512]

`full` trains every parameter with the stock Trainer, `plain` uses the stock Trainer with a frozen
body, `embeddings` and `new_rows` are ours. All compute in float32, or in bf16 if the hardware has
it (`--precision`); ours then hold the body in bf16, as `lep pretrain` does. The ways alternate.
Seconds are medians over the steps of all rounds, without the first step of each. Peak memory is
that of the process with its model, minus its memory before the model (on a GPU: what torch
allocated).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from lep.settings import PretrainSettings
from lep.training.data import collate
from lep.training.loss import chunk_loss
from lep.training.trainable_rows import split_tables, whole_tables
from lep.training.trainer import TablesTrainer, uses_bf16

BLOCK, HEAD = 1_024, 64
WAYS = ("full", "plain", "embeddings", "new_rows")


class Clock(TrainerCallback):
    """The time at which each step ended, in seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ends.append(time.perf_counter())


def peak_resident() -> int:
    """The peak memory of this process so far, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def model_of(a: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=a.vocabulary + a.new,
            hidden_size=a.hidden,
            intermediate_size=4 * a.hidden,
            num_hidden_layers=a.layers,
            num_attention_heads=a.hidden // HEAD,
            num_key_value_heads=a.hidden // HEAD,
            max_position_embeddings=BLOCK,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )


def one(a: argparse.Namespace) -> dict[str, float]:
    """Train for some steps in one way; returns seconds, bytes and trained parameters."""
    before = peak_resident()
    model, tables = model_of(a), a.way not in ("full", "plain")
    bf16 = uses_bf16(PretrainSettings(tokens=a.tokens, learning_rate=1e-4, precision=a.precision))
    if bf16 and tables:
        model = model.bfloat16()
    if a.way != "full":
        model.requires_grad_(False)
    if a.way == "new_rows":
        rows = torch.arange(a.vocabulary, a.vocabulary + a.new)
        split_tables(model, {"input": rows, "output": rows})
    elif a.way == "embeddings":
        whole_tables(model, ("input", "output"))
    elif a.way == "plain":
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.requires_grad_(True)
    ids = torch.randint(
        0,
        a.vocabulary + a.new,
        (a.tokens // BLOCK, BLOCK),
        generator=torch.Generator().manual_seed(1),
    )
    blocks = [{"input_ids": row, "lengths": [BLOCK]} for row in ids] * a.steps
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=a.steps,
            per_device_train_batch_size=len(ids),
            learning_rate=1e-4,
            weight_decay=0.1,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            bf16=bf16,
        )
        clock = Clock()
        trainer = (TablesTrainer if tables else Trainer)(
            model=model,
            args=arguments,
            train_dataset=blocks,
            data_collator=collate,
            callbacks=[clock],
        )
        if tables:
            chunk_loss(trainer)
        trainer.train()
    state = [
        value
        for moments in trainer.optimizer.state.values()
        for value in moments.values()
        if torch.is_tensor(value)
    ]
    peak = (
        torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident() - before
    )
    steps = [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)]
    return {
        "step": statistics.median(steps),
        "peak": peak,
        "optimizer": sum(t.numel() * t.element_size() for t in state),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (
        ("vocabulary", 128_000),
        ("new", 20_000),
        ("hidden", 512),
        ("layers", 2),
        ("tokens", 4_096),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=("auto", "bf16", "float32"), default="auto")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--way", choices=WAYS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(one(arguments)))
        return
    results: dict[str, list[dict[str, float]]] = {way: [] for way in arguments.ways}
    for _ in range(arguments.rounds):
        for way in arguments.ways:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            output = subprocess.run(
                command, check=True, capture_output=True, text=True, encoding="utf-8"
            ).stdout
            results[way].append(json.loads(output.splitlines()[-1]))
            print(way, results[way][-1], flush=True)
    reference = "plain" if "plain" in results else arguments.ways[0]
    seconds = {way: statistics.median(r["step"] for r in runs) for way, runs in results.items()}
    peaks = {way: max(r["peak"] for r in runs) for way, runs in results.items()}
    print(
        f"\n| way | trained | s a step | tokens/s | speed, {reference} = 1 | peak GB "
        f"| memory, {reference} = 1 | optimizer GB |\n" + "|---" * 8 + "|"
    )
    for way, runs in results.items():
        speed, memory = seconds[reference] / seconds[way], peaks[way] / peaks[reference]
        rate = arguments.tokens / seconds[way]
        print(
            f"| {way} | {runs[0]['trained'] / 1e6:.1f}M | {seconds[way]:.2f} | {rate:,.0f} "
            f"| {speed:.2f} | {peaks[way] / 1e9:.2f} | {memory:.2f} "
            f"| {runs[0]['optimizer'] / 1e9:.2f} |"
        )


if __name__ == "__main__":
    main()
