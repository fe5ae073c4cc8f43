"""Files made to harm: `lep import` says one sentence, and writes and runs nothing."""

import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, byte_fallback_tokenizer, save_model

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, LepError
from lep.exports.llama_cpp import write_tiny
from lep.exports.vocabulary import gguf_vocabulary
from lep.imports.worker import perform
from lep.tokenizer.load import load_tokenizer

gguf = pytest.mark.skipif(not find_spec("gguf"), reason="needs lep[gguf]")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
BITS, CUTS = 90, 60  # random changes, and lengths, of a file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, english: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_model(folder / "model", byte_fallback_tokenizer([english[0][:4_000]], 320))
    tokenizer = load_tokenizer(folder / "model")
    write_tiny(folder / "tiny.gguf", gguf_vocabulary(tokenizer, len(tokenizer), [2]))
    return folder / "tiny.gguf"


def fault(file: Path, folder: Path) -> str | None:
    """The sentence about a file; None if a model came out, which must then be whole."""
    folder.mkdir()
    try:
        perform("gguf", file, folder, type="f32")
    except LepError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 1_000
        return message
    finally:
        assert {path.name for path in folder.parent.iterdir()} <= {file.name, folder.name}
        shutil.rmtree(folder) if not (folder / "tokenizer.json").exists() else None
    Checkpoint(folder).check()
    shutil.rmtree(folder)
    return None


@gguf
def test_a_file_that_is_cut_short(tiny: Path, tmp_path: Path) -> None:
    """At any byte."""
    content, file = tiny.read_bytes(), tmp_path / "m.gguf"
    assert fault(tiny, tmp_path / "whole") is None
    places = np.linspace(0, len(content) - 1, CUTS, dtype=int)
    for length in map(int, places):
        file.write_bytes(content[:length])
        message = fault(file, tmp_path / "out")
        assert message is not None
        assert "is no whole GGUF file" in message, length


@gguf
def test_a_file_with_other_bits(tiny: Path, tmp_path: Path) -> None:
    """In the header, where each bit means something."""
    content, file = tiny.read_bytes(), tmp_path / "m.gguf"
    generator = random.Random(0)
    tail = content.index(b"output_norm.weight")  # names of tensors are around it
    faults = 0
    for trial in range(BITS):
        changed = bytearray(content)
        near = trial % 3
        place = generator.randrange(*((4, 400), (0, tail), (tail - 700, tail + 60))[near])
        changed[place] ^= 1 << generator.randrange(8)
        file.write_bytes(changed)
        faults += fault(file, tmp_path / "out") is not None
    assert faults > BITS // 4


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(keys: list[bytes], tensors: list[bytes] = [], **counts: int) -> bytes:  # noqa: B006
    numbers = (3, counts.get("tensor_count", len(tensors)), counts.get("key_count", len(keys)))
    return b"GGUF" + struct.pack("<IQQ", *numbers) + b"".join(keys) + b"".join(tensors)


def tensor(name: str, axes: list[int], kind: int = 0, offset: int = 0) -> bytes:
    numbers = struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset)
    return text(name) + numbers


