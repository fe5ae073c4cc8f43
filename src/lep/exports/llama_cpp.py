"""Token ids by llama.cpp itself, from a GGUF file with the tokenizer and a body of one tiny layer.

A process of its own, because llama.cpp ends the process on some faults:
python -m lep.exports.llama_cpp FILE RESULT < QUESTIONS
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lep.errors import TokenizerError, printable
from lep.exports.metadata import add_metadata
from lep.exports.pre_tokenizers import ELSEWHERE
from lep.exports.vocabulary import TEMPLATE, Metadata
from lep.tokenizer.chat import TEMPLATE_OPTIONS, Record

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
    plain = {key: value for key, value in metadata.items() if key != TEMPLATE}
    questions = [{"content": text, "add_special": inserted} for text, inserted in texts]
    return _answers(plain, questions)


def llama_cpp_chat_ids(
    metadata: Metadata, conversations: Iterable[Sequence[Record]]
) -> list[list[int] | None]:
    """The ids that each conversation has in llama.cpp's chat, up to the answer.

    None for one that the template refuses there. Raises `TokenizerError` where llama.cpp does not
    accept the tokenizer or the template.
    """
    options = {"chat_template_kwargs": TEMPLATE_OPTIONS}
    return _answers(metadata, [{"messages": messages, **options} for messages in conversations])


def _answers(metadata: Metadata, questions: list[dict[str, Any]]) -> Any:
    """What the process of its own answers to each question; see `_main`."""
    with tempfile.TemporaryDirectory() as folder:
        file, result = Path(folder) / "tokenizer.gguf", Path(folder) / "ids.json"
        write_tiny(file, metadata)
        command = [sys.executable, "-m", __name__, str(file), str(result)]
        process = subprocess.run(
            command,
            input=json.dumps(questions),
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
    parameters.use_jinja = True
    parameters.n_gpu_layers, parameters.cpuparams.n_threads = 0, 1
    server = runtime.Server(parameters)
    questions = json.load(sys.stdin)
    ids = [_ids(server.listening_address, question) for question in questions]
    Path(result).write_text(json.dumps(ids), encoding="utf-8")
    os._exit(0)  # the server's threads have nothing to finish


def _ids(address: str, question: dict[str, Any]) -> list[int] | None:
    """The ids of a text, or of a conversation; None where the template refuses it."""
    if "messages" in question:
        try:
            text = _post(f"{address}/apply-template", question)["prompt"]
        except urllib.error.HTTPError:
            return None
        question = {"content": text, "add_special": True}
    return _post(f"{address}/tokenize", question | {"parse_special": True})["tokens"]


def _post(address: str, question: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, json.dumps(question).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request) as reply:
        return json.load(reply)


if __name__ == "__main__":
    _main(*sys.argv[1:])
