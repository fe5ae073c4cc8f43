"""Embedding training: seconds per step and memory of four ways, each in its own process.

    python benchmarks/training.py [--steps 8] [--precision auto] \\
        [--vocabulary 128000 --new 20000 --hidden 512 | --model FOLDER --new 4096] [--block 1024]

`full` trains every parameter with the stock Trainer, `plain` uses the stock Trainer with a frozen
body, `embeddings` and `new_rows` are ours. All compute in float32, or in bf16 if the hardware has
it (`--precision`); ours then hold the body in bf16, as `lep pretrain` does. The ways alternate.
The model is random, or that of a folder with new rows. The floor is the time of the products of
matrices that a way cannot do without, each measured alone in the same process after the steps;
with `--peak` in TFLOP/s, their operations are also given as a share of it (MFU).
Seconds are medians over the steps of all rounds, without the first step of each. Peak memory is
that of the process with its model, minus its memory before the model (on a GPU: what torch
allocated); beside it what `lep run --dry-run` plans.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lep.pipeline.shape import Shape, training_memory
from lep.settings import PretrainSettings
from lep.training.data import collate
from lep.training.loss import chunk_loss
from lep.training.trainable_rows import split_tables, whole_tables
from lep.training.trainer import TablesTrainer, uses_bf16

HEAD, HEAD_TOKENS, TIMES = 64, 256, 5
WAYS = ("full", "plain", "embeddings", "new_rows")
Product = tuple[str, int, int, int]  # of (rows, inner) and (inner, columns); its kind first


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


def model_of(a: argparse.Namespace) -> PreTrainedModel:
    torch.manual_seed(0)
    if a.model:
        model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
        model.config.use_cache = False
        model.resize_token_embeddings(len(model.get_input_embeddings().weight) + a.new)
        return model
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=a.vocabulary + a.new,
            hidden_size=a.hidden,
            intermediate_size=a.intermediate or 4 * a.hidden,
            num_hidden_layers=a.layers,
            num_attention_heads=a.hidden // HEAD,
            num_key_value_heads=a.kv_heads or a.hidden // HEAD,
            max_position_embeddings=a.block,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )


def products(model: PreTrainedModel, way: str, tokens: int, new: int) -> Counter[Product]:
    """The products of matrices that a step cannot do without, and how often.

    Each weight of the body is multiplied forward and for the gradient of what it multiplies; once
    more for its own where it trains. So is the head, of which only new rows train in `new_rows`.
    """
    head, config = model.get_output_embeddings(), model.config
    found = Counter[Product]()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            outputs, inputs = module.out_features, module.in_features
            found += Counter(_of_weight(tokens, outputs, inputs, outputs if way == "full" else 0))
    trained = new if way == "new_rows" else config.vocab_size
    parts = _of_weight(HEAD_TOKENS, config.vocab_size, config.hidden_size, trained)
    for product in parts:
        found[product] += math.ceil(tokens / HEAD_TOKENS)
    return found


def _of_weight(tokens: int, outputs: int, inputs: int, trained: int) -> list[Product]:
    """Of a (outputs, inputs) weight: forward, for what it multiplies, and for its trained rows."""
    own = [("weight", trained, tokens, inputs)] if trained else []
    return [("forward", tokens, inputs, outputs), ("states", tokens, outputs, inputs), *own]


def seconds_of(product: Product, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of a product by itself, with its factors as they lie in memory: the best of some."""
    kind, rows, inner, columns = product
    left = torch.randn(inner, rows).T if kind == "weight" else torch.randn(rows, inner)
    right = torch.randn(columns, inner).T if kind == "forward" else torch.randn(inner, columns)
    left, right, times = left.to(device, dtype), right.to(device, dtype), []
    for _ in range(TIMES):
        began = time.perf_counter()
        float((left @ right)[0, 0])
        times.append(time.perf_counter() - began)
    return min(times)


