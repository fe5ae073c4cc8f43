"""Extend the tokenizer of a model with tokens learned on a corpus, and publish it."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lep.corpus.read import read_documents
from lep.errors import LepError
from lep.hub import local_folder
from lep.publish import publishing
from lep.tokenizer.extend import extend_bpe
from lep.tokenizer.load import check_loaders, load_tokenizer, write_tokenizer

REPORTED_TEXTS = 200


def extend_tokenizer(base: str | Path, corpus: list[str | Path], new_tokens: int, output: Path) -> dict[str, Any]:
    """Write the tokenizer of `base` with exactly `new_tokens` more tokens to `output`, losslessly.

    `extension.json` beside it lists the new tokens and what they save on the corpus. Before the folder takes its
    name, texts of the corpus are encoded and decoded with it and compared. Returns the content of
    `extension.json`.
    """
    if new_tokens < 1:
        raise LepError(f"the number of new tokens is {new_tokens}: give at least 1")
    folder = local_folder(base)
    tokenizer = load_tokenizer(folder)
    extension = extend_bpe(tokenizer.backend_tokenizer, (d.text for d in read_documents(corpus)), new_tokens)
    extended = Tokenizer.from_str(json.dumps(extension.spec))
    texts = [d.text for d, _ in zip(read_documents(corpus), range(REPORTED_TEXTS), strict=False)]
    before, after = _tokens(tokenizer.backend_tokenizer, texts), _tokens(extended, texts)
    record = {
        "new_tokens": new_tokens, "first_id": extension.first_id, "script": extension.script,
        "corpus_sample": {"characters": sum(map(len, texts)), "tokens_before": before, "tokens_after": after},
        "tokens": [token.decode(errors="replace") for token in extension.new_tokens],
    }  # fmt: skip
    for text in texts:
        _check_round_trip(tokenizer.backend_tokenizer, extended, text)
    with publishing(output) as partial:
        write_tokenizer(extension.spec, folder, partial)
        (partial / "extension.json").write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        check_loaders(partial, [text[:2000] for text in texts[:20]])
    return record


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> int:
    return sum(len(encoded.ids) for encoded in tokenizer.encode_batch(texts, add_special_tokens=False))


def _check_round_trip(before: Tokenizer, after: Tokenizer, text: str) -> None:
    expected = before.decode(before.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
    got = after.decode(after.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
    if got != expected:
        raise AssertionError(f"the extended tokenizer does not give back {text[:60]!r}")
