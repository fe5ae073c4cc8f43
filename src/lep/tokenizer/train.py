"""Train a new vocabulary for a model: byte-level BPE or Unigram, lossless, with the model's special tokens."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, decoders, models, trainers

from lep.errors import CorpusError, LepError
from lep.tokenizer.bpe import continue_bpe
from lep.tokenizer.count import WordCounts
from lep.tokenizer.parts import renumber
from lep.tokenizer.script import ScriptFilter
from lep.tokenizer.vocabulary import BYTE_TO_CHARACTER, Vocabulary

# How text is cut when the model's own tokenizer does not say it (SentencePiece): words with their space and marks,
# up to three digits, punctuation with the line ends behind it, line ends, other white space.
PRE_TOKENS = r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ALPHABET = [BYTE_TO_CHARACTER[byte] for byte in range(256)]
LONGEST_PIECE_BYTES = 48  # of a Unigram piece: 24 Cyrillic letters


def fresh_merges(words: WordCounts, learned: int, *, byte_level: bool) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """A vocabulary learned from nothing: its alphabet, and at most `learned` merges in order, as bytes.

    The alphabet is all bytes, or every character of the words, the most frequent first.
    """
    if byte_level:
        alphabet = [bytes([byte]) for byte in range(256)]
    else:
        counts: Counter[str] = Counter()
        for word, count in words.counts.items():
            counts.update({character: count * word.count(character) for character in set(word)})
        alphabet = [character.encode() for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    ids = {letter: i for i, letter in enumerate(alphabet)}
    spelled = (
        (list(word.encode()) if byte_level else [ids[character.encode()] for character in word], count)
        for word, count in sorted(words.counts.items())
    )
    merges, contents = continue_bpe(spelled, list(alphabet), [], learned, ScriptFilter(None))
    return alphabet, [(contents[m.left] or b"", contents[m.right] or b"") for m in merges]


def replacement(base: Tokenizer, words: WordCounts, size: int, *, algorithm: str = "bpe") -> Tokenizer:
    """A new vocabulary of exactly `size` tokens, byte-level whatever the base is, so that nothing is ever lost.

    Words are cut as the base cuts them, or by `PRE_TOKENS` when it cuts at spaces only (`replacement_cutter`).
    Every added token of the base stays, with its flags, and the post-processor; those before the base's first
    ordinary token come first, the others last.

    Raises `LepError` for an unknown algorithm or a size below alphabet and added tokens, `CorpusError` when the
    corpus yields fewer tokens.
    """
    if algorithm not in ALGORITHMS:
        raise LepError(f"unknown algorithm '{algorithm}': the algorithms are {', '.join(ALGORITHMS)}")
    spec = json.loads(base.to_str())
    added = sorted(spec["added_tokens"], key=lambda entry: entry["id"])
    least = len(added) + len(ALPHABET)
    if size < least:
        raise LepError(
            f"the vocabulary shall have {size:,} tokens, but the alphabet of {len(ALPHABET)} bytes and {len(added):,} "
            f"added tokens need {least:,}: ask for more"
        )
    vocabulary = Vocabulary.of(base)
    ordinary = next((i for i, token in enumerate(vocabulary.tokens) if token and not token.added), 0)
    first = [entry["content"] for entry in added if entry["id"] < ordinary]
    last = [entry["content"] for entry in added if entry["id"] >= ordinary]
    model = ALGORITHMS[algorithm](words, size - len(added), first, last)
    names = [name for name, _ in model["vocab"]] if algorithm == "unigram" else list(model["vocab"])
    if len(names) < size:
        raise CorpusError(f"the corpus yields only {len(names):,} of {size:,} tokens: give more text or ask for fewer")
    ids = {name: i for i, name in enumerate(names)}
    spec |= {
        "model": model, "normalizer": None, "pre_tokenizer": _pre_tokenizer(spec, vocabulary.byte_level),
        "decoder": json.loads(decoders.ByteLevel().__getstate__()),
        "added_tokens": [entry | {"id": ids[entry["content"]]} for entry in added],
    }  # fmt: skip
    renumber(spec.get("post_processor"), ids)
    return Tokenizer.from_str(json.dumps(spec))


def replacement_cutter(base: Tokenizer) -> Tokenizer:
    """A tokenizer without vocabulary that cuts words as the replacement will."""
    spec = json.loads(base.to_str())
    empty = Tokenizer(models.BPE())
    cut = _pre_tokenizer(spec, Vocabulary.of(base).byte_level)
    return Tokenizer.from_str(json.dumps(json.loads(empty.to_str()) | {"pre_tokenizer": cut}))


def _bpe(words: WordCounts, size: int, first: list[str], last: list[str]) -> dict[str, Any]:
    alphabet, merges = fresh_merges(words, size - len(ALPHABET), byte_level=True)
    learned = dict.fromkeys([*alphabet, *(left + right for left, right in merges)])
    names = [*first, *map(_name, learned), *last]
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {name: i for i, name in enumerate(names)},
        "merges": [[_name(left), _name(right)] for left, right in merges],
    }  # fmt: skip


def _unigram(words: WordCounts, size: int, first: list[str], last: list[str]) -> dict[str, Any]:
    """Kudo 2018, by the `tokenizers` library, on the words as bytes."""
    tokenizer = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=size, initial_alphabet=ALPHABET, max_piece_length=LONGEST_PIECE_BYTES, show_progress=False
    )
    tokenizer.train_from_iterator((_name(word.encode()) for word in _repeated(words)), trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    lowest = min(score for _, score in pieces)
    missing = [[letter, lowest - 1] for letter in ALPHABET if letter not in {name for name, _ in pieces}]
    pieces = [*pieces[: size - len(missing)], *missing]
    # Added tokens never reach the model; their score only has to lose against any other way.
    low = lowest - 100
    names = [*([name, low] for name in first), *pieces, *([name, low] for name in last)]
    return {"type": "Unigram", "unk_id": None, "byte_fallback": False, "vocab": names}


ALGORITHMS = {"bpe": _bpe, "unigram": _unigram}


def _repeated(words: WordCounts) -> Iterator[str]:
    for word, count in sorted(words.counts.items()):
        for _ in range(count):
            yield word


def _name(content: bytes) -> str:
    return "".join(BYTE_TO_CHARACTER[byte] for byte in content)


def _pre_tokenizer(spec: dict[str, Any], byte_level: bool) -> dict[str, Any]:
    if byte_level:
        return spec["pre_tokenizer"]
    pattern = {"type": "Split", "pattern": {"Regex": PRE_TOKENS}, "behavior": "Isolated", "invert": False}
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [pattern, as_bytes]}