def planned(a: argparse.Namespace, model: PreTrainedModel, width: int) -> float:
    """Bytes that `lep.pipeline.forecast` plans for a training of tables."""
    config = model.config
    tables = 1 if config.tie_word_embeddings else 2
    table = config.vocab_size * config.hidden_size
    parameters = sum(p.numel() for p in model.get_decoder().parameters())
    layers, inner = config.num_hidden_layers, config.intermediate_size
    sizes = (config.vocab_size, config.hidden_size, tables, layers, inner)
    shape = Shape(parameters - table, *sizes, cache=0, plain=True, ids=config.vocab_size)
    trained = a.new if a.way == "new_rows" else config.vocab_size
    on_cpu = not torch.cuda.is_available()
    options = {"width": width, "on_cpu": on_cpu}
    return sum(training_memory(shape, config.vocab_size, trained, a.tokens, **options).values())


def one(a: argparse.Namespace) -> dict[str, float]:
    """Train for some steps in one way; returns seconds, bytes and trained parameters."""
    before = peak_resident()
    model, tables = model_of(a), a.way not in ("full", "plain")
    plan = 0.0
    a.vocabulary = model.config.vocab_size - a.new
    bf16 = uses_bf16(PretrainSettings(tokens=a.tokens, learning_rate=1e-4, precision=a.precision))
    if bf16 and tables:
        model = model.bfloat16()
    if tables:
        plan = planned(a, model, 2 if bf16 else 4)
    if a.way != "full":
        model.requires_grad_(False)
    kinds = ("input",) if model.config.tie_word_embeddings else ("input", "output")
    if a.way == "new_rows":
        rows = torch.arange(a.vocabulary, a.vocabulary + a.new)
        split_tables(model, dict.fromkeys(kinds, rows))
    elif a.way == "embeddings":
        whole_tables(model, kinds)
    elif a.way == "plain":
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.requires_grad_(True)
    ids = torch.randint(
        0,
        a.vocabulary + a.new,
        (a.tokens // a.block, a.block),
        generator=torch.Generator().manual_seed(1),
    )
    blocks = [{"input_ids": row, "lengths": [a.block]} for row in ids] * a.steps
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
    dtype = torch.bfloat16 if bf16 else torch.float32
    needed = products(model, a.way, ids.numel(), a.new)
    return {
        "step": statistics.median(steps),
        "floor": sum(n * seconds_of(p, model.device, dtype) for p, n in needed.items()),
        "operations": sum(2 * n * math.prod(p[1:]) for p, n in needed.items()),
        "peak": peak,
        "plan": plan,
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
        ("block", 1_024),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", help="a folder")
    parser.add_argument("--kv-heads", type=int, help="default: one for each head")
    parser.add_argument("--intermediate", type=int, help="default: four times the hidden size")
    parser.add_argument("--peak", type=float, help="of the device, in TFLOP/s")
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
        f"\n| way | trained | s a step | of the floor | MFU | tokens/s | speed, {reference} = 1 "
        f"| peak GB | planned | memory, {reference} = 1 | optimizer GB |\n" + "|---" * 11 + "|"
    )
    for way, runs in results.items():
        speed, memory = seconds[reference] / seconds[way], peaks[way] / peaks[reference]
        rate = arguments.tokens / seconds[way]
        above = statistics.median(run["step"] / run["floor"] for run in runs)
        plan = runs[0]["plan"] / 1e9
        share = runs[0]["operations"] / seconds[way] / 1e12 / (arguments.peak or math.inf)
        print(
            f"| {way} | {runs[0]['trained'] / 1e6:.1f}M | {seconds[way]:.2f} | {above:.2f} "
            f"| {f'{share:.0%}' if share else '-'} | {rate:,.0f} | {speed:.2f} "
            f"| {peaks[way] / 1e9:.2f} | {f'{plan:.2f}' if plan else '-'} | {memory:.2f} "
            f"| {runs[0]['optimizer'] / 1e9:.2f} |"
        )


if __name__ == "__main__":
    main()
