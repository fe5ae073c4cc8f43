"""The benchmark on the lab pair: scores and cost of each task, batched scoring, servers.

    python benchmarks/darumeru_data.py --data DATA --output runs/darumeru
    python benchmarks/evaluation.py tasks  [--data runs/darumeru] [--items 3000]
    python benchmarks/evaluation.py batch  [--data runs/darumeru] [--items 200]
    python benchmarks/evaluation.py server [--data runs/darumeru] [--items 200] \\
        [--models MODEL --url URL]
    python benchmarks/evaluation.py chance [--data runs/darumeru] [--items 500]

`tasks` scores every task in the folder on at most `--items` items that fit into the context, and
prints the seconds of each task, with loading.

`batch` scores RuCoLA in three ways, taken in turns: plain lm-evaluation-harness, one request (item
and choice) at a time; plain lm-evaluation-harness, one item at a time; our batches of 64. It prints
medians of three for the whole run and for the model alone, and their ratios to ours in brackets.

`server` compares generated answers from `transformers serve` with those of the model in memory.
With `--url` it runs all tasks on that server, which must serve the (last) model and return
log-probabilities of prompts. `vllm serve MODEL --dtype float32 --generation-config vllm` does.

`chance` scores random likelihoods of twenty seeds and an oracle on the same items.
"""

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import requests
from lm_eval.models.huggingface import HFLM

from lep.benchmark.backend import InMemory
from lep.benchmark.harness import Benchmark
from lep.benchmark.metrics import metric
from lep.benchmark.tasks import task_names
from lep.checkpoint.reader import Checkpoint
from lep.evaluation.evaluate import evaluate
from lep.evaluation.measures import figure, measures, task_score
from lep.evaluation.records import load_records
from lep.inference.models import load_model
from lep.settings import BenchmarkSettings, EvaluateSettings

LAB = ("lab/pair/base", "lab/pair/instruct")
NEEDS = {  # task -> data set
    "daru_rucola": "rucola",
    "daru_parus": "parus",
    "daru_rcb": "rcb",
    "daru_rwsd": "rwsd",
    "daru_use": "use",
    "daru_mmlu_en": "mmlu_ru",
    "daru_multiq": "multiq",
    "daru_sum_abstractive": "daru_treeway_eval",
    "daru_sum_extractive": "daru_treeway_eval",
    "daru_copy_sentence_en": "cp_sent_en",
    "daru_copy_paragraph_en": "cp_para_en",
    "daru_copy_sentence_ru": "cp_sent_ru",
    "daru_copy_paragraph_ru": "cp_para_ru",
    "rublimp": "rublimp",
    "arithmetic": "",
    "python_output": "",
}
CHOICES = {  # task -> (choices, metrics)
    "daru_rucola": (2, ("acc", "mcc")),
    "daru_parus": (2, ("both_orders",)),
    "daru_rcb": (3, ("acc", "f1_macro")),
    "daru_rwsd": (2, ("acc",)),
    "daru_mmlu_en": (4, ("acc",)),
    "rublimp": (2, ("acc",)),
    "arithmetic": (4, ("acc",)),
    "python_output": (4, ("acc",)),
}
PER_BYTE = ("arithmetic", "python_output")  # likelihoods are compared per byte
ROUNDS, BATCH, DRAWS, SEEDS = 3, 64, 1_000, 20


def available(data: Path) -> list[str]:
    return [
        task
        for task, name in NEEDS.items()
        if task in task_names() and (not name or (data / name).is_dir())
    ]


def heading(*columns: str) -> str:
    """The first two lines of a markdown table."""
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def run_tasks(data: Path, items: int, models: list[str]) -> None:
    print(heading("task", "model", "score", "95% interval", "items", "too long", "seconds"))
    for path in models:
        model, checkpoint = load_model(path)
        for task in available(data):
            settings = BenchmarkSettings(data=str(data), limit=items, batch_size=BATCH)
            backend = InMemory(model, checkpoint, BATCH)
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                benchmark = Benchmark(checkpoint, [task], settings)
                records = list(benchmark.records(backend.answering, Path(folder)))
                seconds = time.perf_counter() - start
            score = task_score(measures(records))
            result = figure(score, DRAWS, 0)
            cells = ["-", "-"]
            if result:
                e = result.estimate()
                cells = [f"{e.value:.3f}", f"{e.low:.3f} - {e.high:.3f}"]
            cells += [f"{len(records) - score.left_out:,}", f"{score.left_out:,}", f"{seconds:.1f}"]
            print(f"| {task} | {Path(path).name} | {' | '.join(cells)} |", flush=True)


