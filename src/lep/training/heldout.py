"""Looks at held-out text while a model trains: likelihood, copying, use of the new tokens."""

import math
from itertools import accumulate, chain, takewhile
from typing import Any

import torch

from lep.checkpoint.reader import Checkpoint
from lep.corpus.prepare import windows
from lep.corpus.read import read_documents
from lep.inference.generate import end_tokens
from lep.inference.likelihood import sequence_nats, start_token, text_nats
from lep.training.results import Look
from lep.transfer.mappings import saved_mappings

WINDOW_CHARACTERS, BATCH = 800, 8
COPIES, COPY_CHARACTERS = 16, 300  # texts that are repeated, and their length
ALL_LANGUAGES = "all languages"  # geometric mean of their bits per byte
PROMPTS, PROMPT_TOKENS, CONTINUED_TOKENS = 16, 16, 32  # for the text that the model writes itself


class HeldoutText:
    """Held-out text of each language, cut into the same windows for every look."""

    def __init__(self, text: dict[str, list[str]], characters: int, checkpoint: Checkpoint) -> None:
        """Reads the text; raises `CorpusError` before anything trains."""
        self.tokenizer = checkpoint.tokenizer
        self.start = start_token(self.tokenizer) if text else -1
        self.texts = {
            name: [w.text for w in windows(read_documents(paths), characters, WINDOW_CHARACTERS)]
            for name, paths in text.items()
        }
        self.copies = COPIES
        mappings = saved_mappings(checkpoint, appended=True) if text else None
        self.new_tokens = set(mappings["input"].new_rows().tolist()) if mappings else set()

    def limit(self, tokens: int) -> None:
        """Read so many tokens of each language, half of them in repetitions; at least one text."""
        for name, texts in self.texts.items():
            self.texts[name] = texts[: self._fitting(texts, tokens // 2)]
        self.copies = min(self._fitting(_short(t), tokens // 4) for t in self.texts.values())

    def _fitting(self, texts: list[str], tokens: int) -> int:
        """How many of the first texts have at most so many tokens together, at least one."""
        totals = accumulate(map(len, self._encoded(texts)))
        return max(1, sum(total <= tokens for total in totals))

    def look(self, model: Any) -> dict[str, float]:
        """Bits per byte of each language under the model as it is now, by name.

        `NAME copied` is that of the repetition of a text, low for a model that still copies.
        `new tokens` is the share of new tokens in the model's greedy continuations of texts.
        """
        training = model.training
        model.eval()
        metrics = {}
        for name, texts in self.texts.items():
            nats = [loss for _, loss in text_nats(model, self.tokenizer, texts, BATCH, name)]
            metrics[name] = _per_byte(nats, texts)
            short = _short(texts[: self.copies])
            twice = [([self.start, *ids, *ids], 1 + len(ids)) for ids in self._encoded(short)]
            nats = sequence_nats(model, twice, BATCH, "copied")
            metrics[f"{name} copied"] = _per_byte(nats, short)
        bits = [metrics[name] for name in self.texts]
        metrics[ALL_LANGUAGES] = math.prod(bits) ** (1 / len(bits))
        if self.new_tokens:
            metrics["new tokens"] = self._new_token_share(model, next(iter(self.texts.values())))
        model.train(training)
        return metrics

    def looks(self, history: list[dict[str, float]]) -> list[Look]:
        """All looks, from a Trainer's log."""
        return [
            Look(
                int(entry["step"]),
                {name: entry[f"eval_{name}"] for name in self.texts},
                {name: entry[f"eval_{name} copied"] for name in self.texts},
                entry["eval_new tokens"] if self.new_tokens else None,
            )
            for entry in history
            if f"eval_{next(iter(self.texts))}" in entry
        ]

    @torch.inference_mode()
    def _new_token_share(self, model: Any, texts: list[str]) -> float:
        encoded = [ids[:PROMPT_TOKENS] for ids in self._encoded(texts[:PROMPTS])]
        prompts = [[self.start, *ids] for ids in encoded if len(ids) == PROMPT_TOKENS]
        if not prompts:
            return math.nan
        ids = torch.tensor(prompts, device=model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        options = {"do_sample": False, "max_new_tokens": CONTINUED_TOKENS, "use_cache": True}
        written = model.generate(**inputs, pad_token_id=self.start, **options)
        ends = end_tokens(model) | {self.tokenizer.eos_token_id}
        rows = written[:, ids.shape[1] :].tolist()  # padding follows the end of each
        tokens = [*chain(*(takewhile(lambda token: token not in ends, row) for row in rows))]
        return sum(token in self.new_tokens for token in tokens) / max(1, len(tokens))

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


def _short(texts: list[str]) -> list[str]:
    return [text[:COPY_CHARACTERS] for text in texts[:COPIES]]


def _per_byte(nats: list[float], texts: list[str]) -> float:
    return sum(nats) / math.log(2) / sum(len(text.encode()) for text in texts)
