"""Hostile inputs: one sentence and exit code 2, in bounded time and memory, nothing left behind.

Each case runs in a forked child that may grow by 2 GB and take 20 seconds (`hostile_runner`). A
sample of them runs in `make test`, all of them in `make check`.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hostile_cases
import pytest
import torch
from conftest import ROOT, SPECIALS, TEMPLATE, byte_level_tokenizer, sample_texts, save_model
from hostile_cases import REPLIES, SECRET, Case, all_cases, copied
from hostile_joint import joint_cases
from safetensors.torch import save_file
from tokenizers import Tokenizer

SAMPLE_EVERY = 76
MODULE = Path(__file__)
NAMES = [case.name for case in [*all_cases("http://localhost"), *joint_cases()]]
NAMES = [n for n in NAMES if re.search(os.environ.get("HOSTILE", ""), n)]
FAST = NAMES[::SAMPLE_EVERY]
VERBS = [
    "INSPECT",
    "VERIFY",
    "INIT",
    "EXTEND",
    "TRAIN",
    "COMPARE",
    "COUNT",
    "PROPAGATE",
    "PACK",
    "APPLY",
    "ANSWER",
    "TUNE",
]
VERBS += ["CALIBRATE", "PRETRAIN", "EVALUATE"]


class Judge(BaseHTTPRequestHandler):
    """Replies with what the path names."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = self.path.split("/")[1]
        status, headers, body = {k.replace(" ", "-"): v for k, v in REPLIES.items()}[name]
        if body is None:
            self.connection.close()
            return
        body = bomb() if body == b"BOMB" else body
        self.send_response(status)
        plain = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        for key, value in (plain | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    do_POST = do_GET


def bomb() -> bytes:
    """Three thousand million zeros, compressed by gzip."""
    import gzip
    import io

    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(bytes(10_000_000))
    return out.getvalue()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    judge = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=judge.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{judge.server_address[1]}"
    judge.shutdown()


@pytest.fixture(scope="session")
def lep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[int, float]]]:
    """Run a command line in a folder by the warm process; returns its exit code and seconds."""
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home / "hf"),
        "TMPDIR": str(home),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAYON_NUM_THREADS": "1",
        "LEP_MAX_TEMPLATE_SECONDS": "2",
        "LEP_MAX_PATTERN_SECONDS": "2",
        "LEP_MAX_RETRY_SECONDS": "1",
        "LEP_MAX_REPLY_SECONDS": "4",
    }
    runner = subprocess.Popen(
        [sys.executable, str(MODULE.with_name("hostile_runner.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    assert runner.stdin
    assert runner.stdout
    assert runner.stdout.readline() == "ready\n"

    def run(folder: Path, arguments: list[str], extra: dict[str, str]) -> tuple[int, float]:
        print(json.dumps([str(folder), arguments, extra]), file=runner.stdin, flush=True)
        return tuple(json.loads(runner.stdout.readline()))

    yield run
    runner.kill()
    runner.wait()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, lep: Callable) -> Path:
    """A folder of everything that a case may need, made by the program itself."""
    world = tmp_path_factory.mktemp("world")
    english, russian = sample_texts("en"), sample_texts("ru")
    tokenizer = byte_level_tokenizer(english + russian[:4], 500, SPECIALS)
    base = save_model(world / "base", tokenizer)
    options = {"seed": 1, "like": base, "noise": 0.3, "template": TEMPLATE}
    instruct = save_model(world / "instruct", tokenizer, **options)
    question = end_after_one_token(instruct, tokenizer, world / "instruct")
    save_model(world / "sharded", tokenizer, shard_size="60KB")
    (world / "text.txt").write_text(russian[0] + "\n" + english[0])
    (world / "long.txt").write_text("\n".join([*russian[:6], *english[:3]]))
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "word"}]
    (world / "prompts.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    kept = {"messages": messages, "sample": 0, "grade": None, "dropped": None}
    (world / "answers").mkdir()
    for name in ("kept.jsonl", "answers.jsonl"):
        (world / "answers" / name).write_text(json.dumps(kept) + "\n")
    (world / "answers" / "answers.json").write_text('{"kept": 1}')
    commands = [
        "tokenizer extend --base base --corpus text.txt --new-tokens 30 --output tokenizer",
        "init --model base --tokenizer tokenizer --output adapted",
        "init --model instruct --tokenizer tokenizer --output learner",
        "pack --base base --adapted adapted --output pack",
        "tokenizer count --base base --corpus text.txt --output words.counts.zst",
    ]
    for command in commands:
        code, _ = lep(world, command.split(), {})
        assert code == 0, (world / "printed").read_text()
    with_adapter(Path(shutil.copytree(world / "instruct", world / "unmerged")))
    (world / "run" / "instruct").mkdir(parents=True)
    facts = {"labels": {}, "seed": None, "recipe": {}, "instruct_models": {"a": "instruct"}}
    (world / "run" / "run.json").write_text(json.dumps(facts | {"base_models": {}, "seconds": {}}))
    (world / "run" / "instruct" / "scores.json").write_text("[]")
    (world / "run" / "instruct" / "records.jsonl").write_text("")
    return world


def with_adapter(folder: Path) -> None:
    """Put a low-rank adapter beside a model, in peft's format."""
    shape = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(shape))
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    factors = {name.format(i, "A"): torch.ones(1, 32) for i in range(3)}
    factors |= {name.format(i, "B"): torch.ones(32, 1) for i in range(3)}
    save_file(factors, folder / "adapter" / "adapter_model.safetensors", {"format": "pt"})


def end_after_one_token(model: Any, tokenizer: Tokenizer, folder: Path) -> str:
    """Let all tokens end an answer but the first that the model says to a question, a word.

    Returns the question: the answer is in its script, so that it is kept and judged.
    """
    for number in range(1_000):
        question = f"Word {number}?"
        text = f"<|user|> {question}<|end|><|assistant|>"
        prompt = torch.tensor([tokenizer.encode(text).ids])
        options = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
        mask = torch.ones_like(prompt)
        first, second = model.generate(prompt, attention_mask=mask, **options)[0, -2:].tolist()
        word = tokenizer.decode([first]).strip()
        if word.isascii() and word.isalpha() and first != second:
            break
    path = folder / "generation_config.json"
    ends = [index for index in range(tokenizer.get_vocab_size()) if index != first]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ends}))
    return question


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_a_hostile_input_is_one_sentence(
    name: str, world: Path, lep: Callable, server: str, tmp_path: Path
) -> None:
    case = next(c for c in [*all_cases(server), *joint_cases()] if c.name == name)
    folder = tmp_path / "case"
    copied(world, case, folder)
    case.prepare(folder)
    arguments = command_line(case)
    before = tree(folder)
    code, seconds = lep(folder, arguments, case.environment)
    printed = (folder / "printed").read_bytes().decode("utf-8", "backslashreplace")
    report = f"{' '.join(arguments)!r}: code {code} after {seconds:.1f} s\n{printed[-3000:]}"
    assert code in (0, 2), report
    assert "Traceback" not in printed, report
    assert not {"\x1b", "\x07"} & set(printed), report
    assert SECRET not in printed, report
    after = tree(folder)
    written = {path for path in after if path not in before and not path.startswith("printed")}
    results = {path for path in written if path.startswith("out") or path == "run/report.html"}
    assert written == results, f"{written - results} outside the output; {report}"
    assert {p: h for p, h in after.items() if p in before} == before, report
    if code == 2:
        # Saved answers that the message names, and what shows that no stage of a run is finished.
        results -= {path for path in results if path in printed} | {"out/.lock", "out/.work"}
        results -= {"out"} if arguments[0] == "run" else set()
        assert not results, f"left behind: {sorted(results)[:5]}; {report}"
        lines = [line for line in printed.splitlines() if line.startswith("error: ")]
        usage = "Usage:" in printed  # typer's own refusal
        assert len(lines) == 1 or usage, report
        assert usage or printed.rstrip("\n").splitlines()[-1].startswith("error: "), report
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", VERBS)
def test_the_same_commands_succeed_on_files_that_are_whole(
    name: str, world: Path, lep: Callable, tmp_path: Path
) -> None:
    """Otherwise a case would be refused for its options, and its file never read."""
    command, folder = getattr(hostile_cases, name), tmp_path / "case"
    needs = {"PACK": ("adapted",), "APPLY": ("pack",)}.get(name, ())
    copied(world, Case(name, command, needs, lambda folder: None), folder)
    code, _ = lep(folder, command.split(), {})
    assert code == 0, (folder / "printed").read_text()


def command_line(case: Case) -> list[str]:
    """The arguments of a case, with what its environment gives for `INPUT` and `NAME`."""
    words = case.command.split()
    for key in ("INPUT", "NAME"):
        words = [word.replace(key, case.environment.get(key, key)) for word in words]
    return words


def tree(folder: Path) -> dict[str, str]:
    """What every file under a folder holds."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link {os.readlink(path)}"
        elif path.is_file():
            large = path.stat().st_size > 50_000_000
            found[name] = "large" if large else hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "other"
    return {name: value for name, value in found.items() if name != "printed"}