ARRAY_OF_ARRAYS = text("a") + struct.pack("<IIQ", 9, 9, 3)
HUGE = 2**62
CASES = {
    "another format": (b"PK\3\4" + bytes(100), "does not begin with GGUF"),
    "nothing": (b"", "it ends at byte 0"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "its version is 50331648"),
    "many keys": (header([], key_count=HUGE), "claims 4,611,686,018,427,387,904 keys"),
    "many tensors": (header([], tensor_count=HUGE), "claims 4,611,686,018,427,387,904 tensors"),
    "a long key": (header([struct.pack("<Q", HUGE)]), "a name in it has 4,611"),
    "a long text": (header([text("a") + struct.pack("<IQ", 8, HUGE)]), "in the middle"),
    "a long list": (header([text("a") + struct.pack("<IIQ", 9, 8, HUGE)]), "LEP_MAX_VOCABULARY"),
    "a list of lists": (header([ARRAY_OF_ARRAYS]), "the unknown type 9"),
    "an unknown type": (header([text("a") + struct.pack("<I", 77)]), "the unknown type 77"),
    "a key twice": (header([text("a") + b"\0\0\0\0\1"] * 2), "the key a occurs twice"),
    "no UTF-8": (header([struct.pack("<Q", 1) + b"\xff" + bytes(5)]), "utf-8"),
    "five axes": (header([], [tensor("t", [1] * 5)]), "has 5 axes"),
    "no axes": (header([], [tensor("t", [])]), "has 0 axes"),
    "an empty tensor": (header([], [tensor("t", [0, 4])]), "has the shape [4, 0]"),
    "a large tensor": (header([], [tensor("t", [2**60, 2**60])]), "the tensor t ends at byte"),
    "an offset": (header([], [tensor("t", [4], offset=HUGE)]), "the tensor t ends at byte"),
    "half a block": (header([], [tensor("t", [33], kind=8)]), "of type Q8_0 has the shape [33]"),
    "a type of numbers": (header([], [tensor("t", [4], kind=999)]), "999 is not a valid"),
    "shared bytes": (header([], [tensor(n, [4]) for n in "ab"]) + bytes(64), "share bytes"),
    "an alignment": (header([text("general.alignment") + bytes([4, 0, 0, 0]) + bytes(4)]), "is 0"),
    "no model": (header([]), "the tokenizer of"),
}


@gguf
@pytest.mark.parametrize("name", CASES)
def test_headers_that_lie(name: str, tmp_path: Path) -> None:
    content, expected = CASES[name]
    (tmp_path / "m.gguf").write_bytes(content)
    message = fault(tmp_path / "m.gguf", tmp_path / "out")
    assert message is not None
    assert expected in message


