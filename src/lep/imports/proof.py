"""The ids of an imported tokenizer are those of the file that it was made from."""

from transformers import PreTrainedTokenizerFast

from lep.errors import TokenizerError
from lep.exports.job import SHOWN_CHARACTERS, SHOWN_IDS, Texts
from lep.exports.to_gguf import ids_of
from lep.exports.vocabulary import Metadata
from lep.imports.architectures import INSTEAD


def prove(tokenizer: PreTrainedTokenizerFast, metadata: Metadata, texts: Texts) -> str:
    """Who gives the same ids from the file's metadata.

    Raises `TokenizerError` for the first text with other ids.
    """
    reader, expected = ids_of(metadata, texts)
    compare(tokenizer, texts, expected, reader)
    return reader


def compare(
    tokenizer: PreTrainedTokenizerFast, texts: Texts, expected: list[list[int]], reader: str
) -> None:
    """Raise `TokenizerError` for the first text whose ids are not the expected ones of `reader`."""
    for (text, inserted), right in zip(texts, expected, strict=True):
        ids = tokenizer(text, add_special_tokens=inserted)["input_ids"]
        if ids != right:
            pairs = zip(right, ids, strict=False)
            shorter = min(len(right), len(ids))
            start = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
            first, second = (each[start : start + SHOWN_IDS] for each in (right, ids))
            raise TokenizerError(
                f"the imported tokenizer gives other ids: {text[:SHOWN_CHARACTERS]!r} has the ids "
                f"{first} from position {start} by {reader}, and {second} in tokenizer.json; "
                f"nothing was written: {INSTEAD}"
            )
