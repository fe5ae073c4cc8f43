"""Long documents take time in proportion to their length: work is counted, not timed."""

import unicodedata
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from lep.corpus import blocks, clean, duplicates
from lep.corpus.prepare import sections
from lep.corpus.read import Document, cut_at_lines

OLD_ELEMENT = regex.compile(r"(?is)<(script|style|ref)\b[^<>]*(?<!/)>.*?</\1\s*>|<!--.*?-->")
PARTS = ["<script>", "</script >", "<ref a='b'>", "<ref/>", "</ref>", "<!--", "-->", "<style", ">"]
PARTS += ["a", "\n", " ", "<", "/", "<ſcript>", "</SCRIPT>", "<b>", "&", "<scripts>"]
MARKS = ["\u0301", "\u0327", "\u0345", "\u0338", "\u0f73", "\u0344", "\u064b", "\u0e38"]


class Counted(str):
    """A text that counts the characters which are copied into new texts."""

    copied = 0

    def _count(self, text: str) -> "Counted":
        Counted.copied += len(text)
        return Counted(text)

    def __add__(self, other: str) -> "Counted":
        return self._count(str(self) + str(other))

    def __radd__(self, other: str) -> "Counted":
        return self._count(str(other) + str(self))

    def __getitem__(self, key: Any) -> "Counted":
        return self._count(str(self)[key])

    def splitlines(self, keepends: bool = False) -> list["Counted"]:
        return [self._count(line) for line in str(self).splitlines(keepends)]


