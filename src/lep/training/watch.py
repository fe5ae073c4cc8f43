"""What is watched while a model trains: held-out text, and a loss that runs away."""

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
from lep.training.results import Look
from lep.transfer.mappings import saved_mappings

WINDOW_CHARACTERS, BATCH = 800, 8
COPIES, COPY_CHARACTERS = 16, 300  # texts that are repeated, and their length
PROMPTS, PROMPT_TOKENS, CONTINUED_TOKENS = 16, 16, 32  # for the text that the model writes itself
RISE, PATIENCE = 1.0, 3  # nats a token above the first loss, in so many reports: no longer noise


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
        mappings = saved_mappings(checkpoint, appended=True) if text else None
        self.new_tokens = set(mappings["input"].new_rows().tolist()) if mappings else set()

    def look(self, model: Any) -> dict[str, float]:
        """Bits per byte of each language under the model as it is now, by name.

        `NAME copied` is that of the repetition of a text, low for a model that still copies.
        `new tokens` is the share of new tokens in the model's greedy continuations of texts.
        """
        training = model.training
        model.eval()
        metrics = {
            name: self.bits_per_byte(model, texts, name) for name, texts in self.texts.items()
        }
        for name, texts in self.texts.items():
            metrics[f"{name} copied"] = self._copied(model, texts)
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

    def bits_per_byte(self, model: Any, texts: list[str], label: str = "") -> float:
        """Bits per UTF-8 byte of some texts."""
        nats = [loss for _, loss in text_nats(model, self.tokenizer, texts, BATCH, label)]
        return _per_byte(nats, texts)

    def _copied(self, model: Any, texts: list[str]) -> float:
        texts = [text[:COPY_CHARACTERS] for text in texts[:COPIES]]
        twice = [([self.start, *ids, *ids], 1 + len(ids)) for ids in self._encoded(texts)]
        return _per_byte(sequence_nats(model, twice, BATCH, "copied"), texts)

    @torch.inference_mode()
    def _new_token_share(self, model: Any, texts: list[str]) -> float:
        encoded = [ids[:PROMPT_TOKENS] for ids in self._encoded(texts[:PROMPTS])]
        prompts = [[self.start, *ids] for ids in encoded if len(ids) == PROMPT_TOKENS]
        if not prompts:
            return math.nan
        ids = torch.tensor(prompts, device=model.device)
        options = {"do_sample": False, "max_new_tokens": CONTINUED_TOKENS, "use_cache": True}
        mask = torch.ones_like(ids)
        written = model.generate(
            input_ids=ids, attention_mask=mask, pad_token_id=self.start, **options
        )
        end, tokens = self.tokenizer.eos_token_id, []
        for row in written[:, ids.shape[1] :].tolist():
            tokens += row[: row.index(end)] if end in row else row  # padding follows the end
        return sum(token in self.new_tokens for token in tokens) / max(1, len(tokens))

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


def _per_byte(nats: list[float], texts: list[str]) -> float:
    return sum(nats) / math.log(2) / sum(len(text.encode()) for text in texts)


class StopWhenDiverging(TrainerCallback):
    """Ends a training whose loss is not a number, or stays far above the first one.

    No state is saved meanwhile.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self.bad = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if self.first is None:
            losses = (entry["loss"] for entry in state.log_history if "loss" in entry)
            self.first = next(losses, loss)
        lost = not math.isfinite(loss)
        self.bad = self.bad + 1 if lost or loss > self.first + RISE else 0
        if self.bad:
            control.should_save = False  # the step of this loss has asked for a save
        if lost or self.bad >= PATIENCE:
            states = states_in(Path(args.output_dir))
            kept = f"the last state before is {states[-1]}" if states else "no state had been saved"
            raise TrainingError(
                f"the loss went from {self.first:.2f} to {loss:.2f} nats a token by step "
                f"{state.global_step} of {args.max_steps}: the learning rate "
                f"{args.learning_rate:g} is too high, give a lower one; {kept}"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bad:
            control.should_save = False


def states_in(folder: Path) -> list[Path]:
    """The states that a Trainer saved in a folder, `checkpoint-STEP`, by step."""
    return sorted(folder.glob("checkpoint-*"), key=state_step)


def state_step(state: Path | str) -> int:
    """The step of a saved state."""
    return int(str(state).rpartition("-")[2])
