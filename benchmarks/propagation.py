"""Propagation: the reference computation against ours, and whole checkpoints of 8B and 70B shape.

    python benchmarks/propagation.py tables [--seed 0] [--size mistral|llama-3] [--rounds 3]
    python benchmarks/propagation.py checkpoint --data DATA [--output runs/propagation]
    python benchmarks/propagation.py plan --data DATA [--output runs/propagation]

`tables` uses random tables of Mistral size (32,000 to 55,328 rows of 4,096). It runs the reference
computation (means in a loop over the tokens, `lstsq` with gelsy in float64, the product) and ours,
then ours at LLaMA-3 size (128,256 to 174,816 rows). Each runs in its own process, which reads the
tables from a file; rounds alternate.

`checkpoint` propagates three bf16 models of Llama-3-8B shape with the real tokenizer. Their bodies
are hard links (about 27 GB, removed afterwards).

`plan` measures `--dry-run` at 70B shape on files with headers and no content.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import zstandard
from measure import measured
from safetensors.torch import load_file, save_file

from lep.checkpoint.reader import Checkpoint
from lep.mapping import VocabularyMapping
from lep.propagation import METHODS, Problem
from lep.settings import InitSettings
from lep.tokenizer.write import extend_tokenizer
from lep.transfer.mappings import build_mappings, read_mapping, save_mappings, write_mapping

HIDDEN = 4_096
SIZES = {"mistral": (32_000, 55_328), "llama-3": (128_256, 174_816)}
PIECES = 3  # per new token
NOISE, SHIFT = 0.02, 0.02  # changes by training and tuning, relative to rows of norm 1
LLAMA = {
    "8b": {
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "70b": {
        "hidden_size": 8_192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}
SHARD_BYTES, BLOCK_BYTES, SHIFTS = 5_000_000_000, 1 << 26, 1 << 16


def problem(
    size: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, VocabularyMapping]:
    """The base, instruct and adapted tables in bf16, and the mapping."""
    generator = torch.Generator().manual_seed(seed)
    source, target = SIZES[size]
    base = torch.randn(source, HIDDEN, generator=generator).mul_(HIDDEN**-0.5)
    turn = torch.randn(HIDDEN, HIDDEN, generator=generator).mul_(SHIFT * HIDDEN**-0.5)
    instruct = (
        base + base @ turn + NOISE * HIDDEN**-0.5 * torch.randn(source, HIDDEN, generator=generator)
    ).bfloat16()
    base = base.bfloat16()
    pieces = torch.randint(source, (target - source, PIECES), generator=generator).tolist()
    mapping = VocabularyMapping.from_rows([[i] for i in range(source)] + pieces, source)
    adapted = mapping(base)
    adapted += (NOISE * HIDDEN**-0.5 * torch.randn(target, HIDDEN, generator=generator)).bfloat16()
    return base, instruct, adapted, mapping


def reference(base, instruct, adapted, mapping) -> tuple[torch.Tensor, torch.Tensor]:
    """W - I and the rows as the published code computes them.

    Means row by row, then least squares in float64, then the product.
    """
    rows = [
        mapping.indices[a:b] for a, b in zip(mapping.offsets[:-1], mapping.offsets[1:], strict=True)
    ]
    left = torch.stack([base[row].double().mean(0) for row in rows])
    right = torch.stack([instruct[row].double().mean(0) for row in rows])
    solution = torch.linalg.lstsq(left, right, driver="gelsy").solution
    return solution - torch.eye(HIDDEN, dtype=torch.float64), (
        adapted.double() @ solution
    ).bfloat16()


def conversion(base, instruct, adapted, mapping) -> tuple[torch.Tensor, torch.Tensor]:
    """W - I and the rows as `lep propagate` computes them."""
    fit_rows = torch.ones(mapping.target_size, dtype=torch.bool)
    propagation = METHODS["conversion"](Problem(base, instruct, mapping, fit_rows))
    rows = list(propagation.rows(adapted, mapping, base, instruct))
    return propagation.new.linear_map.delta, torch.cat(rows)


def product_rate(dtype: torch.dtype, size: int = 1_024) -> float:
    """Operations per second of a product of (size, size) matrices: the median of five."""
    square, seconds = torch.ones(size, size, dtype=dtype), []
    for _ in range(5):
        start = time.perf_counter()
        square @ square
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds)


def truth(base, instruct, adapted, mapping) -> tuple[torch.Tensor, torch.Tensor]:
    """W - I by the normal equations, entirely in float64."""
    gram = torch.zeros(HIDDEN, HIDDEN, dtype=torch.float64)
    cross = torch.zeros_like(gram)
    for rows in torch.arange(mapping.target_size).split(8_192):
        part = mapping.select(rows)
        left = part(base, dtype=torch.float64)
        gram += left.T @ left
        cross += left.T @ (part(instruct, dtype=torch.float64) - left)
    return torch.linalg.solve(gram, cross), torch.zeros(0)


WAYS = {"reference": reference, "ours": conversion, "truth": truth}


def write_problem(size: str, seed: int, folder: Path) -> None:
    base, instruct, adapted, mapping = problem(size, seed)
    save_file(
        {"base": base, "instruct": instruct, "adapted": adapted}, folder / "inputs.safetensors"
    )
    write_mapping(mapping, folder / "mapping.safetensors")


def run_way(way: str, folder: Path) -> None:
    tables = load_file(folder / "inputs.safetensors")
    inputs = [tables[name] for name in ("base", "instruct", "adapted")]
    mapping = read_mapping(folder / "mapping.safetensors")
    start, cpu = time.perf_counter(), time.process_time()
    delta, _ = WAYS[way](*inputs, mapping)
    cost = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    torch.save(delta, folder / f"{way}.pt")
    (folder / f"{way}.json").write_text(json.dumps(cost), encoding="utf-8")


def tables(seed: int, folder: Path, sizes: list[str], rounds: int) -> None:
    for dtype in (torch.float32, torch.float64):
        print(f"{dtype}: {product_rate(dtype, HIDDEN) / 1e9:.0f} GFLOP/s", flush=True)
    for size in sizes:
        # At LLaMA-3 size the reference does not fit into memory.
        ways = ("ours", "reference", "truth") if size == "mistral" else ("ours", "truth")
        deltas, seconds = {}, {way: [] for way in ways}
        script = [sys.executable, __file__]
        output = ["--output", str(folder)]
        subprocess.run(
            [*script, "inputs", "--size", size, "--seed", str(seed), *output], check=True
        )
        for way in [*ways[:-1] * rounds, ways[-1]]:
            peak = measured([*script, "way", "--way", way, *output]).peak_bytes
            deltas[way] = torch.load(folder / f"{way}.pt", weights_only=True)
            cost = json.loads((folder / f"{way}.json").read_text(encoding="utf-8"))
            seconds[way].append(cost["seconds"])
            record = {"size": SIZES[size], "way": way, **cost, "peak_gb": peak / 1e9}
            print(json.dumps(record), flush=True)
        medians = [f"{way} {statistics.median(times):.1f} s" for way, times in seconds.items()]
        print(f"{size}: {', '.join(medians)}", flush=True)
        for way in ways[:-1]:
            error = (deltas[way] - deltas["truth"]).norm() / deltas["truth"].norm()
            print(f"{size}, {way}: relative error of W - I {error:.1e}", flush=True)
        (folder / "inputs.safetensors").unlink()


def llama_config(shape: str, rows: int) -> dict:
    return LLAMA[shape] | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": rows,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "max_position_embeddings": 8_192,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 128_000,
        "eos_token_id": 128_001,
    }


def shapes(shape: str, rows: int) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes in the order of Llama's shards."""
    c = LLAMA[shape]
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    keys = 8 * hidden // c["num_attention_heads"]
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden)}
    for layer in range(c["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        tensors |= {
            name + "input_layernorm.weight": (hidden,),
            name + "mlp.down_proj.weight": (hidden, inner),
            name + "mlp.gate_proj.weight": (inner, hidden),
            name + "mlp.up_proj.weight": (inner, hidden),
            name + "post_attention_layernorm.weight": (hidden,),
            name + "self_attn.k_proj.weight": (keys, hidden),
            name + "self_attn.o_proj.weight": (hidden, hidden),
            name + "self_attn.q_proj.weight": (hidden, hidden),
            name + "self_attn.v_proj.weight": (keys, hidden),
        }
    return tensors | {"model.norm.weight": (hidden,), "lm_head.weight": (rows, hidden)}


def write_model(
    folder: Path, shape: str, rows: int, *, body: Path | None = None, sparse: bool = False
) -> None:
    """Write a model of a shape with random tables.

    `body` is a model whose body shards are hard-linked; `sparse` writes only the headers.
    """
    folder.mkdir(parents=True)
    shards, filled, sizes = [{}], 0, shapes(shape, rows)
    # Shards are cut alike for every number of rows.
    for name, size in shapes(shape, SIZES["llama-3"][0]).items():
        tensor_bytes = 2 * torch.Size(size).numel()
        filled += tensor_bytes
        if filled > SHARD_BYTES:
            shards.append({})
            filled = tensor_bytes
        shards[-1][name] = sizes[name]
    # Windows of one random sequence, each with another start, so that no row comes twice.
    generator = torch.Generator().manual_seed(len(folder.name))
    noise = torch.randn(BLOCK_BYTES // 2 + SHIFTS, generator=generator).mul_(0.02).bfloat16()
    sequence, shifts = memoryview(noise.view(torch.uint8).numpy()), iter(range(1, SHIFTS))
    weight_map = {}
    for number, shard in enumerate(shards):
        path = folder / f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, path.name)
        entries, offset = {}, 0
        for name, size in shard.items():
            stop = offset + 2 * torch.Size(size).numel()
            entries[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, stop]}
            offset = stop
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        tables = {"model.embed_tokens.weight", "lm_head.weight"} & set(shard)
        if body and not tables and (body / path.name).exists():
            os.link(body / path.name, path)
            continue
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            if sparse:
                file.truncate(8 + len(header) + offset)
                continue
            for start in range(0, offset, BLOCK_BYTES):
                first = 2 * 7 * next(shifts)
                file.write(sequence[first : first + min(BLOCK_BYTES, offset - start)])
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(llama_config(shape, rows)), encoding="utf-8")


