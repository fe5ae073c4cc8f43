"""How often each word occurs in a corpus: streamed, on all cores, in bounded memory, and by shard."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import crc32

import regex
import zstandard
from tokenizers import Tokenizer

from lep.corpus.parallel import in_order
from lep.corpus.read import batches, read_lines, stream_texts
from lep.errors import CorpusError, TokenizerError
from lep.publish import check_folder, fingerprint
from lep.tokenizer.script import resolve_script
from lep.tokenizer.vocabulary import CHARACTER_TO_BYTE, SPACE, Vocabulary, described

COUNTS_SUFFIX = ".counts.zst"
SCRIPT_SAMPLE_CHARACTERS = 1_000_000
CHUNK_CHARACTERS = 2_000_000  # what a worker gets at once
PARALLEL_CHARACTERS = 8_000_000  # a smaller corpus is counted before a worker would have started
MAX_WORDS = 3_000_000  # bounds the memory; above it the rarest words are forgotten, or half of all
# Words of a tokenizer that cuts at spaces only: letters with their marks, with the one space before them.
LETTERS = r"(?:(?<! ) )?[\p{L}\p{M}]+"
BETWEEN_SPACES = r" *[^ ]+| +$"
# What ByteLevel cuts with when no other pattern is given (GPT-2).
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class WordCounts:
    """Words (as text, with their spaces) and how often they occur; `script` is that of all of them, or None.

    Of a sample of all different words, a half, a quarter and so on, where there were too many (`halvings`).
    """

    counts: Counter[str]
    script: str | None
    characters: int  # of the whole corpus
    halvings: int = 0


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
        spec |= {
            name: described(getattr(tokenizer, name))
            for name in ("normalizer", "pre_tokenizer", "decoder")
        }
        return cls(json.dumps(spec), Vocabulary.of(tokenizer).byte_level)

    def __call__(self, text: str) -> list[str]:
        """The words of a text, in order."""
        if not self.byte_level:
            return _compiled(LETTERS).findall(self._normalised(text).replace(SPACE, " "))
        pattern = self._split_pattern() if self.by_pattern else None
        if pattern is not None:
            return _compiled(pattern).findall(text)
        pieces = _stub(self.spec).pre_tokenizer.pre_tokenize_str(self._normalised(text))
        return [
            bytes(CHARACTER_TO_BYTE[c] for c in piece).decode(errors="replace")
            for piece, _ in pieces
        ]

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
                    {
                        "type": "Split",
                        "pattern": {"Regex": pattern},
                        "behavior": "Isolated",
                        "invert": False,
                    },
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


def count_words(
    tokenizer: Tokenizer, corpus: Iterable[str | Path], script: str = "auto"
) -> WordCounts:
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


def count_texts(
    tokenizer: Tokenizer, texts: Iterable[str], script: str = "auto", workers: int = 0
) -> WordCounts:
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
    characters = halvings = 0
    here = PARALLEL_CHARACTERS // CHUNK_CHARACTERS
    for found, length in in_order(
        partial(_count_chunk, cutter, name), chunks, here=here, workers=workers
    ):
        counts.update(_sampled(found, halvings))
        characters += length
        halvings = _bounded(counts, halvings)
    if name is not None and not counts:
        raise CorpusError(
            f"the corpus holds no {name} text: give text in that script, or name another with --script"
        )
    return WordCounts(counts, name, characters, halvings)


def merge_counts(parts: list[WordCounts]) -> WordCounts:
    """The sum of several counts; raises `CorpusError` when they are of different scripts."""
    if not parts:
        raise CorpusError("no corpus is given: give text files, folders, or files of counts")
    counts: Counter[str] = Counter()
    halvings = max(part.halvings for part in parts)
    for part in parts:
        if part.script != parts[0].script:
            raise CorpusError(
                f"counts of {parts[0].script} and of {part.script} words: name one script for all"
            )
        counts.update(_sampled(part.counts, halvings))
        halvings = _bounded(counts, halvings)
    return WordCounts(counts, parts[0].script, sum(part.characters for part in parts), halvings)


def check_counts_place(path: Path) -> None:
    """Raise `TokenizerError` for a name that files of counts do not have, `OutputError` where there is no folder."""
    if not path.name.endswith(COUNTS_SUFFIX):
        raise TokenizerError(f"the file of counts is {path}: let its name end in {COUNTS_SUFFIX}")
    check_folder(path)


def write_counts(path: Path, found: WordCounts, cutter: WordCutter) -> None:
    """Write counts to be merged elsewhere: a line of facts, then `[word, count]` lines, compressed."""
    check_counts_place(path)
    facts = {
        "cutter": cutter.fingerprint,
        "script": found.script,
        "characters": found.characters,
        "halvings": found.halvings,
    }
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
        made_by, known = facts["cutter"], (facts["script"], facts["characters"], facts["halvings"])
    except (StopIteration, ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{path} is no file of counts: make it with `lep tokenizer count`"
        ) from error
    if made_by != cutter.fingerprint:
        raise CorpusError(
            f"{path} was counted for a tokenizer that cuts words differently: count it again (for `lep "
            "tokenizer train`: with --fresh)"
        )
    return WordCounts(counts, *known)


def _count_chunk(
    cutter: WordCutter, script: str | None, texts: list[str]
) -> tuple[Counter[str], int]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(cutter(text))
    if script is not None:
        has = regex.compile(rf"\p{{Script={script}}}").search
        counts = Counter({word: count for word, count in counts.items() if has(word)})
    return counts, sum(map(len, texts))


def _sampled(counts: Counter[str], halvings: int) -> Counter[str]:
    """The words whose hash ends in so many zeros: the same ones of every text."""
    if not halvings:
        return counts
    return Counter(
        {w: count for w, count in counts.items() if not crc32(w.encode()) % (1 << halvings)}
    )


def _bounded(counts: Counter[str], halvings: int) -> int:
    """Keep at most `MAX_WORDS` words, in place: forget those seen once, then twice, and so on. Returns the halvings.

    Where words seen once are most of the text (clauses of scripts without spaces), half of all words goes instead:
    what is left is a fair sample, where the frequent ones alone are not.
    """
    threshold = 1
    while len(counts) > MAX_WORDS:
        if 2 * sum(count == 1 for count in counts.values()) > counts.total():
            halvings += 1
            kept = _sampled(counts, halvings)
            counts.clear()
            counts.update(kept)
            continue
        for word in [word for word, count in counts.items() if count <= threshold]:
            del counts[word]
        threshold += 1
    return halvings
