"""How llama.cpp continues texts by itself: log-probabilities of the first token, greedy answers.

    python benchmarks/llama_cpp_answers.py FILE.gguf RESULT.json < REQUEST.json

A request is {"prompts": [text, ...], "tokens": of an answer, "alternatives": of the first token}.
The result has for each prompt its ids as llama.cpp reads them ("prompt"), the ids of the answer
("answer") and pairs of id and natural log-probability, best first ("first"). These are of the first
token that ends a character, whose index is "step": llama.cpp reports none of a part of a character.
Special tokens in a prompt are read as such, and BOS and EOS are inserted as the file says.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path

CONTEXT = 1024


def main(file: str, result: str) -> None:
    import xllamacpp

    request = json.load(sys.stdin)
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = file, CONTEXT, 1
    parameters.warmup = parameters.fit_params = False
    parameters.n_gpu_layers, parameters.cpuparams.n_threads = 0, 1
    server = xllamacpp.Server(parameters)
    answers = [
        continued(server.listening_address, prompt, request) for prompt in request["prompts"]
    ]
    Path(result).write_text(json.dumps(answers), encoding="utf-8")
    os._exit(0)  # the server's threads have nothing to finish


def continued(address: str, prompt: str, request: dict) -> dict:
    """The answer to one prompt."""
    text = {"content": prompt, "add_special": True, "parse_special": True}
    ids = posted(f"{address}/tokenize", text)["tokens"]
    question = {"prompt": ids, "n_predict": request["tokens"], "n_probs": request["alternatives"]}
    question |= {"temperature": 0, "return_tokens": True, "cache_prompt": False}
    reply = posted(f"{address}/completion", question)
    first = reply["completion_probabilities"][0]
    pairs = [[entry["id"], entry["logprob"]] for entry in first["top_logprobs"]]
    step = reply["tokens"].index(first["id"])
    return {"prompt": ids, "answer": reply["tokens"], "step": step, "first": pairs}


def posted(address: str, body: dict) -> dict:
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request) as reply:
        return json.load(reply)


if __name__ == "__main__":
    main(*sys.argv[1:])
