"""Whether an exported model gives its answers in llama.cpp, CTranslate2 and MLX, and stops there.

    python benchmarks/serve_answers.py MODEL [--type f32] [--tokens 48]

The model is exported. Each program, in a process of its own, answers twenty questions in two
languages greedily, through the chat template. Expected is what transformers answers in float32 with
the model's folder. Two programs round differently: from the first token on that has a rival within
0.04 nats, another answer counts as a close call. The first line says how many answers end by
themselves in transformers; `stopped` counts those that end at the same token elsewhere.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from llama_cpp_answers import posted
from serve_speed import FORMATS, exported, llama_cpp_server
from transformers import AutoModelForCausalLM, AutoTokenizer

CLEAR = 0.04  # nats between the two likeliest tokens
QUESTIONS = [
    "What is the capital of France? Answer in one word.",
    "How many days has a week? Answer with a number.",
    "What colour is the sky on a clear day? Answer in one word.",
    "Name one fruit. Answer in one word.",
    "Is the sun hot? Answer yes or no.",
    "What is 2 plus 3? Answer with a number.",
    "Repeat the word: lantern",
    "Write a greeting in three words.",
    "Why do birds sing? Answer in one sentence.",
    "Translate into English: кошка",
    "Как называется столица России? Ответьте одним словом.",
    "Сколько дней в неделе? Ответьте числом.",
    "Какого цвета трава? Ответьте одним словом.",
    "Назовите один овощ. Ответьте одним словом.",
    "Зимой холодно? Ответьте да или нет.",
    "Сколько будет 4 плюс 4? Ответьте числом.",
    "Повторите слово: фонарь",
    "Напишите приветствие из трёх слов.",
    "Почему идёт дождь? Ответьте одним предложением.",
    "Переведите на русский: the river",
]
Answer = list[int]  # ids of tokens, with the one that ends it


def main() -> None:
    arguments = parsed()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    options = {"add_generation_prompt": True, "return_dict": True}
    prompts = [tokenizer.apply_chat_template(turn, **options)["input_ids"] for turn in turns]
    expected, clear, ends = by_transformers(arguments.model, prompts, arguments.tokens)
    ended = [answer[-1] in ends for answer in expected]
    print(f"{len(expected)} answers in transformers, {sum(ended)} end within {arguments.tokens}")
    print("program | equal | equal up to a close call | different | stopped")
    for program in arguments.programs:
        with tempfile.TemporaryDirectory() as folder:
            path = exported(arguments, program, "model", Path(folder))
            answers = asked(program, path, prompts, arguments.tokens, ends)
        equal = close = stopped = 0
        for answer, other, length, ends_there in zip(answers, expected, clear, ended, strict=True):
            if answer == other:
                equal, stopped = equal + 1, stopped + ends_there
            elif answer[:length] == other[:length]:
                close += 1
            else:
                print(tokenizer.decode(answer), "instead of", tokenizer.decode(other))
        counts = map(str, (equal, close, len(answers) - equal - close, stopped))
        print(program, *counts, sep=" | ", flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--type", default="f32")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer at most")
    parser.add_argument("--programs", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    return parser.parse_args()


@torch.inference_mode()
def by_transformers(
    folder: str, prompts: list[list[int]], tokens: int
) -> tuple[list[Answer], list[int], list[int]]:
    """Greedy answers; how many of their tokens have no near rival; and the ids of the ends."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    named = model.generation_config.eos_token_id
    ends = named if isinstance(named, list) else [named]
    answers, clear = [], []
    for ids in prompts:
        inputs = torch.tensor([ids])
        result = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=tokens,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=ends[0],
            return_dict_in_generate=True,
            output_logits=True,
        )
        answers.append(result.sequences[0, len(ids) :].tolist())
        best = torch.cat(result.logits).log_softmax(-1).topk(2).values
        near = (best[:, 0] - best[:, 1] <= CLEAR).tolist()
        clear.append(near.index(True) if True in near else len(near))
    return answers, clear, ends


def asked(
    program: str, path: Path, prompts: list[list[int]], tokens: int, ends: list[int]
) -> list[Answer]:
    """The answers of a program, by a process of its own."""
    question = [program, str(path), prompts, tokens, ends]
    with tempfile.NamedTemporaryFile("r", suffix=".json") as result:
        process = subprocess.run(
            [sys.executable, __file__, "--ask", result.name],
            input=json.dumps(question).encode(),
            capture_output=True,
        )
        content = result.read()
    if not content:
        raise RuntimeError(f"{program} did not answer:\n{process.stderr.decode()[-2000:]}")
    return json.loads(content)


def by_llama_cpp(
    path: str, prompts: list[list[int]], tokens: int, ends: list[int]
) -> Iterator[Answer]:
    server = llama_cpp_server(path, os.cpu_count() or 1)
    for ids in prompts:
        question: dict[str, Any] = {"prompt": ids, "n_predict": tokens, "temperature": 0}
        question |= {"return_tokens": True, "cache_prompt": False}
        reply = posted(f"{server.listening_address}/completion", question)
        yield reply["tokens"]


def by_ctranslate2(
    path: str, prompts: list[list[int]], tokens: int, ends: list[int]
) -> Iterator[Answer]:
    import ctranslate2

    names = json.loads((Path(path) / "vocabulary.json").read_text(encoding="utf-8"))
    generator = ctranslate2.Generator(path)
    options = {"include_prompt_in_result": False, "return_end_token": True, "sampling_topk": 1}
    options |= {"end_token": [names[index] for index in ends], "max_length": tokens}
    for ids in prompts:
        (result,) = generator.generate_batch([[names[index] for index in ids]], **options)
        yield result.sequences_ids[0]


def by_mlx(path: str, prompts: list[list[int]], tokens: int, ends: list[int]) -> Iterator[Answer]:
    from mlx_lm import load, stream_generate

    model, tokenizer = load(path)
    for ids in prompts:
        yield [reply.token for reply in stream_generate(model, tokenizer, ids, max_tokens=tokens)]


PROGRAMS: dict[str, Callable[..., Iterator[Answer]]] = {
    "llama.cpp": by_llama_cpp,
    "CTranslate2": by_ctranslate2,
    "MLX": by_mlx,
}


def ask(result: str) -> None:
    """What `asked` starts."""
    program, *question = json.load(sys.stdin)
    Path(result).write_text(json.dumps(list(PROGRAMS[program](*question))), encoding="utf-8")
    os._exit(0)  # a server's threads have nothing to finish


if __name__ == "__main__":
    ask(sys.argv[2]) if sys.argv[1:2] == ["--ask"] else main()
