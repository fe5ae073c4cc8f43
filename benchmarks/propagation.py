"""Propagation: the reference's computation against ours, and whole checkpoints of 8B and 70B shape.

    python benchmarks/propagation.py tables [--seed 0] [--size mistral|llama-3] [--rounds 3]
    python benchmarks/propagation.py checkpoint --data DATA [--output runs/propagation]
    python benchmarks/propagation.py plan --data DATA [--output runs/propagation]

`tables`: random tables at Mistral size (32,000 to 55,328 rows of 4,096): means by a loop over the tokens, `lstsq`
(gelsy) in float64 and the product, written as the reference has it, then ours; then ours at LLaMA-3 size (128,256 to
174,816). Each runs in a process of its own that reads the tables from a file; rounds are in turns. `checkpoint`: three
models of Llama-3-8B shape in bf16 that share hard-linked bodies (about 27 GB, removed afterwards), with the real
tokenizer. `plan`:
`--dry-run` at 70B shape, of files that have headers and no content.
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
from lep.settings import InitSettings
from lep.transfer.mappings import build_mappings, read_mapping, save_mappings, write_mapping

HIDDEN = 4_096
SIZES = {"mistral": (32_000, 55_328), "llama-3": (128_256, 174_816)}
PIECES = 3  # of a new token
NOISE, SHIFT = 0.02, 0.02  # what training and tuning move, beside rows of norm 1
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
    """Base and instruct table in bf16, the adapted one, and the mapping."""
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
    """A row at a time, then least squares in float64, then the product, as the published code computes it."""
    rows = [
        mapping.indices[a:b] for a, b in zip(mapping.offsets[:-1], mapping.offsets[1:], strict=True)
    ]
    left = torch.stack([base[row].double().mean(0) for row in rows])
    right = torch.stack([instruct[row].double().mean(0) for row in rows])
    solution = torch.linalg.lstsq(left, right, driver="gelsy").solution
    return solution - torch.eye(HIDDEN, dtype=torch.float64), (
        adapted.double() @ solution
    ).bfloat16()


def ours(base, instruct, adapted, mapping) -> tuple[torch.Tensor, torch.Tensor]:
    from lep.propagation import METHODS, Problem

    fit_rows = torch.ones(mapping.target_size, dtype=torch.bool)
    propagation = METHODS["conversion"](Problem(base, instruct, mapping, fit_rows))
    rows = list(propagation.rows(adapted, mapping, base, instruct))
    return propagation.new.linear_map.delta, torch.cat(rows)


def product_rate(dtype: torch.dtype, size: int = 1_024) -> float:
    """Operations a second of a product of (size, size) matrices: the median of five."""
    square, seconds = torch.ones(size, size, dtype=dtype), []
    for _ in range(5):
        started = time.perf_counter()
        square @ square
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds)


def truth(base, instruct, adapted, mapping) -> tuple[torch.Tensor, torch.Tensor]:
    """W - I by normal equations, all in float64."""
    gram = torch.zeros(HIDDEN, HIDDEN, dtype=torch.float64)
    cross = torch.zeros_like(gram)
    for rows in torch.arange(mapping.target_size).split(8_192):
        part = mapping.select(rows)
        left = part(base, dtype=torch.float64)
        gram += left.T @ left
        cross += left.T @ (part(instruct, dtype=torch.float64) - left)
    return torch.linalg.solve(gram, cross), torch.zeros(0)


WAYS = {"reference": reference, "ours": ours, "truth": truth}


def write_problem(size: str, seed: int, place: Path) -> None:
    base, instruct, adapted, mapping = problem(size, seed)
    save_file(
        {"base": base, "instruct": instruct, "adapted": adapted}, place / "inputs.safetensors"
    )
    write_mapping(mapping, place / "mapping.safetensors")


def run_way(way: str, place: Path) -> None:
    tables = load_file(place / "inputs.safetensors")
    made = [tables[name] for name in ("base", "instruct", "adapted")]
    made.append(read_mapping(place / "mapping.safetensors"))
    started, cpu = time.perf_counter(), time.process_time()
    delta, _ = WAYS[way](*made)
    taken = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    torch.save(delta, place / f"{way}.pt")
    (place / f"{way}.json").write_text(json.dumps(taken))


def tables(seed: int, place: Path, sizes: list[str], rounds: int) -> None:
    for dtype in (torch.float32, torch.float64):
        print(f"{dtype}: {product_rate(dtype, HIDDEN) / 1e9:.0f} GFLOP/s", flush=True)
    for size in sizes:
        ways = (
            ("ours", "reference", "truth") if size == "mistral" else ("ours", "truth")
        )  # memory for no more
        deltas, seconds = {}, {way: [] for way in ways}
        script = [sys.executable, __file__]
        subprocess.run(
            [*script, "inputs", "--size", size, "--seed", str(seed), "--output", str(place)],
            check=True,
        )
        for way in [*ways[:-1] * rounds, ways[-1]]:
            peak = measured([*script, "way", "--way", way, "--output", str(place)]).peak_bytes
            deltas[way] = torch.load(place / f"{way}.pt", weights_only=True)
            taken = json.loads((place / f"{way}.json").read_text())
            seconds[way].append(taken["seconds"])
            print(
                json.dumps({"size": SIZES[size], "way": way, **taken, "peak_gb": peak / 1e9}),
                flush=True,
            )
        medians = {way: statistics.median(found) for way, found in seconds.items()}
        print(
            f"{size}: {', '.join(f'{way} {found:.1f} s' for way, found in medians.items())}",
            flush=True,
        )
        for way in ways[:-1]:
            error = (deltas[way] - deltas["truth"]).norm() / deltas["truth"].norm()
            print(f"{size}, {way}: relative error of W - I {error:.1e}", flush=True)
        (place / "inputs.safetensors").unlink()


def llama_config(kind: str, rows: int) -> dict:
    return LLAMA[kind] | {
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


def shapes(kind: str, rows: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the order in which Llama's shards hold them."""
    c = LLAMA[kind]
    hidden, inner, keys = (
        c["hidden_size"],
        c["intermediate_size"],
        8 * c["hidden_size"] // c["num_attention_heads"],
    )
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden)}
    for layer in range(c["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        found |= {
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
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (rows, hidden)}


def write_model(
    folder: Path, kind: str, rows: int, *, body: Path | None = None, sparse: bool = False
) -> None:
    """A model of that shape: random tables, the body of another one hard-linked, or files of headers alone."""
    folder.mkdir(parents=True)
    shards, filled, sizes = [{}], 0, shapes(kind, rows)
    for name, shape in shapes(
        kind, SIZES["llama-3"][0]
    ).items():  # the same cut for every number of rows
        filled += 2 * torch.Size(shape).numel()
        if filled > SHARD_BYTES:
            shards.append({})
            filled = 2 * torch.Size(shape).numel()
        shards[-1][name] = sizes[name]
    # Windows of one random sequence, each from another place in it: no row comes twice.
    generator = torch.Generator().manual_seed(len(folder.name))
    sequence = (
        torch.randn(BLOCK_BYTES // 2 + SHIFTS, generator=generator)
        .mul_(0.02)
        .bfloat16()
        .view(torch.uint8)
    )
    sequence, shifts = memoryview(sequence.numpy()), iter(range(1, SHIFTS))
    weight_map = {}
    for number, shard in enumerate(shards):
        place = folder / f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, place.name)
        entries, offset = {}, 0
        for name, shape in shard.items():
            stop = offset + 2 * torch.Size(shape).numel()
            entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, stop]}
            offset = stop
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        if (
            body
            and not {"model.embed_tokens.weight", "lm_head.weight"} & set(shard)
            and (body / place.name).exists()
        ):
            os.link(body / place.name, place)
            continue
        with place.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            if sparse:
                file.truncate(8 + len(header) + offset)
                continue
            for start in range(0, offset, BLOCK_BYTES):
                first = 2 * 7 * next(shifts)
                file.write(sequence[first : first + min(BLOCK_BYTES, offset - start)])
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(llama_config(kind, rows)))


