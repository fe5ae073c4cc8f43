"""How often each word occurs in a corpus: streamed, on all cores, in bounded memory, and by shard."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import regex
import zstandard
from tokenizers import Tokenizer

from lep.corpus.parallel import in_order
from lep.corpus.read import batches, read_lines, stream_texts
from lep.errors import CorpusError, TokenizerError
from lep.publish import fingerprint
from lep.tokenizer.script import resolve_script
from lep.tokenizer.vocabulary import CHARACTER_TO_BYTE, SPACE, Vocabulary, described

COUNTS_SUFFIX = ".counts.zst"
SCRIPT_SAMPLE_CHARACTERS = 1_000_000
CHUNK_CHARACTERS = 2_000_000  # what a worker gets at once
PARALLEL_CHARACTERS = 8_000_000  # a smaller corpus is counted before a worker would have started
MAX_WORDS = 3_000_000  # bounds the memory; above it the rarest words are forgotten
# Words of a tokenizer that cuts at spaces only: letters with their marks, with the one space before them.
LETTERS = r"(?:(?<! ) )?[\p{L}\p{M}]+"
BETWEEN_SPACES = r" *[^ ]+| +$"
# What ByteLevel cuts with when no other pattern is given (GPT-2).
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class WordCounts:
    """Words (as text, with their spaces) and how often they occur; `script` is that of all of them, or None."""

    counts: Counter[str]
    script: str | None
    characters: int  # of the whole corpus


@dataclass(frozen=True)
class WordCutter:
    """Cuts text into the words within which merges happen: pre-tokens, or pieces between spaces.

    `spec` is the text of a tokenizer.json without its vocabulary. Where the pre-tokenizer is a regular expression,
    `regex` runs it, several times faster; `check` falls back to the pre-tokenizer should the two ever differ.
    """

    spec: str
    byte_level: bool
    by_pattern: bool = True

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "WordCutter":
        """The cutter of a tokenizer."""
        spec: dict[str, Any] = {"version": "1.0", "added_tokens": []}
        spec["model"] = {"type": "BPE", "vocab": {}, "merges": []}
        spec |= {name: described(getattr(tokenizer, name)) for name in ("normalizer", "pre_tokenizer", "decoder")}
        return cls(json.dumps(spec), Vocabulary.of(tokenizer).byte_level)

    def __call__(self, text: str) -> list[str]:
        """The words of a text, in order."""
        if not self.byte_level:
            return _compiled(LETTERS).findall(self._normalised(text).replace(SPACE, " "))
        pattern = self._split_pattern() if self.by_pattern else None
        if pattern is not None:
            return _compiled(pattern).findall(text)
        pieces = _stub(self.spec).pre_tokenizer.pre_tokenize_str(self._normalised(text))
        return [bytes(CHARACTER_TO_BYTE[c] for c in piece).decode(errors="replace") for piece, _ in pieces]

    def pieces(self, text: str) -> int:
        """How many words the whole text has, those without letters too: no tokenizer of this cut takes fewer tokens."""
        if self.byte_level:
            return len(self(text))
        return len(_compiled(BETWEEN_SPACES).findall(self._normalised(text).replace(SPACE, " ")))

    def check(self, texts: Iterable[str]) -> "WordCutter":
        """This cutter, or one without the short cut when that gives other words on some text."""
        slow = WordCutter(self.spec, self.byte_level, by_pattern=False)
        return self if all(self(text) == slow(text) for text in texts) else slow

    @property
    def fingerprint(self) -> str:
        """What two counts must share to be merged."""
        spec = json.loads(self.spec)
        return fingerprint([spec["normalizer"], spec["pre_tokenizer"], self.byte_level])

    def _normalised(self, text: str) -> str:
        normalizer = _stub(self.spec).normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def _split_pattern(self) -> str | None:
        spec = json.loads(self.spec)
        if spec["normalizer"] is not None:
            return None
        match spec["pre_tokenizer"]:
            case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}:
                return GPT2
            case {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
                ],
            }:
                return pattern
        return None


@lru_cache
def _compiled(pattern: str) -> Any:
    return regex.compile(pattern)


@lru_cache
def _stub(spec: str) -> Tokenizer:
    return Tokenizer.from_str(spec)


def count_words(tokenizer: Tokenizer, corpus: Iterable[str | Path], script: str = "auto") -> WordCounts:
    """Count the words of a corpus that hold a character of the script (all words for `any`).

    `corpus` lists text files and folders, and files of counts made before (`write_counts`).

    Raises `CorpusError` for an empty corpus, one without the script, or counts of another tokenizer.
    """
    paths = [Path(path) for path in corpus]
    made = [path for path in paths if path.name.endswith(COUNTS_SUFFIX)]
    text_paths = [path for path in paths if path not in made]
    found = [read_counts(path, WordCutter.of(tokenizer)) for path in made]
    for path, part in zip(made, found, strict=True):
        if script not in ("auto", "any") and part.script != script.capitalize():
            raise CorpusError(
                f"{path} holds counts of {part.script} words, not of {script}: count again for that script"
            )
    if text_paths:
        found.append(count_texts(tokenizer, stream_texts(text_paths), script))
    return merge_counts(found)


def count_texts(tokenizer: Tokenizer, texts: Iterable[str], script: str = "auto", workers: int = 0) -> WordCounts:
    """Count the words of texts; see `count_words`. `workers` is the number of processes (0: one a core)."""
    texts = iter(texts)
    sample: list[str] = []
    sampled = 0
    while sampled < SCRIPT_SAMPLE_CHARACTERS and (text := next(texts, None)) is not None:
        sample.append(text)
        sampled += len(text)
    name = resolve_script(script, "".join(sample))
    cutter = WordCutter.of(tokenizer).check(text[:20_000] for text in sample[:50])
    chunks = batches(chain(sample, texts), CHUNK_CHARACTERS)
    counts: Counter[str] = Counter()
    characters = 0
    here = PARALLEL_CHARACTERS // CHUNK_CHARACTERS
    for found, length in in_order(partial(_count_chunk, cutter, name), chunks, here=here, workers=workers):
        counts.update(found)
        characters += length
        _forget_rarest(counts)
    if name is not None and not counts:
        raise CorpusError(f"the corpus holds no {name} text: give text in that script, or name another with --script")
    return WordCounts(counts, name, characters)


def merge_counts(parts: list[WordCounts]) -> WordCounts:
    """The sum of several counts; raises `CorpusError` when they are of different scripts."""
    if not parts:
        raise CorpusError("no corpus is given: give text files, folders, or files of counts")
    counts: Counter[str] = Counter()
    for part in parts:
        if part.script != parts[0].script:
            raise CorpusError(f"counts of {parts[0].script} and of {part.script} words: name one script for all")
        counts.update(part.counts)
        _forget_rarest(counts)
    return WordCounts(counts, parts[0].script, sum(part.characters for part in parts))


def write_counts(path: Path, found: WordCounts, cutter: WordCutter) -> None:
    """Write counts to be merged elsewhere: a line of facts, then `[word, count]` lines, compressed."""
    if not path.name.endswith(COUNTS_SUFFIX):
        raise TokenizerError(f"the file of counts is {path}: let its name end in {COUNTS_SUFFIX}")
    facts = {"cutter": cutter.fingerprint, "script": found.script, "characters": found.characters}
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as out:
        out.write((json.dumps(facts) + "\n").encode())
        for word, count in sorted(found.counts.items()):
            out.write(json.dumps([word, count], ensure_ascii=False).encode() + b"\n")
    partial.rename(path)


def read_counts(path: Path, cutter: WordCutter) -> WordCounts:
    """Read what `write_counts` wrote; raises `CorpusError` when the words were cut by another tokenizer."""
    if not path.exists():
        raise CorpusError(f"corpus path {path} does not exist: check the spelling")
    lines = read_lines(path)
    try:
        facts = json.loads(next(lines))
        counts = Counter(dict(map(json.loads, lines)))
        made_by, script, characters = facts["cutter"], facts["script"], facts["characters"]
    except (StopIteration, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path} is no file of counts: make it with `lep tokenizer count`") from error
    if made_by != cutter.fingerprint:
        raise CorpusError(f"{path} was counted for a tokenizer that cuts words differently: count it again")
    return WordCounts(counts, script, characters)


def _count_chunk(cutter: WordCutter, script: str | None, texts: list[str]) -> tuple[Counter[str], int]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(cutter(text))
    if script is not None:
        has = regex.compile(rf"\p{{Script={script}}}").search
        counts = Counter({word: count for word, count in counts.items() if has(word)})
    return counts, sum(map(len, texts))


def _forget_rarest(counts: Counter[str]) -> None:
    """Keep at most `MAX_WORDS` words, in place: forget those seen once, then twice, and so on."""
    threshold = 1
    while len(counts) > MAX_WORDS:
        for word in [word for word, count in counts.items() if count <= threshold]:
            del counts[word]
        threshold += 1
