"""How often each word occurs in a corpus: streamed, on all cores, in bounded memory."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from math import ceil
from pathlib import Path
from typing import IO, Any
from zlib import crc32

import regex
import zstandard
from tokenizers import Tokenizer

from lep.corpus.files import Paths, several
from lep.corpus.language import script_set
from lep.corpus.parallel import in_order
from lep.corpus.read import batches, read_lines, sample_texts, stream_texts
from lep.errors import CorpusError, TokenizerError, foreign
from lep.limits import PATTERN_SECONDS, time_limit
from lep.publish import fingerprint
from lep.tokenizer.script import resolve_script
from lep.tokenizer.vocabulary import CHARACTER_TO_BYTE, SPACE, Vocabulary, described

COUNTS_SUFFIX = ".counts.zst"
SCRIPT_SAMPLE_CHARACTERS, SCRIPT_SAMPLE_BYTES = 1_000_000, 2_000_000
CHUNK_CHARACTERS = 2_000_000  # what a worker gets at once
PARALLEL_CHARACTERS = 8_000_000  # a smaller corpus is counted before a worker would have started
MOST_HALVINGS = 64
MAX_WORDS = 3_000_000  # bounds the memory; above it the rarest words are dropped, or half of all
# Words of a tokenizer that cuts at spaces only: letters with their marks, with one space before.
LETTERS = r"(?:(?<! ) )?[\p{L}\p{M}]+"
BETWEEN_SPACES = r" *[^ ]+| +$"
LONE_BYTE = regex.compile("[\udc80-\udcff]")
# What ByteLevel cuts with when no other pattern is given (GPT-2).
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class WordCounts:
    """Words (as text, with their spaces) and how often each occurs.

    Where a pre-tokenizer cuts a character, its bytes are lone surrogates (`surrogateescape`), and
    `word_bytes` gives them back. `script` is the one that every word has a character of, or None
    for all words. After n `halvings` these are only a sample: one in 2^n of all different words.
    """

    counts: Counter[str]
    script: str | None
    characters: int  # of the whole corpus
    halvings: int = 0

    def character_counts(self) -> Counter[str]:
        """How often each character occurs in the words."""
        counts: Counter[str] = Counter()
        for word, count in self.counts.items():
            for character in word:
                if not LONE_BYTE.match(character):
                    counts[character] += count
        return counts


def word_bytes(word: str) -> bytes:
    """The bytes of a counted word."""
    return word.encode(errors="surrogateescape")


@dataclass(frozen=True)
class WordCutter:
    """Cuts text into the words within which merges happen: pre-tokens, or letters in them.

    `spec` is a tokenizer.json without vocabulary. A byte-level pre-token is a word; where one may
    hold a whole line (SentencePiece, or no pre-tokenizer at all), its runs of letters are words. A
    `pattern` replaces a pre-tokenizer that only splits by it, or only at spaces: it is several
    times faster. `check` finds texts where the two differ.
    """

    spec: str
    byte_level: bool
    pattern: str | None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "WordCutter":
        """Raises `TokenizerError` for a byte-level tokenizer that does not turn text into bytes."""
        spec: dict[str, Any] = {
            "version": "1.0",
            "added_tokens": [],
            "model": {"type": "BPE", "vocab": {}, "merges": []},
            "normalizer": described(tokenizer.normalizer),
            "pre_tokenizer": described(tokenizer.pre_tokenizer),
        }
        byte_level = Vocabulary.of(tokenizer).byte_level
        if byte_level and not gives_bytes(tokenizer.pre_tokenizer, tokenizer.normalizer):
            raise TokenizerError(
                "the tokenizer is byte-level, but neither its normaliser nor its pre-tokenizer "
                "turns text into bytes, so it loses text: add a ByteLevel pre-tokenizer to its "
                "tokenizer.json"
            )
        if byte_level:
            return cls(json.dumps(spec), byte_level, split_pattern(spec))
        at_spaces = (spec["pre_tokenizer"] or {}).get("type") in (None, "Metaspace")
        return cls(json.dumps(spec), byte_level, LETTERS if at_spaces else None)

    def __call__(self, text: str) -> list[str]:
        """The words of a text, in order."""
        if self.pattern is not None:
            what = f"cutting words by the tokenizer's pattern {self.pattern[:80]!r}"
            with time_limit(PATTERN_SECONDS, what, TokenizerError):
                return regex.findall(self.pattern, self._normalised(text))
        words = self._pre_tokens(text)
        if self._has_pre_tokens:
            return words
        return [run for word in words for run in regex.findall(LETTERS, word)]

    def pieces(self, text: str) -> int:
        """The number of words, including those without letters: no fewer tokens are possible."""
        if self._has_pre_tokens:
            return len(self(text))
        whole = "".join(self._pre_tokens(text)) if self.byte_level else self._normalised(text)
        return len(regex.findall(BETWEEN_SPACES, whole))

    def check(self, texts: Iterable[str]) -> "WordCutter":
        """This cutter, or one that runs the pre-tokenizer itself if they differ on some text."""
        if not self.byte_level or self.pattern is None:
            return self
        slow = replace(self, pattern=None)
        return self if all(self(text) == slow(text) for text in texts) else slow

    @property
    def fingerprint(self) -> str:
        """What two counts must share to be merged."""
        spec = json.loads(self.spec)
        return fingerprint([spec["normalizer"], spec["pre_tokenizer"], self.byte_level])

    @property
    def _has_pre_tokens(self) -> bool:
        """Whether what the pre-tokenizer yields are words."""
        return self.byte_level and json.loads(self.spec)["pre_tokenizer"] is not None

    def _normalised(self, text: str) -> str:
        """A text as its words are written."""
        normalizer = _stub(self.spec).normalizer
        text = text if normalizer is None else normalizer.normalize_str(text)
        return text if self.byte_level else text.replace(SPACE, " ")

    def _pre_tokens(self, text: str) -> list[str]:
        """What the model gets of a text, as text again."""
        stub, pieces = _stub(self.spec), [text]
        if stub.normalizer is not None:
            pieces = [text := stub.normalizer.normalize_str(text)]
        if stub.pre_tokenizer is not None:
            pieces = [piece for piece, _ in stub.pre_tokenizer.pre_tokenize_str(text)]
        if not self.byte_level:
            return [piece.replace(SPACE, " ") for piece in pieces]
        contents = (bytes(CHARACTER_TO_BYTE[c] for c in piece) for piece in pieces)
        return [content.decode(errors="surrogateescape") for content in contents]


def gives_bytes(pre_tokenizer: Any, normalizer: Any = None) -> bool:
    """Whether these turn every text into characters of the byte-level alphabet."""
    text = "".join(map(chr, range(256)))
    if normalizer is not None:
        text = normalizer.normalize_str(text)
    if pre_tokenizer is not None:
        text = "".join(piece for piece, _ in pre_tokenizer.pre_tokenize_str(text))
    return CHARACTER_TO_BYTE.keys() >= set(text)


def split_pattern(spec: dict[str, Any]) -> str | None:
    """The regular expression by which a byte-level tokenizer cuts text, if that is all it does."""
    pre_tokenizer = spec["pre_tokenizer"] or {}
    match spec["normalizer"], pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        case None, [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return GPT2
        case None, [
            {"pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ]:
            return pattern
    return None


@lru_cache
def _stub(spec: str) -> Tokenizer:
    return Tokenizer.from_str(spec)


def count_words(tokenizer: Tokenizer, corpus: Paths, script: str = "auto") -> WordCounts:
    """Count the words of a corpus that hold a character of the script (all words for `any`).

    `corpus` lists text files, folders, and files of counts (`write_counts`). The script `auto` is
    the one of most letters in a sample of all text files, of each by its size.

    Raises `CorpusError` for an empty corpus, one without the script, or counts of another
    tokenizer or script.
    """
    paths, parts = [], []
    for path in map(Path, several(corpus)):
        if not path.name.endswith(COUNTS_SUFFIX):
            paths.append(path)
            continue
        words = read_counts(path, WordCutter.of(tokenizer))
        if script not in ("auto", "any") and words.script != script.capitalize():
            raise CorpusError(f"{path} holds {words.script} words: count again for {script}")
        parts.append(words)
    if paths:
        sample = "".join(sample_texts(paths, SCRIPT_SAMPLE_BYTES)) if script == "auto" else ""
        parts.append(count_texts(tokenizer, stream_texts(paths), script, sample=sample))
    return merge_counts(parts)


def count_texts(
    tokenizer: Tokenizer, texts: Iterable[str], script: str = "auto", *, sample: str = ""
) -> WordCounts:
    """Count the words of texts; see `count_words`.

    The script `auto` is the one of most letters in the `sample`; without one, in the beginnings of
    all texts of a list, or in the first texts of a stream.
    """
    beginnings = _beginnings(texts) if isinstance(texts, Sequence) else ""
    texts = iter(texts)
    first: list[str] = next(batches(texts, SCRIPT_SAMPLE_CHARACTERS), [])
    name = resolve_script(script, sample.strip() or beginnings or "".join(first))
    cutter = WordCutter.of(tokenizer).check(text[:20_000] for text in first[:50])
    chunks = batches(chain(first, texts), CHUNK_CHARACTERS)
    here = PARALLEL_CHARACTERS // CHUNK_CHARACTERS
    words = _total(in_order(partial(_count_chunk, cutter, name), chunks, here=here), name)
    if name is not None and not words.counts:
        raise CorpusError(f"the corpus holds no {name} text: give some, or name another script")
    return words


def _beginnings(texts: Sequence[str]) -> str:
    """The same share of every text, about as many characters as tell the script."""
    share = min(1, SCRIPT_SAMPLE_CHARACTERS / max(1, sum(map(len, texts))))
    return "".join(text[: ceil(share * len(text))] for text in texts)


def merge_counts(parts: list[WordCounts]) -> WordCounts:
    """The sum of several counts; raises `CorpusError` when their scripts differ."""
    if not parts:
        raise CorpusError("no corpus is given: give text files, folders, or files of counts")
    script = parts[0].script
    if other := [part.script for part in parts if part.script != script]:
        both = f"counts of {script} and of {other[0]} words"
        raise CorpusError(f"{both}: name one script for all")
    return _total(parts, script, max(part.halvings for part in parts))


def _total(parts: Iterable[WordCounts], script: str | None, halvings: int = 0) -> WordCounts:
    counts, characters = Counter[str](), 0
    for part in parts:
        counts.update(_sampled(part.counts, halvings))
        characters += part.characters
        halvings = _bounded(counts, halvings)
    return WordCounts(counts, script, characters, halvings)


def write_counts(file: IO[bytes], words: WordCounts, cutter: WordCutter) -> None:
    """Write a line of facts, then `[word, count]` lines, compressed."""
    facts = {"cutter": cutter.fingerprint, "words": len(words.counts), **vars(words)}
    lines = [facts, *map(list, sorted(facts.pop("counts").items()))]
    compressor = zstandard.ZstdCompressor()
    with compressor.stream_writer(file, closefd=False) as out:
        for line in lines:
            text = json.dumps(line, ensure_ascii=False)
            out.write((json.dumps(line) if LONE_BYTE.search(text) else text).encode() + b"\n")


def read_counts(path: Path, cutter: WordCutter) -> WordCounts:
    """Read what `write_counts` wrote; raises `CorpusError` when another tokenizer cut the words."""
    if not path.exists():
        raise CorpusError(f"corpus path {path} does not exist: check the spelling")
    lines = read_lines(path)
    with foreign(f"{path} is no file of counts", "use `lep tokenizer count`", CorpusError):
        facts = json.loads(next(lines))
        same_cutter = facts.pop("cutter") == cutter.fingerprint
        # Files before this fact show by zstd that they are whole.
        written = facts.pop("words", None)
        counts = Counter(dict(map(json.loads, lines)))
        words = WordCounts(counts, **facts)
        if not all(type(w) is str and type(n) is int and n > 0 for w, n in counts.items()):
            raise ValueError("it counts other things than words")
        if not isinstance(words.script, str | None) or type(words.characters) is not int:
            raise ValueError(f"{words.characters} characters of the script {words.script}")
        if words.halvings not in range(MOST_HALVINGS):
            raise ValueError(f"{words.halvings} halvings")
    if written not in (None, len(counts)):
        raise CorpusError(
            f"{path} holds {len(counts):,} words, and was written with {written}: it ends early, "
            "copy it again"
        )
    if not same_cutter:
        advice = "count again (for `lep tokenizer train`: with --fresh)"
        raise CorpusError(
            f"{path} was counted for a tokenizer that cuts words differently: {advice}"
        )
    return words


def _count_chunk(cutter: WordCutter, script: str | None, texts: list[str]) -> WordCounts:
    counts = Counter(chain.from_iterable(map(cutter, texts)))
    if script is not None:
        has = regex.compile(f"[{script_set(script)}]").search
        counts = Counter({word: count for word, count in counts.items() if has(word)})
    return WordCounts(counts, script, sum(map(len, texts)))


def _sampled(counts: Counter[str], halvings: int) -> Counter[str]:
    """The words whose hash ends in so many zero bits: the same ones in every text."""
    if not halvings:
        return counts
    return Counter({w: n for w, n in counts.items() if not crc32(word_bytes(w)) % (1 << halvings)})


def _bounded(counts: Counter[str], halvings: int) -> int:
    """Drop words in place until at most `MAX_WORDS` are left; returns the halvings.

    Words seen once go first, then those seen twice, and so on. But if words seen once are most of
    the text (clauses of scripts without spaces), a hashed half of all words goes instead: the rest
    is a fair sample, which the frequent words alone are not.
    """
    threshold = 1
    while len(counts) > MAX_WORDS:
        if 2 * sum(count == 1 for count in counts.values()) > counts.total():
            halvings += 1
            dropped: Iterable[str] = counts.keys() - _sampled(counts, halvings).keys()
        else:
            dropped = [word for word, count in counts.items() if count <= threshold]
            threshold += 1
        for word in dropped:
            del counts[word]
    return halvings
