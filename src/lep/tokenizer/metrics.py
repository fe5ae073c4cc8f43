"""How many tokens a text costs."""

from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Fertility:
    """Totals of a text under a tokenizer, special tokens left out."""

    characters: int
    bytes: int
    tokens: int

    @property
    def symbols_per_token(self) -> float:
        """Characters per token, the paper's measure (section 3.1)."""
        return self.characters / self.tokens


def fertility(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Fertility:
    """Count characters, bytes and tokens of the texts."""
    characters = size = tokens = 0
    for text in texts:
        characters += len(text)
        size += len(text.encode())
        tokens += len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Fertility(characters, size, tokens)