def family(data: Path, output: Path, shape: str, *, sparse: bool) -> list[str]:
    """Write base, instruct and adapted models of a shape; returns the command that propagates them.

    The tokenizers are Llama 3's and an extended one.
    """
    tokenizers = [output / "tokenizer", output / "extended"]
    if not tokenizers[0].exists():
        tokenizers[0].mkdir(parents=True)
        source = data / "tokenizers" / "llama-3"
        with (source / "tokenizer.json.zst").open("rb") as raw:
            text = zstandard.ZstdDecompressor().stream_reader(raw).read()
        (tokenizers[0] / "tokenizer.json").write_bytes(text)
        shutil.copy(source / "tokenizer_config.json", tokenizers[0])
    if not tokenizers[1].exists():
        names = ("novels_pd", "tech_visualstudio")
        texts = [data / "train" / "ru" / f"{name}.jsonl.zst" for name in names]
        extend_tokenizer(tokenizers[0], texts, 46_560, tokenizers[1], script="cyrillic")
    rows = {"base": 128_256, "instruct": 128_256, "adapted": 174_816}
    for name, count in rows.items():
        model = output / shape / name
        shutil.rmtree(model, ignore_errors=True)
        write_model(model, shape, count, body=output / shape / "base", sparse=sparse)
        for file in tokenizers[name == "adapted"].glob("tokenizer*.json"):
            shutil.copy(file, model)
    base, adapted = (Checkpoint(output / shape / name) for name in ("base", "adapted"))
    mappings = build_mappings(base, adapted.vocabulary, InitSettings())
    save_mappings(mappings, adapted.folder)  # as `lep init` does
    lep = str(Path(sys.executable).parent / "lep")
    models = [part for name in rows for part in (f"--{name}", str(output / shape / name))]
    return [lep, "propagate", *models, "--output", str(output / shape / "result")]


