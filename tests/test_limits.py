"""What small hostile files may cost: each is refused by name before the memory is taken."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
import zstandard
from conftest import ROOT, TEMPLATE, save_model
from safetensors.torch import save_file
from tokenizers import Tokenizer

from lep import limits
from lep.calibration.answers import answer
from lep.calibration.judge import ServedModel, grades, load_judge
from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import read_documents, write_records
from lep.errors import CheckpointError, CorpusError, LepError, TokenizerError
from lep.evaluation.evaluate import evaluate
from lep.inference.models import Description
from lep.settings import EvaluateSettings
from lep.tokenizer.chat import chat_ids
from lep.tokenizer.count import WordCutter
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.transfer.language_pack import LanguagePack

ADDRESS_SPACE_BYTES, SECONDS = 2_000_000_000, 20
CHILD = """
import importlib, json, resource, sys
from pathlib import Path
module, name, *paths = sys.argv[2:]
function = getattr(importlib.import_module(module), name)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in paths:
    try:
        for _ in function(path if name.startswith("read_re") else [path]):
            pass
        print(json.dumps("read"))
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


def replies(module: str, name: str, *paths: Path) -> list[str]:
    """What a function says of each path in a process that may take 2 GB more."""
    arguments = [str(ADDRESS_SPACE_BYTES), module, name, *map(str, paths)]
    command = [sys.executable, "-c", CHILD, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.slow
def test_small_files_of_much_text_are_refused(tmp_path) -> None:
    names = ("a.jsonl.zst", "b.txt.zst", "c.txt", "d.parquet")
    one_line, much, plain, values = (tmp_path / name for name in names)
    with one_line.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as out:
        out.write(b'{"text": "')
        for _ in range(300):
            out.write(b"a" * 1_000_000)
    with much.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as out:
        for _ in range(300):
            out.write(b"many lines\n" * 100_000)
    plain.touch()
    os.truncate(plain, 300_000_000)
    text = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 1_000, "int32"), pyarrow.array(["a" * 3_000_000])
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), values, compression="zstd")
    files = (one_line, much, values)
    assert all(file.stat().st_size < 50_000 for file in files)
    line, document, rows, zeros = replies("lep.corpus.read", "read_documents", *files, plain)
    assert "a line of " in line
    assert "set LEP_MAX_LINE_BYTES higher" in line
    assert "set LEP_MAX_EXPANSION higher" in document
    assert "set LEP_MAX_EXPANSION higher" in rows
    assert "no text" in zeros


@pytest.mark.slow
def test_run_lengths_of_nested_values_are_seen_beforehand(tmp_path) -> None:
    empty = pyarrow.nulls(110_000_000)
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([0, len(empty)], "int32"), empty)
    table = pyarrow.table({"text": ["a"], "more": lists})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 1_000
    (reply,) = replies("lep.corpus.read", "read_documents", tmp_path / "a.parquet")
    assert "set LEP_MAX_EXPANSION higher" in reply


