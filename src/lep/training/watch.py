"""What looks on while a model trains: held-out text, and a loss that runs away."""

import math
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, TrainerCallback

from lep.corpus.prepare import windows
from lep.corpus.read import read_documents
from lep.errors import TrainingError
from lep.inference.likelihood import text_nats

WINDOW_CHARACTERS, BATCH = 800, 8
RISE, PATIENCE = 1.0, 3  # nats a token above the first loss, in so many reports: no longer noise


class HeldoutText:
    """Held-out text of each language, the same windows at every look."""

    def __init__(self, text: dict[str, list[str]], characters: int, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises what reading the text raises, before anything trains."""
        self.tokenizer = tokenizer
        self.texts = {
            name: [w.text for w in windows(read_documents(paths), characters, WINDOW_CHARACTERS)]
            for name, paths in text.items()
        }

    def bits_per_byte(self, model: Any) -> dict[str, float]:
        """Of each language under the model as it is now."""
        training = model.training
        model.eval()
        found = {}
        for name, texts in self.texts.items():
            nats = sum(loss for _, loss in text_nats(model, self.tokenizer, texts, BATCH, name))
            found[name] = nats / math.log(2) / sum(len(text.encode()) for text in texts)
        model.train(training)
        return found


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
            self.first = next((entry["loss"] for entry in state.log_history if "loss" in entry), loss)
        lost = not math.isfinite(loss)
        self.bad = self.bad + 1 if lost or loss > self.first + RISE else 0
        if lost or self.bad >= PATIENCE:
            states = sorted(Path(args.output_dir).glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
            kept = f"the last state before is {states[-1]}" if states else "no state had been saved"
            raise TrainingError(
                f"the loss went from {self.first:.2f} to {loss:.2f} nats a token by step {state.global_step} of "
                f"{args.max_steps}: the learning rate {args.learning_rate:g} is too high, give a lower one; {kept}"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bad:
            control.should_save = False