class Tokens:
    """A tokenizer with a token for each character."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(range(len(text))) for text in texts]}

    def num_special_tokens_to_add(self, pair: bool) -> int:
        return 0


def cut(text: str, limit: int) -> list[list[int]]:
    return blocks._cut(text, Tokens(), limit)


@pytest.mark.parametrize("line", ["восемь!\n", "\n", "\r\n", " \n"])
@pytest.mark.parametrize(
    "work",
    [
        lambda text: sections(Document("d", text, "s", "g"), 6_000),
        lambda text: sections(Document("d", text, "s", "g"), 60_000),
        lambda text: cut(text, 6_000),
        lambda text: cut(text, 60_000),
    ],
    ids=["sections", "long sections", "blocks", "long blocks"],
)
def test_lines_are_copied_once(work, line) -> None:
    text = Counted(line * (100_000 // len(line)) + "конец")
    Counted.copied = 0
    work(text)
    assert Counted.copied <= 4 * len(text)


def slow_sections(text: str, most: int) -> list[str]:
    pieces = [""]
    for line in text.splitlines(keepends=True):
        if pieces[-1] and len(pieces[-1]) + len(line) > most:
            pieces.append("")
        pieces[-1] += line
    return [piece.strip("\n") for piece in pieces if piece.strip()]


@given(st.text("аб \n\r\u2028", max_size=200), st.integers(1, 40))
def test_sections_are_the_obvious_ones(text, most) -> None:
    pieces = sections(Document("d", text, "s", "g"), most)
    expected = slow_sections(text, most) if len(text) > most else [text]
    assert [piece.text for piece in pieces] == expected


@pytest.mark.parametrize(
    "text", ["а" * 95, "аб " * 35, " " * 99, "аб " * 9 + "\n" + "в" * 77 + "\n"]
)
def test_lines_too_long_for_a_tokenizer_are_cut(text, monkeypatch) -> None:
    monkeypatch.setattr("lep.corpus.prepare.LONGEST_LINE", 10)
    pieces = [piece.text for piece in sections(Document("d", text, "s", "g"), 12)]
    assert all(len(piece) <= 12 for piece in pieces)
    assert "".join(pieces).replace("\n", "").split() == text.replace("\n", "").split()
    monkeypatch.setattr("lep.corpus.read.PIECE_CHARACTERS", 10)
    pieces = list(cut_at_lines([text], 5))
    assert "".join(pieces) == text
    assert all(len(piece) <= 16 for piece in pieces)


@given(st.lists(st.text("аб ", max_size=9), min_size=1, max_size=40), st.integers(1, 20))
def test_blocks_are_the_obvious_ones(lines, most) -> None:
    groups = [""]
    for line in (text := "\n".join(lines)).splitlines(keepends=True):
        if groups[-1] and len(groups[-1]) + len(line) > most:
            groups.append("")
        groups[-1] += line
    expected = [
        list(range(start, min(start + most, len(group))))
        for group in groups
        for start in range(0, len(group), most)
    ]
    assert cut(text, most) == expected


class CountedPattern:
    """A pattern that counts the characters it has read."""

    def __init__(self, pattern: regex.Pattern[str], counts: list[int]) -> None:
        self.pattern, self.counts = pattern, counts

    def search(self, text: str, start: int) -> regex.Match[str] | None:
        match = self.pattern.search(text, start)
        self.counts.append((match.end() if match else len(text)) - start)
        return match


@pytest.mark.parametrize(
    "part", ["<script>", "<!--", "<ref>", "<style a>", "</script", "<script/>"]
)
def test_elements_without_an_end_are_looked_for_once(part, monkeypatch) -> None:
    counts: list[int] = []
    counted = {name: CountedPattern(each, counts) for name, each in clean._CLOSING.items()}
    monkeypatch.setattr(clean, "_CLOSING", counted)
    monkeypatch.setattr(clean, "_OPENING", CountedPattern(clean._OPENING, counts))
    text = part * 10_000
    assert clean._without_elements(text) == text
    assert sum(counts) <= 8 * len(text)


@given(st.lists(st.sampled_from(PARTS), max_size=40).map("".join))
def test_elements_go_as_by_one_regular_expression(text) -> None:
    assert clean._without_elements(text) == OLD_ELEMENT.sub(" ", text)


def inversions(text: str) -> int:
    """The steps by which an insertion sort brings the marks of each character into order."""
    steps, before = 0, [0] * 256
    for mark in map(unicodedata.combining, text):
        if not mark:
            before = [0] * 256
            continue
        steps += sum(before[mark + 1 :])
        before[mark] += 1
    return steps


@pytest.mark.parametrize("start", ["", "a", "é", "\u1100"])
def test_many_marks_are_given_to_python_in_order(start, monkeypatch) -> None:
    given: list[str] = []

    class Recorded:
        combining = staticmethod(unicodedata.combining)

        @staticmethod
        def normalize(form: str, text: str) -> str:
            given.append(text)
            return unicodedata.normalize(form, text)

    monkeypatch.setattr(clean, "unicodedata", Recorded)
    text = start + "\u0301\u0327" * 2_000 + "слово"
    expected = unicodedata.normalize("NFC", text)
    assert clean.plain(text) == expected
    assert sum(map(inversions, given)) <= 4 * len(text)


@given(st.lists(st.sampled_from([*MARKS, "a", "é", "가"]), max_size=20), st.integers(1, 40))
def test_many_marks_compose_as_in_python(characters, times) -> None:
    text = "".join(characters) * times
    assert clean._composed(text) == unicodedata.normalize("NFC", text)


def test_numbers_of_any_length_are_no_fault() -> None:
    assert clean.plain("a &#" + "9" * 100_000 + "; b &#1041;") == "a \ufffd b Б"


def test_templated_sets_are_compared_with_few_others(monkeypatch) -> None:
    """Two thirds of each set are a template; one whose other third is nearly another's is found."""
    compared, candidates = list[int](), duplicates._candidates

    def counted(*arguments: Any) -> list[Any]:
        sets = candidates(*arguments)
        compared.extend(map(len, sets))
        return sets

    monkeypatch.setattr(duplicates, "_candidates", counted)
    template = [f"template {i}" for i in range(120)]
    sets = [[*template, *(f"{seed}/{i}" for i in range(60))] for seed in range(4_000)]
    memory, work = duplicates.Signatures(0.7), list[float]()
    for start in range(0, len(sets), 200):  # two of them have 120 of 240 in common
        compared.clear()
        assert all(memory.add(sets[start : start + 200]))
        assert max(compared) <= duplicates.BANDS * duplicates.MOST_SETS
        work.append(sum(compared) / 200)
    assert max(work[10:]) < 3 * max(work[:2])  # while there are ten times as many
    near = [[*kept[:160], *(f"{kept[-1]} {i}" for i in range(20))] for kept in sets[::40]]
    assert sum(memory.add(near)) <= 2  # 160 of 200
