"""Token ids by a GGUF file's own tokens, scores and merges: a second, slow reading of them."""

import re
from collections.abc import Callable
from functools import cache
from heapq import heappop, heappush
from itertools import pairwise

import regex

from lep.exports.pre_tokenizers import RULES, Rule
from lep.exports.vocabulary import PREFIX, Metadata, TokenType
from lep.tokenizer.vocabulary import SPACE, byte_level_name

Rank = Callable[[str, str], float | None]
CUT_OUT = {TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN}


class Reading:
    """Tokenises as llama.cpp does with the same metadata."""

    def __init__(self, metadata: Metadata) -> None:
        self.keys = {key.removeprefix(f"{PREFIX}ggml."): value for key, value in metadata.items()}
        tokens, types = self.keys["tokens"], self.keys["token_type"]
        self.ids = {name: index for index, name in enumerate(tokens)}
        whole = [name for name, kind in zip(tokens, types, strict=True) if kind in CUT_OUT]
        longest_first = "|".join(map(re.escape, sorted(whole, key=len, reverse=True)))
        self.cut_out = re.compile(f"({longest_first or '(?!)'})")
        is_byte_level = self.keys["model"] == "gpt2"
        self.piece = self._byte_level() if is_byte_level else self._sentencepiece()

    def read(self, text: str, *, inserted: bool = True) -> list[int]:
        """The ids of a text, with BOS and EOS around it if they are `inserted`."""
        bos, eos = (inserted and self.keys[f"add_{name}_token"] for name in ("bos", "eos"))
        ids = [self.keys["bos_token_id"]] if bos else []
        for position, piece in enumerate(self.cut_out.split(text)):
            if position % 2:
                ids.append(self.ids[piece])
            elif piece:
                ids += self.piece(piece)
        return ids + ([self.keys["eos_token_id"]] if eos else [])

    def _sentencepiece(self) -> Callable[[str], list[int]]:
        """Joins the neighbours whose token has the highest score."""
        scores, start = self.keys["scores"], " " * self.keys["add_space_prefix"]

        def rank(left: str, right: str) -> float | None:
            index = self.ids.get(left + right)
            return None if index is None else -scores[index]

        def ids(symbol: str) -> list[int]:
            if symbol in self.ids:
                return [self.ids[symbol]]
            return [self.ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]

        def read(piece: str) -> list[int]:
            symbols = merged(list((start + piece).replace(" ", SPACE)), rank)
            return [index for symbol in symbols for index in ids(symbol)]

        return read

    def _byte_level(self) -> Callable[[str], list[int]]:
        """Cuts words by the named rule, and applies the merges within each."""
        ranks = {tuple(pair.split(" ")): float(i) for i, pair in enumerate(self.keys["merges"])}
        rule, direct = RULES[self.keys["pre"]]

        @cache
        def ids(word: str) -> list[int]:
            symbols = byte_level_name(word.encode())
            if direct and symbols in self.ids:
                return [self.ids[symbols]]
            joined = merged(list(symbols), lambda left, right: ranks.get((left, right)))
            return [self.ids[symbol] for symbol in joined]

        return lambda piece: [index for word in words(piece, rule) for index in ids(word)]


def words(text: str, rule: Rule) -> list[str]:
    """A text cut by each expression in turn; what matches, and what is between, are pieces."""
    pieces = [text]
    for expression in rule:
        pieces = [part for piece in pieces for part in _cut(piece, expression)]
    return pieces


def _cut(text: str, expression: str) -> list[str]:
    ends = {end for match in regex.finditer(expression, text) for end in match.span()}
    borders = sorted(ends | {0, len(text)})
    return [text[start:end] for start, end in pairwise(borders)]


def merged(symbols: list[str], rank: Rank) -> list[str]:
    """Neighbours joined until no pair has a rank: the lowest rank first, then the leftmost.

    >>> merged(list("abab"), lambda left, right: {"ab": 1, "ba": 0}.get(left + right))
    ['a', 'ba', 'b']
    """
    after = [*range(1, len(symbols)), -1]
    before = [*range(-1, len(symbols) - 1)]
    parts, heap = list(symbols), list[tuple[float, int, int, str]]()

    def offer(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and (value := rank(parts[left], parts[right])) is not None:
            heappush(heap, (value, left, right, parts[left] + parts[right]))

    for left, right in enumerate(after):
        offer(left, right)
    while heap:
        _, left, right, result = heappop(heap)
        if after[left] != right or parts[left] + parts[right] != result or not parts[left]:
            continue
        parts[left], parts[right], after[left] = result, "", after[right]
        if after[left] >= 0:
            before[after[left]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [part for part in parts if part]