def family(data: Path, output: Path, kind: str, *, sparse: bool) -> list[str]:
    """Base, instruct and adapted model of a shape, with Llama 3's tokenizer and an extended one."""
    tokenizers = [output / "tokenizer", output / "extended"]
    if not tokenizers[0].exists():
        tokenizers[0].mkdir(parents=True)
        source = data / "tokenizers" / "llama-3"
        with (source / "tokenizer.json.zst").open("rb") as raw:
            text = zstandard.ZstdDecompressor().stream_reader(raw).read()
        (tokenizers[0] / "tokenizer.json").write_bytes(text)
        shutil.copy(source / "tokenizer_config.json", tokenizers[0])
    if not tokenizers[1].exists():
        from lep.tokenizer.write import extend_tokenizer

        novels = [
            data / "train" / "ru" / f"{name}.jsonl.zst"
            for name in ("novels_pd", "tech_visualstudio")
        ]
        extend_tokenizer(tokenizers[0], novels, 46_560, tokenizers[1], script="cyrillic")
    rows = {"base": 128_256, "instruct": 128_256, "adapted": 174_816}
    for name, count in rows.items():
        shutil.rmtree(output / kind / name, ignore_errors=True)
        write_model(output / kind / name, kind, count, body=output / kind / "base", sparse=sparse)
        for file in tokenizers[name == "adapted"].glob("tokenizer*.json"):
            shutil.copy(file, output / kind / name)
    base, adapted = (Checkpoint(output / kind / name) for name in ("base", "adapted"))
    save_mappings(
        build_mappings(base, adapted.vocabulary, InitSettings()), adapted.folder
    )  # as `lep init` does
    lep = str(Path(sys.executable).parent / "lep")
    places = [part for name in rows for part in (f"--{name}", str(output / kind / name))]
    return [lep, "propagate", *places, "--output", str(output / kind / "result")]


def checkpoint(data: Path, output: Path) -> None:
    command = family(data, output, "8b", sparse=False)
    try:
        plan = subprocess.run(
            [*command, "--dry-run"], capture_output=True, text=True, check=True
        ).stdout
        print(plan, flush=True)
        for method in ("conversion",):
            shutil.rmtree(output / "8b" / "result", ignore_errors=True)
            os.sync()
            print(method, measured([*command, "--method", method]), flush=True)
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