def checkpoint(data: Path, output: Path) -> None:
    command = family(data, output, "8b", sparse=False)
    try:
        dry_run = [*command, "--dry-run"]
        answer = subprocess.run(
            dry_run, capture_output=True, text=True, check=True, encoding="utf-8"
        )
        print(answer.stdout, flush=True)
        shutil.rmtree(output / "8b" / "result", ignore_errors=True)
        os.sync()
        print("conversion", measured([*command, "--method", "conversion"]), flush=True)
    finally:
        shutil.rmtree(output / "8b", ignore_errors=True)


def plan(data: Path, output: Path) -> None:
    command = family(data, output, "70b", sparse=True)
    try:
        print(measured([*command, "--dry-run"]))
    finally:
        shutil.rmtree(output / "70b", ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["tables", "checkpoint", "plan", "way", "inputs"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/propagation"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--size", choices=SIZES)
    a = parser.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    if a.what == "tables":
        tables(a.seed, a.output, [a.size] if a.size else list(SIZES), a.rounds)
    elif a.what == "way":
        run_way(a.way, a.output)
    elif a.what == "inputs":
        write_problem(a.size, a.seed, a.output)
    else:
        {"checkpoint": checkpoint, "plan": plan}[a.what](a.data, a.output)


if __name__ == "__main__":
    main()
