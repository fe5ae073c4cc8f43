"""Train a new vocabulary for a model: byte-level BPE or Unigram, lossless, with the model's special tokens."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, decoders, models

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
# Unigram: characters of a piece, share of the text whose characters become pieces, lines that are looked at.
LONGEST_PIECE, COVERAGE, UNIGRAM_LINES = 24, 0.9998, 8_000_000
UNIGRAM_THREADS = 4  # fixed: sums depend on it
# The library's first candidates are strings that are seen with two different characters behind them. A word that is
# nowhere the beginning of a longer one would be none, so words end in one of two marks; digits, which the library keeps
# apart when asked to, and which real digits are not confused with.
ENDS, DIGITS = "01", {str(i): chr(0x100000 + i) for i in range(10)}
# White space and controls as the letters that stand for them in byte-level vocabularies: sentencepiece changes them.
VISIBLE = {chr(byte): BYTE_TO_CHARACTER[byte] for byte in range(128)} | DIGITS
VISIBLE_TABLE = str.maketrans({k: v for k, v in VISIBLE.items() if k != v})
HIDDEN = str.maketrans({v: k for k, v in VISIBLE.items() if k != v})
RESERVED = {
    *(v for k, v in VISIBLE.items() if k != v),
    "\u2581",
    "\0",
}  # U+2581 is its mark of a space
# A space and the character behind it as one: a private-use character, this far above that character.
SPACED, LAST_SPACED = 0xF0000, 0xFFFD
WIDE_DIGITS = range(0xFF10, 0xFF1A)  # digits to the library, too


def fresh_merges(
    words: WordCounts, learned: int, *, byte_level: bool
) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """A vocabulary learned from nothing: its alphabet, and at most `learned` merges in order, as bytes.

    The alphabet is all bytes, or every character of the words, the most frequent first.
    """
    if byte_level:
        alphabet = [bytes([byte]) for byte in range(256)]
    else:
        counts: Counter[str] = Counter()
        for word, count in words.counts.items():
            counts.update({character: count * word.count(character) for character in set(word)})
        alphabet = [
            character.encode()
            for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]
    ids = {letter: i for i, letter in enumerate(alphabet)}
    spelled = (
        (
            list(word.encode()) if byte_level else [ids[character.encode()] for character in word],
            count,
        )
        for word, count in sorted(words.counts.items())
    )
    merges, contents = continue_bpe(spelled, list(alphabet), [], learned, ScriptFilter(None))
    return alphabet, [(contents[m.left] or b"", contents[m.right] or b"") for m in merges]


def replacement(
    base: Tokenizer, words: WordCounts, size: int, *, algorithm: str = "bpe"
) -> Tokenizer:
    """A new vocabulary of exactly `size` tokens, byte-level whatever the base is, so that nothing is ever lost.

    Words are cut as the base cuts them, or by `PRE_TOKENS` when it cuts at spaces only (`replacement_cutter`).
    Every added token of the base stays, with its flags, and the post-processor; those before the base's first
    ordinary token come first, the others last.

    Raises `LepError` for an unknown algorithm or a size below alphabet and added tokens, `CorpusError` when the
    corpus yields fewer tokens.
    """
    if algorithm not in ALGORITHMS:
        raise LepError(
            f"unknown algorithm '{algorithm}': the algorithms are {', '.join(ALGORITHMS)}"
        )
    spec = json.loads(base.to_str())
    added = sorted(spec["added_tokens"], key=lambda entry: entry["id"])
    least = len(added) + len(ALPHABET)
    if size < least:
        raise LepError(
            f"the vocabulary shall have {size:,} tokens, but the alphabet of {len(ALPHABET)} bytes and {len(added):,} "
            f"added tokens need {least:,}: ask for more"
        )
    vocabulary = Vocabulary.of(base)
    ordinary = next(
        (i for i, token in enumerate(vocabulary.tokens) if token and not token.added), 0
    )
    first = [entry["content"] for entry in added if entry["id"] < ordinary]
    last = [entry["content"] for entry in added if entry["id"] >= ordinary]
    model = ALGORITHMS[algorithm](words, size - len(added), first, last)
    names = [name for name, _ in model["vocab"]] if algorithm == "unigram" else list(model["vocab"])
    if len(names) < size:
        raise CorpusError(
            f"the corpus yields only {len(names):,} of {size:,} tokens: give more text or ask for fewer"
        )
    ids = {name: i for i, name in enumerate(names)}
    spec |= {
        "model": model,
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(spec, vocabulary.byte_level),
        "decoder": json.loads(decoders.ByteLevel().__getstate__()),
        "added_tokens": [entry | {"id": ids[entry["content"]]} for entry in added],
    }
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
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {name: i for i, name in enumerate(names)},
        "merges": [[_name(left), _name(right)] for left, right in merges],
    }


def _unigram(words: WordCounts, size: int, first: list[str], last: list[str]) -> dict[str, Any]:
    """Kudo 2018, by the `sentencepiece` library, on whole characters; bytes spell the characters it leaves out.

    On bytes it would waste pieces on cut characters. The space before a word and the word's first letter are trained as
    one character: since words occur without a space too, the likelihood would rather have " " as a token of its own.
    """
    known = _common_characters(words, (size - len(ALPHABET)) // 3)
    letters = {name: VISIBLE[name] for name in VISIBLE if name in known}
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(words, known),
            model_writer=model,
            model_type="unigram",
            vocab_size=size - len(ALPHABET) + len(letters) + len(ENDS) + 1,
            hard_vocab_limit=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=True,
            split_by_unicode_script=False,
            split_by_number=False,
            split_digits=True,
            max_sentencepiece_length=LONGEST_PIECE,
            num_threads=UNIGRAM_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:  # the library says what its own options are called
        raise CorpusError(
            f"the corpus is too small for a Unigram vocabulary of {size:,} tokens: give more text or "
            "ask for fewer"
        ) from error
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = {trained.id_to_piece(i): trained.get_score(i) for i in range(1, len(trained))}
    pieces = {piece: score for piece, score in pieces.items() if piece not in ENDS}
    scores = {_name(_unmarked(piece).encode()): score for piece, score in pieces.items()}
    low = min(scores.values()) - 1
    alphabet = [[letter, scores.pop(letter, low)] for letter in ALPHABET]
    # Letters that only occur joined to others got no piece of their own, and the library gave their places to others.
    best = set(sorted(scores, key=lambda name: (-scores[name], name))[: size - len(ALPHABET)])
    scores = {name: score for name, score in scores.items() if name in best}
    # Added tokens never reach the model; their score only has to lose against any other way.
    low -= 100
    ordinary = [*map(list, scores.items()), *alphabet]
    return {
        "type": "Unigram",
        "unk_id": None,
        "byte_fallback": False,
        "vocab": [*([name, low] for name in first), *ordinary, *([name, low] for name in last)],
    }


ALGORITHMS = {"bpe": _bpe, "unigram": _unigram}


def _common_characters(words: WordCounts, limit: int) -> set[str]:
    """The most frequent characters that together make up `COVERAGE` of the text, at most `limit`."""
    counts: Counter[str] = Counter()
    for word, count in words.counts.items():
        counts.update({character: count * word.count(character) for character in set(word)})
    found, reached, total = set[str](), 0, counts.total()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]:
        if reached >= COVERAGE * total:
            break
        reached += count
        found.add(character)
    return {c for c in found - RESERVED if ord(c) < SPACED and ord(c) not in WIDE_DIGITS}


def _lines(words: WordCounts, known: set[str]) -> Iterator[str]:
    """Words in proportion to their counts, at most `UNIGRAM_LINES`, without the characters that are not known."""
    share, seen = min(1.0, UNIGRAM_LINES / max(1, words.counts.total())), 0
    for word, count in sorted(words.counts.items()):
        times = int((seen + count) * share) - int(seen * share)
        seen += count
        for part in "".join(c if c in known else "\0" for c in word).split("\0") if times else []:
            for i in range(times if part else 0):
                yield _marked(part) + ENDS[i % len(ENDS)]


def _marked(part: str) -> str:
    """What the library sees of a word: its space joined to the next character, white space and controls visible."""
    joined = part[0] == " " and len(part) > 1 and part[1] > " " and ord(part[1]) <= LAST_SPACED
    return ((chr(SPACED + ord(part[1])) + part[2:]) if joined else part).translate(VISIBLE_TABLE)


def _unmarked(piece: str) -> str:
    joined = SPACED <= ord(piece[0]) <= SPACED + LAST_SPACED
    return ((" " + chr(ord(piece[0]) - SPACED) + piece[1:]) if joined else piece).translate(HIDDEN)


def _name(content: bytes) -> str:
    return "".join(BYTE_TO_CHARACTER[byte] for byte in content)


def _pre_tokenizer(spec: dict[str, Any], byte_level: bool) -> dict[str, Any]:
    if byte_level:
        return spec["pre_tokenizer"]
    pattern = {
        "type": "Split",
        "pattern": {"Regex": PRE_TOKENS},
        "behavior": "Isolated",
        "invert": False,
    }
    as_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {"type": "Sequence", "pretokenizers": [pattern, as_bytes]}