def test_a_limit_is_a_setting(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("один\nдва\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "один"}\n{"text": "два"}\n', encoding="utf-8")
    for variable, most, name in (("DOCUMENT", 16, "a.txt"), ("LINE", 20, "b.jsonl")):
        monkeypatch.setenv(f"LEP_MAX_{variable}_BYTES", str(most - 1))
        with pytest.raises(CorpusError, match=f"set LEP_MAX_{variable}_BYTES higher"):
            list(read_documents([tmp_path / name]))
        monkeypatch.setenv(f"LEP_MAX_{variable}_BYTES", str(most))
        assert list(read_documents([tmp_path / name]))


def test_the_reference_lists_every_limit(monkeypatch) -> None:
    page = (ROOT / "docs" / "reference" / "limits.md").read_text(encoding="utf-8")
    every = [each for each in vars(limits).values() if isinstance(each, limits.Limit)]
    for limit in every:
        assert f"| `{limit.variable}` | {limit.default:,} {limit.unit} |" in page
    assert page.count("| `LEP_MAX_") == len(every)
    for text in ("0", "-1", "many", "1e9", "٣", "9" * 5_000):
        monkeypatch.setenv("LEP_MAX_LAYERS", text)
        with pytest.raises(LepError, match=r"LEP_MAX_LAYERS is .*: give a positive integer"):
            limits.LAYERS.check(1, "a model")


def test_ids_and_sizes_of_a_pack_are_read_before_memory_is_taken(
    byte_level: Tokenizer, tmp_path, monkeypatch
) -> None:
    save_model(tmp_path / "model", byte_level)
    spec = json.loads((tmp_path / "model" / "tokenizer.json").read_text(encoding="utf-8"))
    last = max(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    spec["model"]["vocab"][last] = 4_000_000_000
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"has 4,000,000,001 ids, the .*LEP_MAX_VOCABULARY"):
        Vocabulary.of(load_tokenizer(tmp_path / "model"))
    monkeypatch.setenv("LEP_MAX_VOCABULARY", "400")
    with pytest.raises(TokenizerError, match="the tokenizer has 500 ids, the limit is 400"):
        Vocabulary.of(byte_level)
    monkeypatch.setenv("LEP_MAX_VOCABULARY", "500")
    assert len(Vocabulary.of(byte_level)) == 500
    monkeypatch.setenv("LEP_MAX_TOKEN_CHARACTERS", "3")
    with pytest.raises(TokenizerError, match=r"a token has .* characters, the limit is 3: set LEP"):
        Vocabulary.of(byte_level)
    zeros = zstandard.compress(bytes(300_000_000))
    assert len(zeros) < 30_000
    pack = {"about": torch.frombuffer(bytearray(zeros), dtype=torch.uint8)}
    save_file(pack, tmp_path / "a.lep")
    with pytest.raises(CheckpointError, match="set LEP_MAX_JSON_BYTES higher"):
        LanguagePack.load(tmp_path / "a.lep")


def with_config(folder: Path, **settings: object) -> Checkpoint:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    return Checkpoint(folder)


def test_models_that_would_take_all_memory_are_refused(
    byte_level: Tokenizer, tmp_path, monkeypatch
) -> None:
    save_model(tmp_path / "model", byte_level)
    with pytest.raises(CheckpointError, match=r"num_hidden_layers .*1,000,000 .*LEP_MAX_LAYERS"):
        with_config(tmp_path / "model", num_hidden_layers=1_000_000).check()
    with pytest.raises(CheckpointError, match=r"describes 288,\d+,\d+,\d+ parameters, its files"):
        with_config(tmp_path / "model", num_hidden_layers=3, intermediate_size=10**9).check()
    monkeypatch.setenv("LEP_MAX_LAYERS", "2")
    with pytest.raises(CheckpointError, match="has 3 layers or experts, the limit is 2"):
        with_config(tmp_path / "model", intermediate_size=64).check()
    monkeypatch.setenv("LEP_MAX_LAYERS", "3")
    with_config(tmp_path / "model").check()


def test_pipes_in_a_model_folder_are_refused(byte_level: Tokenizer, tmp_path) -> None:
    save_model(tmp_path / "model", byte_level)
    for name in ("generation_config.json", "tokenizer.json", "model.safetensors"):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "model", folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(CheckpointError, match=rf"{name} is no regular file"):
            Checkpoint(folder)
    os.mkfifo(tmp_path / "pack")
    with pytest.raises(LepError, match="pack is no regular file"):
        LanguagePack.load(tmp_path / "pack")


MESSAGES = [{"role": "user", "content": "Где дом?"}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GROWING = (
    "{% set n = namespace(x='aaaaaaaa') %}"
    "{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
)


def test_templates_are_stopped(pair, monkeypatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    tokenizer = load_tokenizer(pair["instruct"])
    expected = tokenizer.apply_chat_template(MESSAGES, return_dict=False)
    assert chat_ids(tokenizer, MESSAGES) == expected
    monkeypatch.setenv("LEP_MAX_TEMPLATE_SECONDS", "1")
    tokenizer.chat_template = ENDLESS
    with pytest.raises(TokenizerError, match=r"more than 1 seconds: set LEP_MAX_TEMPLATE_SECONDS"):
        chat_ids(tokenizer, MESSAGES)
    monkeypatch.setenv("LEP_MAX_TEMPLATE_SECONDS", "30")
    monkeypatch.setenv("LEP_MAX_TEMPLATE_BYTES", "50000000")
    tokenizer.chat_template = GROWING
    with pytest.raises(TokenizerError, match=r"bytes of memory: set LEP_MAX_TEMPLATE_BYTES"):
        chat_ids(tokenizer, MESSAGES)
    tokenizer.chat_template = TEMPLATE
    assert chat_ids(tokenizer, MESSAGES) == expected
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_patterns_that_backtrack_are_stopped(monkeypatch) -> None:
    monkeypatch.setenv("LEP_MAX_PATTERN_SECONDS", "1")
    spec = json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}})
    cutter = WordCutter(spec, byte_level=True, pattern="(?:a|aa)+$")
    assert cutter("aaa") == ["aaa"]
    with pytest.raises(TokenizerError, match=r"more than 1 seconds: set LEP_MAX_PATTERN_SECONDS"):
        cutter("a" * 80 + "!")


def test_prompts_longer_than_the_context_are_left_out_or_refused(pair, tmp_path) -> None:
    prompts, texts = tmp_path / "prompts.jsonl", ["Где дом?", "слово " * 2_000, "Где река?"]
    write_records(prompts, ({"messages": [{"role": "user", "content": t}]} for t in texts))
    with pytest.raises(CorpusError, match=r"none of 3 prompts got .*too long': 1"):
        answer(pair["instruct"], prompts, tmp_path / "answers", max_new_tokens=2)
    settings = EvaluateSettings(prompts=str(prompts), tasks=[])
    message = r"the prompt 'слово .* has [\d,]+ tokens, the model's context is 256: shorten"
    with pytest.raises(CorpusError, match=message):
        evaluate([pair["instruct"]], {}, tmp_path / "scores", settings)
    assert not (tmp_path / "scores").exists()


@contextmanager
def server(*pieces: bytes, pause: float = 0.0):
    """A server that replies with the first pieces once and with the last one for ever."""
    listening = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def reply(connection: socket.socket) -> None:
        with connection:
            connection.recv(1 << 16)
            try:
                for piece in pieces[:-1]:
                    connection.sendall(piece)
                while pieces[-1] and not stopped.wait(pause):
                    connection.sendall(pieces[-1])
            except OSError:
                pass

    def accept() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=reply, args=[connection], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    stopped.set()
    listening.close()


HEADER = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"
ANSWERED = [(MESSAGES, "Там.")]


@pytest.mark.parametrize("beginning", [HEADER, b"HTTP/1.1 200 OK\r\nX-Slow: "])
def test_a_judge_that_sends_a_byte_now_and_then(beginning, monkeypatch) -> None:
    monkeypatch.setenv("LEP_MAX_REPLY_SECONDS", "1")
    start = time.monotonic()
    with server(beginning, b" ", pause=0.2) as url:
        message = r"no whole reply within 1 seconds; LEP_MAX_REPLY_SECONDS allows more"
        with pytest.raises(LepError, match=message):
            list(grades(load_judge(f"judge@{url}"), ANSWERED, "here"))
    assert time.monotonic() - start < 15


def test_a_judge_whose_reply_does_not_end(monkeypatch) -> None:
    monkeypatch.setenv("LEP_MAX_REPLY_BYTES", "1000000")
    with (
        server(HEADER, b" " * 100_000) as url,
        pytest.raises(LepError, match=r"reply of http.*the limit is 1,000,000: set LEP_MAX_REPLY_"),
    ):
        list(grades(load_judge(f"judge@{url}"), ANSWERED, "here"))


def test_a_judge_that_asks_for_an_hour(monkeypatch) -> None:
    monkeypatch.setenv("LEP_MAX_RETRY_SECONDS", "1")
    monkeypatch.setattr("lep.calibration.judge.TRIES", 2)
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n"
    start = time.monotonic()
    with server(busy, b"") as url, pytest.raises(LepError, match="does not answer after 2 tries"):
        list(grades(ServedModel("judge", url), ANSWERED, "here"))
    assert time.monotonic() - start < 15


def test_a_benchmark_server_whose_reply_does_not_end(pair, tmp_path, monkeypatch) -> None:
    from lep.benchmark import backend

    monkeypatch.setenv("LEP_MAX_REPLY_BYTES", "1000000")
    monkeypatch.setattr(backend, "TRIES", 1)
    with server(HEADER, b" " * 100_000) as url:
        with pytest.raises(LepError, match="set LEP_MAX_REPLY_BYTES higher"):
            backend.Server(Description(pair["instruct"]), "model", url)
        monkeypatch.setattr(backend, "_served", lambda url: {})
        served = backend.Server(Description(pair["instruct"]), "model", url)
        with pytest.raises(LepError, match="set LEP_MAX_REPLY_BYTES higher"):
            served.text_nats(["Текст."], tmp_path / "answers.jsonl")
