"""`Recipient`: an instruct model, and the vocabulary and token ids that it receives."""

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from lep.checkpoint.reader import Checkpoint
from lep.errors import TokenizerError
from lep.mapping import VocabularyMapping
from lep.tokenizer.carry import carried_ids, with_added_tokens
from lep.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class Recipient:
    """An instruct model and the vocabulary of the adapted model."""

    model: Checkpoint
    tokenizer: Tokenizer  # of the adapted model
    mappings: dict[str, VocabularyMapping]  # input and, in an untied model, output
    ids: dict[int, int]  # {instruct id: result id} of the instruct model's added tokens

    @property
    def rows(self) -> int:
        """Rows of the result's tables."""
        return max([self.mappings["input"].target_size, *(row + 1 for row in self.ids.values())])

    @property
    def instruct_rows(self) -> dict[int, int]:
        """`{result row: instruct row}` of the rows that stay the instruct model's."""
        return {row: index for index, row in self.ids.items()}

    @property
    def result_mappings(self) -> dict[str, VocabularyMapping]:
        """By table, which rows of the instruct model make up each row of the result."""
        rows = self.model.shape(self.model.tables.input)[0]
        return {k: m.with_copies(self.instruct_rows, rows) for k, m in self.mappings.items()}

    def tokenizer_spec(self) -> dict[str, Any]:
        """Content of tokenizer.json: the new vocabulary with the instruct model's added tokens.

        Flags of the added tokens and the post-processor are the instruct model's.
        """
        model = self.model.tokenizer.backend_tokenizer
        return with_added_tokens(self.tokenizer, model, self.ids)


def result_ids(
    ids: int, instruct: Checkpoint, target: Vocabulary, mapping: VocabularyMapping
) -> dict[int, int]:
    """`{instruct id: result id}` of the instruct model's added tokens (`carried_ids`).

    Raises `TokenizerError` when the instruct model has ordinary tokens beyond the first `ids`,
    which are those of the model from which the mapping leads.
    """
    for index, token in enumerate(instruct.vocabulary.tokens[ids:], start=ids):
        if token is not None and not token.added:
            raise TokenizerError(
                f"id {index} of {instruct.folder}, {token.content!r}, is an ordinary token beyond "
                f"the {ids:,} ids that both models share: only added tokens can be carried along"
            )
    kept, sources = (rows.tolist() for rows in mapping.kept())
    moved = dict(zip(reversed(sources), reversed(kept), strict=True))  # the first of several
    return carried_ids(instruct.vocabulary, target, moved)
