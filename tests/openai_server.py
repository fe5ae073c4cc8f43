"""A small OpenAI-compatible server with a real model behind it, in vLLM's wire format."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from lep.inference.generate import answers


class Handler(BaseHTTPRequestHandler):
    model: Any
    tokenizer: Any
    name = "served"
    lock = threading.Lock()
    left = 1 << 30  # requests until the server dies

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": self.name, "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            cls = type(self)
            cls.left -= 1
            if cls.left < 0:
                self.close_connection = True
                self.connection.close()
                return
            self._send(
                self._chat(body)
                if self.path.endswith("/chat/completions")
                else self._completions(body)
            )

    def _send(self, answer: dict[str, Any]) -> None:
        raw = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = next(
            answers(
                self.model,
                self.tokenizer,
                [body["messages"]],
                max_new_tokens=body["max_tokens"],
                batch_size=1,
            )
        )[0]
        cuts = [
            answer.text.find(stop)
            for stop in body.get("stop") or []
            if stop and stop in answer.text
        ]
        text = answer.text[: min(cuts)] if cuts else answer.text
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop" if answer.finished else "length",
        }
        return {
            "choices": [choice],
            "usage": {"completion_tokens": answer.tokens + answer.finished},
        }

    @torch.inference_mode()
    def _completions(self, body: dict[str, Any]) -> dict[str, Any]:
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        if not body.get("echo"):
            return self._written(body, prompts[0])
        assert body["max_tokens"] == 1
        choices = []
        for i, ids in enumerate(prompts):
            table = self.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
            whole = [*ids, int(table[-1].argmax())]
            logprobs = [None] + [table[k - 1, whole[k]].item() for k in range(1, len(whole))]
            top = [None] + [
                {self.tokenizer.decode([int(row.argmax())]): row.max().item()} for row in table
            ]
            tokens = [self.tokenizer.decode([index]) for index in whole]
            probabilities = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top}
            choices.append(
                {
                    "index": i,
                    "text": "".join(tokens),
                    "finish_reason": "length",
                    "logprobs": probabilities,
                }
            )
        return {"object": "text_completion", "choices": choices}

    def _written(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        prompt = torch.tensor([ids])
        whole = self.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=body["max_tokens"],
            pad_token_id=0,
        )
        written = whole[0, len(ids) :].tolist()
        text, count = self.tokenizer.decode(written, skip_special_tokens=True), len(written)
        cuts = [text.find(stop) for stop in body.get("stop") or [] if stop and stop in text]
        if cuts:
            text = text[: min(cuts)]
            count = 1 + next(
                k for k in range(count + 1) if len(self.tokenizer.decode(written[:k])) >= len(text)
            )
        choice = {"index": 0, "text": text, "finish_reason": "stop" if cuts else "length"}
        return {"choices": [choice], "usage": {"completion_tokens": count}}


@contextmanager
def serving(
    model: Any, tokenizer: Any, *, dies_after: int = 1 << 30, port: int = 0
) -> Iterator[str]:
    """The URL of a server for the model."""
    handler = type(
        "Serving",
        (Handler,),
        {"model": model, "tokenizer": tokenizer, "left": dies_after, "lock": threading.Lock()},
    )
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