@pytest.fixture(scope="module")
def rewritten(tiny: Path) -> Callable[..., None]:
    """Writes the tiny file with other metadata and tensors."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    def write(path: Path, changes: dict, tensors: dict | None = None) -> None:
        reader = GGUFReader(tiny)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        fields = {k: v for k, v in fields.items() if not k.startswith("GGUF.")} | changes
        writer = GGUFWriter(path, fields.pop("general.architecture"))
        for key, value in fields.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_key_value(key, value, GGUFValueType.INT64)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif value:
                writer.add_array(key, value)
        every = {t.name: np.array(t.data) for t in reader.tensors} | (tensors or {})
        for name, each in every.items():
            if each is not None:
                writer.add_tensor(name, each)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write


NORM = "blk.0.attn_norm.weight"
FAULTS: dict[str, tuple[dict, dict, str]] = {
    "architecture": ({"general.architecture": "mamba"}, {}, "of the architecture mamba, and lep"),
    "a setting": ({"llama.expert_count": 8}, {}, "sets llama.expert_count (8), which is not known"),
    "one of several": ({"split.count": 3}, {}, "merge them with llama.cpp's"),
    "layers": ({"llama.block_count": 10**9}, {}, "LEP_MAX_LAYERS"),
    "fewer layers": ({"llama.block_count": 2}, {}, "lacks the tensor for model.layers.1"),
    "width": ({"llama.embedding_length": 2**40}, {}, "the shape"),
    "no heads": ({"llama.attention.head_count": 0}, {}, "llama.attention.head_count of"),
    "negative": ({"llama.context_length": -1}, {}, "llama.context_length of"),
    "text": ({"llama.block_count": "1"}, {}, "llama.block_count of"),
    "part of a head": ({"llama.rope.dimension_count": 16}, {}, "the shape"),
    "values": ({"llama.attention.value_length": 7}, {}, "32 numbers in keys, 7 in values"),
    "scaling": ({"llama.rope.scaling.type": "longrope"}, {}, "scales its positions by longrope"),
    "kind": ({"tokenizer.ggml.model": "t5"}, {}, "of the kind 't5'"),
    "ids": ({"tokenizer.ggml.eos_token_id": 10**6}, {}, "the eos token of"),
    "a flag": ({"tokenizer.ggml.add_bos_token": 1}, {}, "tokenizer.ggml.add_bos_token of"),
    "tokens": ({"tokenizer.ggml.tokens": [1, 2]}, {}, "no usable tokenizer.ggml.tokens"),
    "few scores": ({"tokenizer.ggml.scores": [0.5]}, {}, "1 entries of tokenizer.ggml.scores"),
    "template": ({"tokenizer.chat_template": 5}, {}, "the chat template of"),
    "path": ({}, {"../../x": np.ones(4, np.float32)}, "has a tensor ../../x that llama"),
    "one more": ({}, {"blk.7.attn_q.weight": np.ones((32, 32), np.float16)}, "blk.7.attn_q.weight"),
    "another shape": ({}, {NORM: np.ones(31, np.float32)}, f"{NORM} of"),
    "infinity": ({}, {NORM: np.full(32, np.inf, np.float32)}, "numbers that are not finite"),
    "positions": ({}, {"rope_freqs.weight": np.full(16, 3, np.float32)}, "frequencies"),
    "no embeddings": ({}, {"token_embd.weight": None}, "has no embeddings"),
}


@gguf
@pytest.mark.parametrize("name", FAULTS)
def test_a_model_that_is_not_what_it_says(
    name: str, rewritten: Callable[..., None], tmp_path: Path
) -> None:
    changes, tensors, expected = FAULTS[name]
    rewritten(tmp_path / "m.gguf", changes, tensors)
    message = fault(tmp_path / "m.gguf", tmp_path / "out")
    assert message is not None
    assert expected in message


@gguf
@pytest.mark.slow
def test_the_command_says_one_sentence(tiny: Path, here, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(tiny.read_bytes()[:-1])
    output = here("import", tmp_path / "m.gguf", "--output", tmp_path / "out", code=2)
    assert len(output.splitlines()) == 1
    assert f"{tmp_path / 'm.gguf'} is no whole GGUF file" in output
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_the_current_folder_is_not_among_the_packages(tmp_path: Path, monkeypatch) -> None:
    """`python -m lep` puts it on the path, and what is on the path can be read."""
    from lep.imports import sandbox

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", *sys.path])
    seen: list[dict[str, str]] = []

    def run(*_: object, env: dict[str, str], **__: object) -> SimpleNamespace:
        seen.append(env)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(sandbox.subprocess, "run", run)
    with pytest.raises(CheckpointError, match="its process ended with 1"):
        sandbox.confined("gguf", tmp_path, tmp_path)
    folders = seen[0]["PYTHONPATH"].split(":")
    assert str(tmp_path) not in folders
    assert str(ROOT / "src") in folders


ATTEMPTS = """
import ctypes, os, socket, subprocess, sys
from pathlib import Path
from lep.imports.sandbox import confine
inside, outside = map(Path, sys.argv[1:])
(outside / "secret").write_text("x")
print("enforced", confine([], [inside], 0))
def attempt(name, action):
    try:
        action()
        print(name, "done")
    except OSError as error:
        print(name, "refused")
(inside / "file").write_text("y")
attempt("write inside", lambda: (inside / "file").read_text())
attempt("write", lambda: (outside / "new").write_text("z"))
attempt("change", lambda: (outside / "secret").write_text("z"))
attempt("read", lambda: (outside / "secret").read_text())
attempt("delete", lambda: (outside / "secret").unlink())
attempt("rename", lambda: (inside / "file").rename(outside / "file"))
attempt("link", lambda: os.link(outside / "secret", inside / "link"))
attempt("socket", lambda: socket.socket())
attempt("datagram", lambda: socket.socket(type=socket.SOCK_DGRAM))
attempt("run", lambda: subprocess.run(["/bin/true"]))
attempt("shell", lambda: os.execv("/bin/true", ["true"]))
"""


@linux
def test_the_process_can_touch_nothing_else(tmp_path: Path) -> None:
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-c", ATTEMPTS, tmp_path / "inside", tmp_path / "outside"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    enforced, first, *others = output.splitlines()
    if enforced != "enforced True":
        pytest.skip("this kernel has no Landlock")
    assert first == "write inside done"
    assert len(others) == 10
    assert all(line.endswith("refused") for line in others), others
    assert {path.name for path in (tmp_path / "outside").iterdir()} == {"secret"}
    assert (tmp_path / "outside" / "secret").read_text() == "x"
