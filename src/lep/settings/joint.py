"""Settings of joint training, and of what the original model writes and answers for it."""

from typing import Any

from pydantic import Field, PositiveFloat, model_validator

from lep.fields import Settings
from lep.settings.kinds import Count, LearningRate, PositiveInt, Seed, Share, WeightDecay, Weights
from lep.settings.training import PretrainSettings, TrainedParts

# Streams of a mixture, with their usual shares of the tokens.
STREAMS = {"text": 0.22, "answers": 0.16, "practice": 0.5, "old_text": 0.06, "old_answers": 0.06}

# Of new rows, with the epsilon of lep.training.optimizer (docs/log.md).
RELATIVE_RATE, LOGIT_STEP = 0.12, 3.0


class JointSettings(PretrainSettings):
    """Joint training on text, answers and practice tasks."""

    old_text: list[str] = Field([])
    """Text of the languages that the model knows, to mix in (default: none)."""
    answers: str | None = None
    """Folder that lep answer wrote, or jsonl with messages, to mix in; the last message of each
    conversation is learned. Conversations without a new token are old answers (default: none)."""
    practice_tasks: str | None = None
    """Folder that lep practice wrote, or jsonl with messages, to mix in (default: none)."""
    shares: Weights = Field({})
    """STREAM=SHARE,...: how many tokens of a step a stream has, relative to the others (default, of
    those that are given: text=0.22,answers=0.16,practice=0.5,old_text=0.06,old_answers=0.06)."""
    relative_rate: LearningRate | None = None
    """Peak learning rate of each table as a share of the root mean square of its known rows
    (default: 0.12 for new rows that learn from several streams, unless a learning rate is given;
    else the learning rate)."""
    logit_step: LearningRate | None = LOGIT_STEP
    """Most nats that a step may move a logit by; the relative rate of the
    table that makes the logits is lowered to stay within it."""
    lora_rate: LearningRate | None = None
    """Peak learning rate of the adapters (default: that of the tables, or 0.0002 where theirs is
    relative to their rows)."""
    practice: PositiveInt = 100
    """Count the new tokens that are learned less often than this."""
    shared_maps: bool = True
    """In a mixture, new rows also train shared maps, from the rows of their first and last
    pieces, and a vector for all tokens that begin with a space: rare tokens learn from all."""

    @property
    def is_mixture(self) -> bool:
        """Whether there is more than text of the new language."""
        return bool(self.old_text or self.answers or self.practice_tasks)

    @property
    def has_maps(self) -> bool:
        """Whether new rows train maps in common, if there is a mixture."""
        return self.trains_new_rows and self.shared_maps


class PracticeSettings(Settings):
    """Practice tasks."""

    practice: PositiveInt = 100
    """Make tasks until each new token is in this many answers."""
    practice_tokens: PositiveInt | None = None
    """Stop at this many tokens, questions included (default: no limit; in a run with a number of
    tokens to train on, two fifths of the practice that it trains on)."""
    practice_batch: PositiveInt = 64
    """Tasks that the original model is given at once."""
    practice_seed: Seed = 0
    """Seed of words and tasks."""


class OwnPromptSettings(Settings):
    """Prompts that the original instruct model writes."""

    own_prompts: Count = 200
    """Prompts to write in each language (in a run: as many in all old languages together)."""
    prompt_tokens: PositiveInt = 128
    """Longest prompt, in tokens; longer ones are dropped."""
    prompt_temperature: PositiveFloat = 1.0
    """Temperature at which prompts are drawn."""
    prompt_top_p: Share = 0.95
    """Probability mass that prompts are drawn from."""
    prompt_batch: PositiveInt = 32
    """Prompts that are written at once."""
    prompt_seed: Seed = 0
    """Seed of prompts."""


class NewRowsSettings(JointSettings):
    """Joint training of the new rows of an instruct model."""

    train: TrainedParts = "new_rows"
    relative_rate: LearningRate | None = RELATIVE_RATE
    weight_decay: WeightDecay = 0.0

    @model_validator(mode="before")
    @classmethod
    def _one_rate(cls, values: Any) -> Any:
        """A learning rate that is given is not replaced by a usual one."""
        if isinstance(values, dict) and values.get("learning_rate") is not None:
            return {"relative_rate": None} | values
        return values
