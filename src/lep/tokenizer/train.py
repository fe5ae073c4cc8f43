"""Train a new vocabulary for a model, byte-level BPE or Unigram, with its special tokens."""

import io
import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from lep.errors import CorpusError, LepError
from lep.tokenizer.bpe import continue_bpe
from lep.tokenizer.count import WordCounts, gives_bytes, word_bytes
from lep.tokenizer.parts import renumber
from lep.tokenizer.script import ScriptFilter
from lep.tokenizer.vocabulary import BYTE_TO_CHARACTER, Vocabulary, byte_level_name, described

# For bases without a rule (SentencePiece): words with their space and marks, up to three digits,
# punctuation with line ends, line ends, other white space.
PRE_TOKENS = (
    r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ALPHABET = [BYTE_TO_CHARACTER[byte] for byte in range(256)]
# Unigram: characters of a piece, share of the text whose characters become pieces, lines read.
LONGEST_PIECE, COVERAGE, UNIGRAM_LINES = 24, 0.9998, 8_000_000
UNIGRAM_THREADS = 4  # fixed, because sums depend on it
# The library's first candidates are strings followed by at least two different characters. Words
# end in one of two marks so that whole words are candidates too. The marks are digits, which the
# library keeps apart on request; real digits are written as other characters.
ENDS, DIGITS = "01", {str(i): chr(0x100000 + i) for i in range(10)}
# White space and controls, which sentencepiece changes, as their byte-level characters.
VISIBLE = {chr(byte): BYTE_TO_CHARACTER[byte] for byte in range(128)} | DIGITS
HIDDEN = {visible: character for character, visible in VISIBLE.items() if visible != character}
TO_VISIBLE = str.maketrans({character: visible for visible, character in HIDDEN.items()})
TO_HIDDEN = str.maketrans(HIDDEN)
RESERVED = {*HIDDEN, "\u2581", "\0"}  # U+2581 is the library's mark of a space
# A space and the character after it become one private-use character, this far above that one.
SPACED, LAST_SPACED = 0xF0000, 0xFFFD
WIDE_DIGITS = range(0xFF10, 0xFF1A)  # digits to the library as well
TRAINER_OPTIONS: dict[str, Any] = {
    "model_type": "unigram",
    "character_coverage": 1.0,
    "normalization_rule_name": "identity",
    "split_digits": True,
    "max_sentencepiece_length": LONGEST_PIECE,
    "num_threads": UNIGRAM_THREADS,
    "minloglevel": 2,
    **dict.fromkeys(["bos_id", "eos_id", "pad_id"], -1),
    **dict.fromkeys(["add_dummy_prefix", "remove_extra_whitespaces", "hard_vocab_limit"], False),
    **dict.fromkeys(["split_by_unicode_script", "split_by_number"], False),
}


def fresh_merges(
    words: WordCounts, limit: int, *, byte_level: bool
) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """A vocabulary learned from nothing: its alphabet, and at most `limit` merges in order.

    The alphabet is all bytes, or all characters of the words, the most frequent first.
    """
    if byte_level:
        alphabet = [bytes([byte]) for byte in range(256)]
    else:
        alphabet = [character.encode() for character, _ in by_frequency(words)]
    ids = {letter: i for i, letter in enumerate(alphabet)}
    spelled = (
        (list(word_bytes(word)) if byte_level else [ids[c.encode()] for c in word], count)
        for word, count in sorted(words.counts.items())
    )
    merges, contents = continue_bpe(spelled, list(alphabet), [], limit, ScriptFilter(None))
    return alphabet, [(contents[m.left] or b"", contents[m.right] or b"") for m in merges]


def replacement(
    base: Tokenizer, words: WordCounts, size: int, *, algorithm: str = "bpe"
) -> Tokenizer:
    """A new vocabulary of exactly `size` tokens; byte-level for any base, so it is lossless.

    `words` were cut by `replacement_cutter`. The post-processor stays, and every added token of the
    base with its flags: those before the base's first ordinary token come first, others last.

    Raises `LepError` for an unknown algorithm or a size below alphabet and added tokens,
    `CorpusError` when the corpus yields fewer tokens.
    """
    if algorithm not in ALGORITHMS:
        raise LepError(f"unknown algorithm '{algorithm}': choose one of {', '.join(ALGORITHMS)}")
    spec, tokens = json.loads(base.to_str()), Vocabulary.of(base).tokens
    added = sorted(spec["added_tokens"], key=lambda entry: entry["id"])
    least = len(added) + len(ALPHABET)
    if size < least:
        raise LepError(
            f"a vocabulary of {size:,} tokens is too small: the alphabet of {len(ALPHABET)} bytes "
            f"and {len(added):,} added tokens need {least:,}"
        )
    ordinary = next((i for i, t in enumerate(tokens) if t and not t.added), 0)
    first = [entry["content"] for entry in added if entry["id"] < ordinary]
    last = [entry["content"] for entry in added if entry["id"] >= ordinary]
    names, model = ALGORITHMS[algorithm](words, size - len(added), first, last)
    if len(names) < size:
        problem = f"the corpus yields {len(names):,} of {size:,} tokens"
        raise CorpusError(f"{problem}: give more text or ask for fewer")
    ids = {name: i for i, name in enumerate(names)}
    spec |= {
        "model": model,
        "normalizer": None,
        "pre_tokenizer": described(_pre_tokenizer(base)),
        "decoder": described(decoders.ByteLevel()),
        "added_tokens": [entry | {"id": ids[entry["content"]]} for entry in added],
    }
    renumber(spec.get("post_processor"), ids)
    return Tokenizer.from_str(json.dumps(spec))


def replacement_cutter(base: Tokenizer) -> Tokenizer:
    """A tokenizer without vocabulary that cuts words as the replacement will.

    It cuts as the base does, or by `PRE_TOKENS` if the base cuts at spaces only.
    """
    cutter = Tokenizer(models.BPE())
    cutter.pre_tokenizer = _pre_tokenizer(base)
    return cutter


Model = tuple[list[str], dict[str, Any]]  # names by id, and the model part of tokenizer.json


def _bpe(words: WordCounts, size: int, first: list[str], last: list[str]) -> Model:
    alphabet, learned = fresh_merges(words, size - len(ALPHABET), byte_level=True)
    contents = dict.fromkeys([*alphabet, *(left + right for left, right in learned)])
    names = [*first, *map(byte_level_name, contents), *last]
    vocab = {name: i for i, name in enumerate(names)}
    merges = [list(map(byte_level_name, pair)) for pair in learned]
    return list(vocab), {"type": "BPE", "vocab": vocab, "merges": merges}


def _unigram(words: WordCounts, size: int, first: list[str], last: list[str]) -> Model:
    """Unigram (Kudo 2018) by `sentencepiece`, on whole characters; bytes spell the rare ones.

    Trained on bytes it would waste pieces on parts of characters. A word's first letter and the
    space before it are trained as one character: otherwise the likelihood prefers " " as a token of
    its own, because words occur without a space as well.
    """
    known = _common_characters(words, (size - len(ALPHABET)) // 3)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(words, known),
            model_writer=model,
            vocab_size=size - len(ALPHABET) + len(known & VISIBLE.keys()) + len(ENDS) + 1,
            **TRAINER_OPTIONS,
        )
    except RuntimeError as error:  # the library's message names its own options
        problem = f"the corpus is too small for {size:,} Unigram tokens"
        raise CorpusError(f"{problem}: give more text or ask for fewer") from error
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = {i: trained.id_to_piece(i) for i in range(1, len(trained))}
    names = {i: _unmarked(piece).encode() for i, piece in pieces.items() if piece not in ENDS}
    scores = {byte_level_name(name): trained.get_score(i) for i, name in names.items()}
    low = min(scores.values()) - 1
    alphabet = [(letter, scores.pop(letter, low)) for letter in ALPHABET]
    # The library fills the room of letters that only occur joined to others and so have no piece.
    best = set(sorted(scores, key=lambda name: (-scores[name], name))[: size - len(ALPHABET)])
    ordinary = [(name, score) for name, score in scores.items() if name in best] + alphabet
    # Added tokens never reach the model; their score only has to lose against all other spellings.
    vocab = [*((n, low - 100) for n in first), *ordinary, *((n, low - 100) for n in last)]
    model_spec = {"type": "Unigram", "unk_id": None, "byte_fallback": False, "vocab": vocab}
    return [name for name, _ in vocab], model_spec


ALGORITHMS = {"bpe": _bpe, "unigram": _unigram}


def by_frequency(words: WordCounts) -> list[tuple[str, int]]:
    """The characters of the words and how often each occurs, the most frequent first."""
    return sorted(words.character_counts().items(), key=lambda item: (-item[1], item[0]))


def _common_characters(words: WordCounts, limit: int) -> set[str]:
    """The most frequent characters that make up `COVERAGE` of the text, at most `limit`."""
    ranked = by_frequency(words)
    total, reached, common = sum(count for _, count in ranked), 0, set[str]()
    for character, count in ranked[:limit]:
        if reached >= COVERAGE * total:
            break
        reached += count
        common.add(character)
    return {c for c in common - RESERVED if ord(c) < SPACED and ord(c) not in WIDE_DIGITS}


def _lines(words: WordCounts, known: set[str]) -> Iterator[str]:
    """At most `UNIGRAM_LINES` words, in proportion to their counts, cut at unknown characters."""
    share, seen = min(1.0, UNIGRAM_LINES / max(1, words.counts.total())), 0
    for word, count in sorted(words.counts.items()):
        times = int((seen + count) * share) - int(seen * share)
        seen += count
        parts = "".join(c if c in known else "\0" for c in word).split("\0") if times else []
        for part, i in product(filter(None, parts), range(times)):
            yield _marked(part) + ENDS[i % len(ENDS)]


def _marked(part: str) -> str:
    """A word for the library: its space joined to the next character, white space made visible."""
    if part[0] == " " and len(part) > 1 and part[1] > " " and ord(part[1]) <= LAST_SPACED:
        part = chr(SPACED + ord(part[1])) + part[2:]
    return part.translate(TO_VISIBLE)


def _unmarked(piece: str) -> str:
    if SPACED <= ord(piece[0]) <= SPACED + LAST_SPACED:
        piece = " " + chr(ord(piece[0]) - SPACED) + piece[1:]
    return piece.translate(TO_HIDDEN)


def _pre_tokenizer(base: Tokenizer) -> Any:
    if Vocabulary.of(base).byte_level and gives_bytes(base.pre_tokenizer):
        return base.pre_tokenizer
    split = pre_tokenizers.Split(Regex(PRE_TOKENS), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, as_bytes])