def run_batch(data: Path, items: int) -> None:
    for path in LAB:
        model, checkpoint = load_model(path)
        plain = {"pretrained": model, "tokenizer": checkpoint.tokenizer, "batch_size": 1}
        ways = {
            "request": HFLM(**plain, logits_cache=False),
            "item": HFLM(**plain),
            "batches": InMemory(model, checkpoint, BATCH),
        }
        whole: dict[str, list[float]] = {way: [] for way in ways}
        scoring: dict[str, list[float]] = {way: [] for way in ways}
        records: dict[str, Any] = {}
        for _ in range(ROUNDS):
            for way, backend in ways.items():
                timed = Timed(backend)
                benchmark = Benchmark(
                    checkpoint, ["daru_rucola"], BenchmarkSettings(data=str(data), limit=items)
                )
                with tempfile.TemporaryDirectory() as folder:
                    start = time.perf_counter()
                    records[way] = list(benchmark.records(lambda *_: timed, Path(folder)))  # noqa: B023
                    whole[way].append(time.perf_counter() - start)
                    scoring[way].append(timed.seconds)
        scores = [[r.scores for r in records[way]] for way in ways]
        equal = sum(a == b == c for a, b, c in zip(*scores, strict=True))
        shots = records["batches"][0].shots
        print(
            f"{Path(path).name}, {shots} examples, "
            f"{equal} of {len(scores[0])} items of RuCoLA with equal scores"
        )
        for way in ways:
            times = [
                f"{median(t[way]):.2f} s ({median(t[way]) / median(t['batches']):.1f})"
                for t in (whole, scoring)
            ]
            print(f"  {way}: whole {times[0]}, model alone {times[1]}", flush=True)


class Timed:
    """A model that records the seconds of its last scoring."""

    def __init__(self, model: Any) -> None:
        self.model, self.seconds = model, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def loglikelihood(self, requests: list[Any]) -> Any:
        start = time.perf_counter()
        scores = self.model.loglikelihood(requests)
        self.seconds = time.perf_counter() - start
        return scores


