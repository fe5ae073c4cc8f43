"""Extend a byte-level BPE tokenizer by *continuing* its training: old merges first, new merges after them."""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import regex
from tokenizers import Tokenizer

from lep.corpus.language import dominant_script
from lep.errors import CorpusError, TokenizerError
from lep.tokenizer.vocabulary import BYTE_TO_CHARACTER, Vocabulary

MINIMUM_COUNT = 2  # a pair that occurs once teaches nothing
SCRIPT_SAMPLE_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new tokens. `spec` is the content of its tokenizer.json."""

    spec: dict[str, Any]
    new_tokens: list[bytes]  # in the order of their ids, the first of which is `first_id`
    first_id: int
    script: str | None


def extend_bpe(tokenizer: Tokenizer, texts: Iterable[str], new_tokens: int) -> Extension:
    """Learn exactly `new_tokens` further tokens on the texts, cut by the tokenizer's own pre-tokenizer.

    A new token must contain a whole character of the corpus's main script, or be a byte prefix that only this
    script has. So text without that script is tokenised exactly as before: no new merge can apply to it. Known
    tokens keep their ids; new ids follow the largest one.

    Raises `TokenizerError` for other kinds of tokenizers, `CorpusError` when the corpus yields fewer tokens.
    """
    vocabulary, spec = Vocabulary.of(tokenizer), json.loads(tokenizer.to_str())
    if spec["model"]["type"] != "BPE" or not vocabulary.byte_level:
        raise TokenizerError("only byte-level BPE tokenizers can be extended (Llama 3, Qwen, GPT-2 and their kin)")
    counts, script = count_words(tokenizer, texts)
    words = [(vocabulary._model_ids(word), count) for word, count in sorted(counts.items())]
    contents = [token.content if token and not token.added else None for token in vocabulary.tokens]
    merges, contents = continue_bpe(words, contents, new_tokens, ScriptFilter(script))
    first = len(vocabulary)
    learned = [content for content in contents[first:] if content is not None]
    if len(learned) < new_tokens:
        raise CorpusError(
            f"the corpus yields only {len(learned)} of {new_tokens} new tokens ({script or 'any'} script, seen at "
            f"least {MINIMUM_COUNT} times): give more text or ask for fewer tokens"
        )
    names = ["".join(BYTE_TO_CHARACTER[byte] for byte in content or b"") for content in contents]
    model = spec["model"]
    # Added tokens enter the model's own vocabulary too: otherwise `tokenizers` numbers them after it on loading.
    model["vocab"] |= {entry["content"]: entry["id"] for entry in spec["added_tokens"]}
    model["vocab"] |= {names[i]: i for i in range(first, len(names))}
    model["merges"] += [[names[left], names[right]] for left, right in merges]
    model["vocab"] = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    return Extension(spec, learned, first, script)


def count_words(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[Counter[str], str | None]:
    """How often each pre-token occurs, and the script of most letters of (the beginning of) the corpus."""
    counts: Counter[str] = Counter()
    sample: list[str] = []
    sampled = 0
    for text in texts:
        if sampled < SCRIPT_SAMPLE_CHARACTERS:
            sample.append(text)
            sampled += len(text)
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return counts, dominant_script("".join(sample))


class ScriptFilter:
    """Whether a byte string may become a token of a script: see `extend_bpe`."""

    def __init__(self, script: str | None) -> None:
        # Latin shares its letters with every tokenizer's first language: nothing could be guaranteed by it.
        self.pattern = regex.compile(rf"\p{{Script={script}}}") if script not in (None, "Latin") else None
        self.prefixes = _exclusive_prefixes(script) if self.pattern else frozenset()

    def __call__(self, content: bytes) -> bool:
        if self.pattern is None:
            return True
        return content in self.prefixes or bool(self.pattern.search(content.decode("utf-8", errors="ignore")))


@lru_cache
def _exclusive_prefixes(script: str | None) -> frozenset[bytes]:
    """Incomplete UTF-8 sequences that can only go on as a character of the script.

    Signs that Unicode counts as used by the script (Script_Extensions) count as its characters here: else one
    archaic Georgian punctuation mark would close the way to every Georgian letter.
    """
    belongs = regex.compile(rf"\p{{Script_Extensions={script}}}")
    unassigned = regex.compile(r"\p{Cn}")
    inside: set[bytes] = set()
    outside: set[bytes] = set()
    for code in (*range(0x80, 0xD800), *range(0xE000, 0x20000)):
        character = chr(code)
        if unassigned.match(character):
            continue
        encoded = character.encode()
        prefixes = {encoded[:length] for length in range(1, len(encoded))}
        (inside if belongs.match(character) else outside).update(prefixes)
    return frozenset(prefix for prefix in inside - outside if len(prefix) > 1)


def continue_bpe(
    words: list[tuple[list[int], int]],
    contents: list[bytes | None],
    new_tokens: int,
    accept: ScriptFilter,
) -> tuple[list[tuple[int, int]], list[bytes | None]]:
    """Byte-pair merges learned on counted words that are already split into known tokens.

    `words` holds (ids, count); `contents` the bytes of each known id (None where it may not be merged). The most
    frequent acceptable pair is merged, ties by the smaller ids, until `new_tokens` tokens are new or no pair is
    left. A pair that spells a known token becomes a merge to it and no new token.

    Returns the merges in order and `contents` with the new tokens at its end.
    """
    contents, known = list(contents), {c: i for i, c in reversed(list(enumerate(contents))) if c is not None}
    target = len(contents) + new_tokens
    pieces, counts = [ids for ids, _ in words], [count for _, count in words]
    pairs: defaultdict[tuple[int, int], int] = defaultdict(int)
    places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    allowed: dict[tuple[int, int], bool] = {}

    def acceptable(pair: tuple[int, int]) -> bool:
        if pair not in allowed:
            left, right = contents[pair[0]], contents[pair[1]]
            allowed[pair] = left is not None and right is not None and accept(left + right)
        return allowed[pair]

    for index, ids in enumerate(pieces):
        for pair in pairwise(ids):
            if acceptable(pair):
                pairs[pair] += counts[index]
                places[pair].add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    merges: list[tuple[int, int]] = []
    while heap and len(contents) < target:
        negative, pair = heapq.heappop(heap)
        if -negative != pairs[pair]:  # an entry that later merges have made stale: put back with its true count
            if pairs[pair] >= MINIMUM_COUNT:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if -negative < MINIMUM_COUNT:
            break
        content = contents[pair[0]] + contents[pair[1]]  # type: ignore[operator]
        merged = known.get(content)
        if merged is None:
            merged = known[content] = len(contents)
            contents.append(content)
        merges.append(pair)
        changed: Counter[tuple[int, int]] = Counter()
        for index in places.pop(pair):
            before, after = pieces[index], _merge(pieces[index], pair, merged)
            for old in pairwise(before):
                changed[old] -= counts[index]
            for new in pairwise(after):
                changed[new] += counts[index]
                if acceptable(new):
                    places[new].add(index)
            pieces[index] = after
        for touched, difference in changed.items():
            if difference and touched != pair and acceptable(touched):
                pairs[touched] += difference
                if difference > 0:
                    heapq.heappush(heap, (-pairs[touched], touched))
        pairs[pair] = 0
    return merges, contents


def _merge(ids: list[int], pair: tuple[int, int], merged: int) -> list[int]:
    result: list[int] = []
    position = 0
    while position < len(ids):
        if position + 1 < len(ids) and (ids[position], ids[position + 1]) == pair:
            result.append(merged)
            position += 2
        else:
            result.append(ids[position])
            position += 1
    return result
