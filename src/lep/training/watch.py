"""What looks on while a model trains: held-out text, and a loss that runs away."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from lep.checkpoint.reader import Checkpoint
from lep.corpus.prepare import windows
from lep.corpus.read import read_documents
from lep.errors import TrainingError
from lep.inference.likelihood import sequence_nats, start_token, text_nats
from lep.transfer.mappings import saved_mappings

WINDOW_CHARACTERS, BATCH = 800, 8
COPIES, COPY_CHARACTERS = 16, 300  # texts that are repeated, and their length
PROMPTS, PROMPT_TOKENS, CONTINUED_TOKENS = 16, 16, 32  # of what the model writes on its own
RISE, PATIENCE = 1.0, 3  # nats a token above the first loss, in so many reports: no longer noise


class HeldoutText:
    """Held-out text of each language, the same windows at every look."""

    def __init__(self, text: dict[str, list[str]], characters: int, checkpoint: Checkpoint) -> None:
        """Raises what reading the text raises, before anything trains."""
        self.tokenizer = checkpoint.tokenizer
        self.texts = {
            name: [w.text for w in windows(read_documents(paths), characters, WINDOW_CHARACTERS)]
            for name, paths in text.items()
        }
        mappings = saved_mappings(checkpoint, appended=True) if text else None
        self.new_tokens = set(mappings["input"].new_rows().tolist()) if mappings else set()

    def look(self, model: Any) -> dict[str, float]:
        """Bits per byte of each language under the model as it is now, by its name.

        `NAME copied` is that of a text's repetition: what a model that still copies knows already. `new tokens` is
        the share of new tokens in what it writes on its own, greedily, after the beginnings of the first texts.
        """
        training = model.training
        model.eval()
        found = {name: self.bits_per_byte(model, texts, name) for name, texts in self.texts.items()}
        for name, texts in self.texts.items():
            found[f"{name} copied"] = self._copied(
                model, [text[:COPY_CHARACTERS] for text in texts[:COPIES]]
            )
        if self.new_tokens:
            found["new tokens"] = self._written(model, next(iter(self.texts.values()))[:PROMPTS])
        model.train(training)
        return found

    def looks(self, history: list[dict[str, float]]) -> list[dict[str, Any]]:
        """What was seen at each step, from a trainer's log."""
        first = f"eval_{next(iter(self.texts))}"
        return [
            {
                "step": entry["step"],
                "bits_per_byte": {name: entry[f"eval_{name}"] for name in self.texts},
                "copied_bits_per_byte": {name: entry[f"eval_{name} copied"] for name in self.texts},
            }
            | ({"new_token_share": entry["eval_new tokens"]} if self.new_tokens else {})
            for entry in history
            if first in entry
        ]

    def bits_per_byte(self, model: Any, texts: list[str], label: str = "") -> float:
        nats = sum(loss for _, loss in text_nats(model, self.tokenizer, texts, BATCH, label))
        return nats / math.log(2) / sum(len(text.encode()) for text in texts)

    def _copied(self, model: Any, texts: list[str]) -> float:
        start = start_token(self.tokenizer)
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        nats = sequence_nats(
            model, [([start, *ids, *ids], 1 + len(ids)) for ids in encoded], BATCH, "copied"
        )
        return sum(nats) / math.log(2) / sum(len(text.encode()) for text in texts)

    @torch.inference_mode()
    def _written(self, model: Any, texts: list[str]) -> float:
        start, end = start_token(self.tokenizer), self.tokenizer.eos_token_id
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        prompts = [[start, *ids[:PROMPT_TOKENS]] for ids in encoded if len(ids) >= PROMPT_TOKENS]
        if not prompts:
            return math.nan
        ids = torch.tensor(prompts, device=model.device)
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=CONTINUED_TOKENS,
            pad_token_id=start,
            use_cache=True,
        )[:, ids.shape[1] :]
        rows = [
            row[: row.index(end)] if end in row else row for row in written.tolist()
        ]  # padding comes after the end
        tokens = [token for row in rows for token in row]
        return sum(token in self.new_tokens for token in tokens) / max(1, len(tokens))


class StopWhenDiverging(TrainerCallback):
    """Ends a training whose loss is no number, or stays far above the first one; such a state is never saved."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.bad = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if self.first is None:
            self.first = next(
                (entry["loss"] for entry in state.log_history if "loss" in entry), loss
            )
        lost = not math.isfinite(loss)
        self.bad = self.bad + 1 if lost or loss > self.first + RISE else 0
        if self.bad:
            control.should_save = False  # asked for by the step that this is the loss of
        if lost or self.bad >= PATIENCE:
            states = sorted(
                Path(args.output_dir).glob("checkpoint-*"),
                key=lambda p: int(p.name.rpartition("-")[2]),
            )
            kept = f"the last state before is {states[-1]}" if states else "no state had been saved"
            raise TrainingError(
                f"the loss went from {self.first:.2f} to {loss:.2f} nats a token by step {state.global_step} of "
                f"{args.max_steps}: the learning rate {args.learning_rate:g} is too high, give a lower one; {kept}"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bad:
            control.should_save = False
