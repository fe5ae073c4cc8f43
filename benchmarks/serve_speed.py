"""Tokens and characters a second of a model and its original in llama.cpp, CTranslate2 and MLX.

    python benchmarks/serve_speed.py ORIGINAL ADAPTED --text FILE [--type q8_0] [--threads 2]

Both models are exported. Each program continues the same beginnings of texts greedily, and stops at
no token. Each model has a process of its own; the models take turns in rounds. Printed are medians
over prompts and rounds. Characters a second are tokens a second times the characters of a token on
the text: how fast a text of that language appears, whatever the model happens to write.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

from llama_cpp_answers import posted

import lep
from lep.corpus.read import stream_texts
from lep.errors import LepError
from lep.tokenizer.load import load_tokenizer

PROMPT_CHARACTERS, TEXT_CHARACTERS, LARGEST_SAMPLE = 300, 200_000, 10_000
FORMATS = {"llama.cpp": "gguf", "CTranslate2": "ctranslate2", "MLX": "mlx"}
Times = tuple[float, float]  # seconds until the first token, and of each later one
Prompts = list[list[int]]
Measure = Callable[[str, Prompts, int, int], Iterator[Times]]


def main() -> None:
    arguments = parsed()
    texts = list(islice(stream_texts([arguments.text]), LARGEST_SAMPLE))
    prompts = [text[:PROMPT_CHARACTERS] for text in texts[: arguments.prompts]]
    text = "\n".join(texts)[:TEXT_CHARACTERS]
    names = ("original", "adapted")
    tokenizers = [load_tokenizer(getattr(arguments, name)) for name in names]
    ids = [[tokenizer(prompt)["input_ids"] for prompt in prompts] for tokenizer in tokenizers]
    lengths = [len(t(text, add_special_tokens=False)["input_ids"]) for t in tokenizers]
    print("program | model | characters/token | tokens/s | characters/s | prompt characters/s")
    for program in arguments.programs:
        with tempfile.TemporaryDirectory() as folder:
            try:
                paths = [exported(arguments, program, name, Path(folder)) for name in names]
            except LepError as error:
                print(program, f"refused: {error}", sep=" | ", flush=True)
                continue
            seconds: list[list[Times]] = [[], []]
            for _, model in product(range(arguments.rounds), range(len(names))):
                seconds[model] += timed(arguments, program, paths[model], ids[model])
        for name, times, tokens in zip(names, seconds, lengths, strict=True):
            print(program, name, *row(times, prompts, len(text) / tokens), sep=" | ", flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original")
    parser.add_argument("adapted")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--type", default="q8_0")
    parser.add_argument("--programs", nargs="*", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64, help="of each continuation")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def exported(arguments: argparse.Namespace, program: str, name: str, folder: Path) -> Path:
    """The original or the adapted model in the program's format."""
    to = FORMATS[program]
    output = folder / (f"{name}.gguf" if to == "gguf" else name)
    lep.export(getattr(arguments, name), output, to=to, type=arguments.type)
    return output


def timed(
    arguments: argparse.Namespace, program: str, path: Path, prompts: list[list[int]]
) -> list[Times]:
    """The times of all prompts, by a process that has read one of them before."""
    question = [program, str(path), prompts, arguments.tokens, arguments.threads]
    with tempfile.NamedTemporaryFile("r", suffix=".json") as result:
        subprocess.run(
            [sys.executable, __file__, "--measure", result.name],
            input=json.dumps(question).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": str(arguments.threads)},
            check=True,
        )
        return [tuple(pair) for pair in json.load(result)]


def row(times: list[Times], prompts: list[str], density: float) -> list[str]:
    """Characters of a token, tokens and characters a second, characters a second of prompts."""
    speed = 1 / statistics.median(later for _, later in times)
    lengths = [len(prompt) for prompt in prompts] * (len(times) // len(prompts))
    pairs = zip(lengths, times, strict=True)
    reading = statistics.median(length / first for length, (first, _) in pairs)
    return [f"{density:.2f}", f"{speed:.1f}", f"{density * speed:.1f}", f"{reading:.0f}"]


def by_ctranslate2(path: str, prompts: Prompts, tokens: int, threads: int) -> Iterator[Times]:
    import ctranslate2

    names = json.loads((Path(path) / "vocabulary.json").read_text(encoding="utf-8"))
    generator = ctranslate2.Generator(path, intra_threads=threads)
    for ids in prompts:
        start = time.perf_counter()
        prompt = [names[index] for index in ids]
        steps = generator.generate_tokens(prompt, max_length=tokens, min_length=tokens)
        yield split(start, (time.perf_counter() for _ in steps))


def by_mlx(path: str, prompts: Prompts, tokens: int, threads: int) -> Iterator[Times]:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    model, _ = load(path)
    for ids in prompts:
        start = time.perf_counter()
        steps = generate_step(mx.array(ids), model, max_tokens=tokens)
        yield split(start, (time.perf_counter() for _ in steps))


def by_llama_cpp(path: str, prompts: Prompts, tokens: int, threads: int) -> Iterator[Times]:
    server = llama_cpp_server(path, threads)
    for ids in prompts:
        question: dict[str, Any] = {"prompt": ids, "n_predict": tokens, "temperature": 0}
        question |= {"ignore_eos": True, "cache_prompt": False}
        timings = posted(f"{server.listening_address}/completion", question)["timings"]
        yield timings["prompt_ms"] / 1e3, timings["predicted_per_token_ms"] / 1e3


def llama_cpp_server(path: str, threads: int) -> Any:
    """llama.cpp's server with a model, in this process."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx = path, 2048
    parameters.warmup = parameters.fit_params = False
    parameters.n_gpu_layers, parameters.cpuparams.n_threads = 0, threads
    parameters.cpuparams_batch.n_threads, parameters.n_parallel = threads, 1
    return xllamacpp.Server(parameters)


def split(start: float, ends: Iterator[float]) -> Times:
    """Seconds until the first token, and of each later one, from the times at which each ended."""
    first, *later = ends
    return first - start, (later[-1] - first) / len(later)


PROGRAMS: dict[str, Measure] = {
    "llama.cpp": by_llama_cpp,
    "CTranslate2": by_ctranslate2,
    "MLX": by_mlx,
}


def measure(result: str) -> None:
    """What `timed` starts; the first prompt is read twice, and counts once."""
    program, path, prompts, tokens, threads = json.load(sys.stdin)
    _, *measured = PROGRAMS[program](path, [prompts[0], *prompts], tokens, threads)
    Path(result).write_text(json.dumps(measured), encoding="utf-8")
    os._exit(0)  # a server's threads have nothing to finish


if __name__ == "__main__":
    measure(sys.argv[2]) if sys.argv[1:2] == ["--measure"] else main()