def run_server(data: Path, items: int, model: str, url: str | None, tasks: list[str]) -> None:
    if url:
        compare_served(data, items, model, url, tasks or available(data))
        return
    generated = ("daru_copy", "daru_use", "daru_sum_abs", "daru_multiq")
    tasks = [task for task in tasks or available(data) if task.startswith(generated)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--dtype",
        "float32",
        model,
    ]
    server = subprocess.Popen(
        serve,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(120):
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(1)
        compare_served(data, items, model, f"http://127.0.0.1:{port}/v1", tasks)
    finally:
        server.terminate()
        server.wait()


def compare_served(data: Path, items: int, model: str, url: str, tasks: list[str]) -> None:
    """Compare the model in memory with the one behind the URL, item by item."""
    settings = EvaluateSettings(
        tasks=[], benchmark=BenchmarkSettings(tasks=tasks, data=str(data), limit=items)
    )
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        print(evaluate([model, f"{model}@{url}"], {}, output, settings))
        lines = load_records(output / "records.jsonl")
    half = len(lines) // 2
    pairs = [
        (a, b)
        for a, b in zip(lines[:half], lines[half:], strict=True)
        if a.kind == b.kind == "benchmark" and a.scores and b.scores
    ]
    difference = "largest difference of log p, nats"
    print(heading("task", "items", "equal scores", "equal answers", difference))
    for task in tasks:
        rows = [(a, b) for a, b in pairs if a.task == task]
        scores = sum(a.scores == b.scores for a, b in rows)
        texts = [a.output.strip() == b.output.strip() for a, b in rows if a.output is not None]
        nats = [abs(p - b.choices[name]) for a, b in rows for name, p in (a.choices or {}).items()]
        cells = [f"{sum(texts):,}" if texts else "-", f"{max(nats):.1e}" if nats else "-"]
        print(f"| {task} | {len(rows):,} | {scores:,} | {' | '.join(cells)} |")


def run_chance(data: Path, items: int, tasks: list[str]) -> None:
    """Scores of random likelihoods against the 99% interval of random answers.

    The interval is computed without the tasks' code.
    """
    checkpoint = Checkpoint(LAB[1])
    print(heading("task", "items", "random", "chance", "99% of chance", "inside", "oracle"))
    for task in [task for task in CHOICES if task in (tasks or available(data))]:
        width, metrics = CHOICES[task]
        benchmark = Benchmark(checkpoint, [task], BenchmarkSettings(data=str(data), limit=items))
        docs = list(benchmark.tasks[task].eval_docs)
        docs = [docs[i] for i in benchmark.chosen(docs) or range(len(docs))]
        scores = []
        for answer in [_know, *(partial(_guess, seed) for seed in range(SEEDS))]:
            with tempfile.TemporaryDirectory() as folder:
                records = benchmark.records(lambda *_: Answering(answer), Path(folder))  # noqa: B023
                result = figure(task_score(measures(list(records))), 10, 0)
                assert result
                scores.append(result.value)
        known, guessed = scores[0], np.array(scores[1:])
        rng, chance = np.random.default_rng(1), []
        for _ in range(DRAWS):
            guesses = rng.integers(width, size=len(docs)).tolist()
            chance.append(np.mean([_score(name, docs, guesses) for name in metrics]))
        low, high = np.percentile(chance, [0.5, 99.5])
        inside = int(((low <= guessed) & (guessed <= high)).sum())
        print(
            f"| {task} | {len(docs):,} | {guessed.mean():.3f} | {np.mean(chance):.3f} "
            f"| {low:.3f} - {high:.3f} | {inside} of {SEEDS} | {known:.3f} |",
            flush=True,
        )


def _score(name: str, docs: list[dict[str, Any]], guesses: list[int]) -> float:
    """A metric of guessed choices."""
    whole = name in ("mcc", "f1_macro")  # computed from pairs of label and guess, not from hits
    labels = [doc.get("label", 0) for doc in docs]
    return metric(name)(
        [
            (doc["unit"], [label, guess] if whole else float(label == guess))
            for doc, label, guess in zip(docs, labels, guesses, strict=True)
        ]
    )


def _guess(seed: int, request: Any) -> tuple[float, bool]:
    weight = len(request.args[1].encode()) if request.task_name in PER_BYTE else 1
    return -random.Random(f"{seed}/{request.args}").random() * weight, False


def _know(request: Any) -> tuple[float, bool]:
    return -1.0 if request.idx == request.doc.get("label", 0) else -9.0, False


class Answering:
    """A model that answers with a function of the request."""

    spare = 1 << 30  # tokens: nothing is too long
    tokenizer_name = "none"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def set_cache_hook(self, hook: Any) -> None:
        pass

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [self.answer(request) for request in requests]

    def apply_chat_template(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return "\n".join(message["content"] for message in messages)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["tasks", "batch", "server", "chance"])
    parser.add_argument("--data", type=Path, default=Path("runs/darumeru"))
    parser.add_argument("--models", nargs="+", default=list(LAB))
    parser.add_argument("--items", type=int, default=None)
    parser.add_argument("--url", help="`server`: a server that already runs")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        choices=NEEDS,
        metavar="TASK",
        help="tasks to run; default: all",
    )
    args = parser.parse_args()
    if args.what == "tasks":
        run_tasks(args.data, args.items or 3_000, args.models)
    elif args.what == "batch":
        run_batch(args.data, args.items or 200)
    elif args.what == "server":
        run_server(
            args.data, args.items or 200, str(Path(args.models[-1]).resolve()), args.url, args.tasks
        )
    else:
        run_chance(args.data, args.items or 500, args.tasks)


if __name__ == "__main__":
    main()
