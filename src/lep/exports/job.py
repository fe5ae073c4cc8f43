"""What an export is of, what it returns, and the sentence about ids that differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers.normalizers import NFC
from transformers import PreTrainedTokenizerFast

from lep.checkpoint.pretrained import end_ids
from lep.checkpoint.reader import Checkpoint
from lep.errors import TokenizerError
from lep.result import Result
from lep.tokenizer.chat import turn_end
from lep.tokenizer.vocabulary import described

Texts = Sequence[tuple[str, bool]]  # texts, and whether BOS and EOS are put around them
SHOWN_IDS, SHOWN_CHARACTERS = 12, 60  # in the sentence of a difference


@dataclass(frozen=True)
class Job:
    """A model, where and how it is written, and the texts that must have its ids there."""

    source: Checkpoint
    output: Path
    type: str
    texts: Texts

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.source.tokenizer

    @property
    def rows(self) -> int:
        """Rows of the input embeddings, with padding."""
        return self.source.shape(self.source.tables.input)[0]

    @cached_property
    def ends(self) -> list[int]:
        """Ids of the tokens that end an answer: the tokenizer's EOS, the template's, the settings'.

        The EOS of the tokenizer comes first, the token that the template writes second.
        """
        known = len(self.source.vocabulary)
        return [index for index in end_ids(self.source) or () if index < known]

    def check_ends(self, program: str) -> None:
        """Raise `TokenizerError` where no token ends an answer."""
        if not self.ends:
            raise TokenizerError(
                f"no token ends an answer, and {program} would take another one as the end: name "
                f"eos_token in {self.source.folder / 'tokenizer_config.json'}"
            )

    @cached_property
    def turn_end(self) -> int | None:
        """The added token that the template writes after an answer."""
        return turn_end(self.tokenizer)

    @cached_property
    def stops(self) -> list[str]:
        """The tokens that end an answer."""
        return [self.tokenizer.convert_ids_to_tokens(index) for index in self.ends]


@dataclass(frozen=True)
class Exported(Result):
    """A model for another program, and how it was proven."""

    output: Path
    to: str
    type: str
    tokens: int  # rows, with padding
    tokenizer: str  # what the program calls it
    texts: int  # that have the same ids
    proven_by: str  # who gives those ids
    agreement: str  # of the model's probabilities and answers, where they were compared
    stops: list[str]
    notes: list[str]

    def __str__(self) -> str:
        files = [p for p in (self.output, *self.output.rglob("*")) if p.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e6
        lines = [
            f"{self.tokens:,} tokens, {self.tokenizer}, {self.type}: {self.output}, {size:.1f} MB",
            f"ids equal on {self.texts:,} of {self.texts:,} texts, by {self.proven_by}",
            self.agreement,
            *self.notes,
        ]
        return "\n".join(filter(None, lines))


def composes(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer composes characters (NFC)."""
    return (described(tokenizer.backend_tokenizer.normalizer) or {}).get("type") == "NFC"


def composed(texts: Texts) -> Texts:
    """The texts with their characters composed (NFC)."""
    return [(NFC().normalize_str(text), inserted) for text, inserted in texts]


def check_ids(
    tokenizer: PreTrainedTokenizerFast,
    texts: Texts,
    results: Sequence[list[int]],
    reader: str,
    way_out: str,
) -> None:
    """Raise `TokenizerError` for the first text whose ids by `reader` are not the tokenizer's."""
    for (text, inserted), ids in zip(texts, results, strict=True):
        expected = tokenizer(text, add_special_tokens=inserted)["input_ids"]
        if ids != expected:
            raise TokenizerError(_difference(text, expected, ids, reader, way_out))


def _difference(text: str, expected: list[int], ids: list[int], reader: str, way_out: str) -> str:
    """The sentence about the first position where ids differ."""
    pairs = zip(expected, ids, strict=False)
    start = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(ids)))
    first, second = (each[start : start + SHOWN_IDS] for each in (expected, ids))
    return (
        f"the exported tokenizer would give other ids: {text[:SHOWN_CHARACTERS]!r} has the ids "
        f"{first} from position {start}, by {reader} {second}; nothing was written: {way_out}"
    )
