"""Token ids by llama.cpp itself, from a GGUF file with the tokenizer and a body of one tiny layer.

A process of its own, because llama.cpp ends the process on some faults:
python -m lep.exports.llama_cpp FILE RESULT < TEXTS
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lep.errors import TokenizerError, printable
from lep.exports.metadata import add_metadata
from lep.exports.pre_tokenizers import ELSEWHERE
from lep.exports.vocabulary import Metadata

RUNTIME = "xllamacpp"  # llama.cpp's server as a Python package
HIDDEN, CONTEXT = 32, 64  # of the tiny body
SECONDS = 600


def runtime() -> str | None:
    """Name and version of the installed runtime, if there is one."""
    return f"llama.cpp ({RUNTIME} {version(RUNTIME)})" if find_spec(RUNTIME) else None


def llama_cpp_ids(metadata: Metadata, texts: Iterable[tuple[str, bool]]) -> list[list[int]]:
    """The ids of each text, with BOS and EOS around it where its second item is true.

    Raises `TokenizerError` where llama.cpp does not accept the tokenizer.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, result = Path(folder) / "tokenizer.gguf", Path(folder) / "ids.json"
        write_tiny(file, metadata)
        command = [sys.executable, "-m", __name__, str(file), str(result)]
        process = subprocess.run(
            command,
            input=json.dumps(list(texts)),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
        )
        if not result.exists():
            lines = process.stderr.splitlines()
            faults = [line for line in lines if " E " in line or "rror" in line]
            reason = faults[0] if faults else f"exit code {process.returncode}"
            raise TokenizerError(
                f"llama.cpp does not accept this tokenizer ({printable(reason[:300])}): {ELSEWHERE}"
            )
        return json.loads(result.read_text(encoding="utf-8"))


def write_tiny(file: Path, metadata: Metadata) -> None:
    """A GGUF file with a tokenizer, and one layer of zeros."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(file, "llama")
    add_metadata(writer, metadata)
    tokens = len(metadata["tokenizer.ggml.tokens"])
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(tokens)
    writer.add_rope_dimension_count(HIDDEN)
    writer.add_tensor("token_embd.weight", np.zeros((tokens, HIDDEN), np.float16))
    square = np.zeros((HIDDEN, HIDDEN), np.float16)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", square)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _main(file: str, result: str) -> None:
    runtime: Any = import_module(RUNTIME)
    parameters = runtime.CommonParams()
    parameters.model.path, parameters.n_ctx = file, CONTEXT
    parameters.warmup = parameters.fit_params = False
    parameters.n_gpu_layers, parameters.cpuparams.n_threads = 0, 1
    server = runtime.Server(parameters)
    ids = []
    for text, inserted in json.load(sys.stdin):
        question = {"content": text, "add_special": inserted, "parse_special": True}
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize",
            json.dumps(question).encode(),
            {"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request) as reply:
            ids.append(json.load(reply)["tokens"])
    Path(result).write_text(json.dumps(ids), encoding="utf-8")
    os._exit(0)  # the server's threads have nothing to finish


if __name__ == "__main__":
    _main(*sys.argv[1:])
