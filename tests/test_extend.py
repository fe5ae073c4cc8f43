"""Extension: exact size, lossless, and no change where the new script does not occur."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from lep.errors import CorpusError, TokenizerError
from lep.tokenizer.bpe import continue_bpe
from lep.tokenizer.count import count_texts
from lep.tokenizer.extend import METHODS, Extension, extend_bpe
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.parts import Merge, Parts
from lep.tokenizer.script import ScriptFilter, needed_prefixes

ANY = ScriptFilter(None)


def extend(tokenizer: Tokenizer, texts: list[str], new_tokens: int) -> Extension:
    return extend_bpe(Parts.of(tokenizer), count_texts(tokenizer, texts), new_tokens)


@pytest.fixture(scope="module")
def extended(pair) -> tuple[Tokenizer, Tokenizer]:
    before, after = (load_tokenizer(pair[name]) for name in ("base", "tokenizer"))
    return before.backend_tokenizer, after.backend_tokenizer


def test_size_is_exact_and_known_ids_stay(extended) -> None:
    before, after = extended
    assert after.get_vocab_size() == before.get_vocab_size() + 100
    assert before.get_vocab().items() <= after.get_vocab().items()


def test_every_new_token_is_reachable_and_saves_tokens(extended, pair, russian) -> None:
    _, after = extended
    record = json.loads((pair["tokenizer"] / "changes.json").read_text())
    assert record["script"] == "Cyrillic"
    for token in record["tokens"]:
        assert len(after.model.tokenize(after.pre_tokenizer.pre_tokenize_str(token)[0][0])) == 1
    base, longer = load_tokenizer(pair["base"]), load_tokenizer(pair["tokenizer"])
    before, after = (
        sum(len(tokenizer(text)["input_ids"]) for text in russian) for tokenizer in (base, longer)
    )
    assert before > 1.15 * after


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u1d2b\u1d78")))
@settings(max_examples=300, deadline=None)
def test_round_trip_and_guarantee(extended, text: str) -> None:
    before, after = extended
    ids = after.encode(text, add_special_tokens=False).ids
    assert after.decode(ids, skip_special_tokens=False) == text
    if not ScriptFilter("Cyrillic").pattern.search(text):
        assert ids == before.encode(text, add_special_tokens=False).ids


def test_english_is_tokenised_as_before(extended, english) -> None:
    before, after = extended
    for text in english:
        assert before.encode(text).ids == after.encode(text).ids


def test_special_tokens_keep_ids_and_flags(extended) -> None:
    before, after = extended
    added_before, added_after = (json.loads(t.to_str())["added_tokens"] for t in extended)
    assert added_before == added_after
    assert after.encode("<|user|>hi<|end|>").ids == before.encode("<|user|>hi<|end|>").ids


def slow_bpe(words, contents, new_tokens):
    """The obvious version: count every pair anew before every merge."""
    contents, words, merges = list(contents), [(list(ids), count) for ids, count in words], []
    known = {content: index for index, content in enumerate(contents)}
    while len(merges) < new_tokens:
        pairs = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                pairs[pair] += count
        best = min(pairs.items(), key=lambda item: (-item[1], item[0]), default=None)
        if best is None or best[1] < 2:
            break
        left, right = best[0]
        content = contents[left] + contents[right]
        if content not in known:
            known[content] = len(contents)
            contents.append(content)
        merges.append((left, right))
        for ids, _ in words:
            position = 0
            while position + 1 < len(ids):
                if (ids[position], ids[position + 1]) == (left, right):
                    ids[position : position + 2] = [known[content]]
                position += 1
    return merges


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 5)),
        max_size=8,
    )
)
@settings(max_examples=200, deadline=None)
def test_equals_the_slow_definition(words) -> None:
    contents = [b"a", b"b", b"c", b"d"]
    merges, grown = continue_bpe([(list(ids), count) for ids, count in words], contents, [], 6, ANY)
    assert [(merge.left, merge.right) for merge in merges] == slow_bpe(words, contents, len(merges))
    assert len(grown) <= 10
    assert all(grown[m.left] + grown[m.right] == grown[m.result] for m in merges)


def test_overlapping_pairs_that_appear_out_of_order() -> None:
    """Each word becomes abc abc abc in two ways; its two pairs overlap, and only one merges."""
    contents = [b"a", b"b", b"c", b"ab", b"bc"]
    words = [([0, 4, 3, 2, 0, 4], 3), ([0, 4, 3, 2, 0, 4], 3), ([3, 2], 50)]
    merges, grown = continue_bpe(words, contents, [], 3, ANY)
    assert [(merge.left, merge.right) for merge in merges] == slow_bpe(words, contents, len(merges))
    assert grown[5:] == [b"abc", b"abcabc", b"abcabcabc"]


def test_script_filter() -> None:
    letter = "ქ".encode()
    prefixes = needed_prefixes({"ქ": [letter[:1], letter[1:2], letter[2:]]})
    georgian = ScriptFilter("Georgian", prefixes)
    assert georgian("ქარ".encode())
    assert georgian(letter[:2])
    assert georgian(b" " + letter[:2])  # known merges may join the space to the first byte
    assert not georgian(letter + letter[:2])  # whole letters are never followed by a piece of one
    assert not georgian(letter[:1])  # every byte is a token anyway
    assert not georgian(b"the")
    # Not needed where the letter is spelled in two pieces.
    assert not ScriptFilter("Georgian")(letter[:2])
    # A mark of the script Common starts with the same bytes.
    assert georgian.excluded([letter[:2]]) == ["\u10fb"]
    assert ScriptFilter("Latin")(b"the")
    assert not ScriptFilter("Latin")(b", ")
    assert ScriptFilter(None)(b"\xff")


def test_too_small_a_corpus_says_how_many(byte_level) -> None:
    with pytest.raises(CorpusError, match=r"yields only \d+ of 5000 new tokens \(Cyrillic script"):
        extend(byte_level, ["Мало текста, мало слов, мало букв."] * 3, 5000)


def test_other_kinds_are_refused() -> None:
    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    for tokenizer, message in [
        (wordpiece, "the tokenizer is a WordPiece model"),
        (Tokenizer(models.Unigram([("a", 0.0)])), "the tokenizer is a Unigram model"),
        (Tokenizer(models.BPE({"a": 0}, [])), "neither byte-level nor has byte fallback"),
        (
            Tokenizer(models.BPE({"a": 0}, [], end_of_word_suffix="</w>")),
            "mark word ends or continuations",
        ),
    ]:
        with pytest.raises(TokenizerError, match=message):
            Parts.of(tokenizer)


def test_scripts_by_name(byte_level) -> None:
    with pytest.raises(CorpusError, match="the corpus holds no Georgian text"):
        count_texts(byte_level, ["Русский текст"], "georgian")
    with pytest.raises(TokenizerError, match="Unicode has no script 'cyrillik'"):
        count_texts(byte_level, ["Русский текст"], "cyrillik")
    with pytest.raises(CorpusError, match="no letters of a known script"):
        count_texts(byte_level, ["1234"], "auto")
    # Far behind the sample that tells the script.
    late = [*["text in English " * 1_000] * 100, "и вот русский"]
    assert set(count_texts(byte_level, late, "cyrillic").counts) == {"и", " вот", " русский"}
    assert set(count_texts(byte_level, ["Да, yes"], "any").counts) == {"Да", ",", " yes"}
    assert set(count_texts(byte_level, ["Дада, yes"]).counts) == {"Дада"}


def test_letters_that_are_wholly_missing(byte_level, byte_fallback) -> None:
    texts = ["ქართული ენა ქართულად ქართულია " * 3]
    by_bytes, by_letters = (extend(each, texts, 12) for each in (byte_level, byte_fallback))
    assert "\u10fb" in by_bytes.excluded
    assert by_letters.excluded == []  # letters are symbols: no other text can change
    assert next(iter(by_letters.new)).decode() == "ა"  # the most frequent letter first
    for tokenizer, extension in ((byte_level, by_bytes), (byte_fallback, by_letters)):
        after = extension.parts.tokenizer
        assert after.get_vocab_size() == tokenizer.get_vocab_size() + 12
        assert len(after.encode(texts[0]).ids) < 0.4 * len(tokenizer.encode(texts[0]).ids)
        assert after.decode(after.encode(texts[0]).ids) == tokenizer.decode(
            tokenizer.encode(texts[0]).ids
        )
        for text in ("中文 हिन्दी Ελληνικά Русский English 🙂", "฿ ჻"):
            if not set(text) & set(extension.excluded):
                assert after.encode(text).ids == tokenizer.encode(text).ids


@pytest.mark.parametrize("method", ["continue", "merge"])
@pytest.mark.parametrize("family", ["byte_level", "byte_fallback"])
def test_both_methods_on_both_families(method, family, request, russian, english) -> None:
    tokenizer = request.getfixturevalue(family)
    words = count_texts(tokenizer, russian, "cyrillic")
    extension = METHODS[method](Parts.of(tokenizer), words, 150)
    after = extension.parts.tokenizer
    assert len(extension.new) == 150
    assert after.get_vocab_size() == tokenizer.get_vocab_size() + 150
    assert tokenizer.get_vocab().items() <= after.get_vocab().items()
    for text in [*russian[:5], *english[:5]]:
        assert after.decode(after.encode(text).ids) == tokenizer.decode(tokenizer.encode(text).ids)
    before, now = (sum(len(t.encode(text).ids) for text in russian) for t in (tokenizer, after))
    assert now < 0.9 * before
    if method == "continue":
        for content, i in extension.new.items():
            pieces = after.model.tokenize(extension.parts.name(content))
            assert [piece.id for piece in pieces] == [i]
        for text in english:
            assert after.encode(text).ids == tokenizer.encode(text).ids


def test_a_merge_to_a_known_token_sets_off_the_known_merges() -> None:
    # "abc" is known as a+bc and goes on to "abcd"; the new merge ab+c reaches it by another way.
    contents = [b"a", b"b", b"c", b"d", b"bc", b"abc", b"abcd", b"ab"]
    known = [Merge(1, 2, 4), Merge(0, 4, 5), Merge(5, 3, 6)]
    words = [([7, 2, 3], 5), ([7, 2], 9), ([6, 3], 2)]
    merges, grown = continue_bpe(words, contents, known, 1, ANY)
    # ab+c (14 times) comes first: it gives abc and at once abc+d. So the next is abcd+d, not abc+d.
    assert merges == [Merge(7, 2, 5), Merge(6, 3, 8)]
    assert grown[8] == b"abcdd"


def test_unused_ids_are_filled_first(byte_level, russian) -> None:
    spec = json.loads(byte_level.to_str())
    model = spec["model"]
    used = {part for merge in model["merges"] for part in merge}
    leaves = [name for name in map("".join, model["merges"]) if name not in used]
    free_ids = [model["vocab"].pop(name) for name in leaves[:2]]
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in leaves[:2]]
    extension = extend(Tokenizer.from_str(json.dumps(spec)), russian, 6)
    size = byte_level.get_vocab_size()
    assert list(extension.new.values()) == [*sorted(free_ids), *range(size, size + 4)]
    ids = extension.parts.tokenizer.get_vocab().values()
    assert sorted(ids) == list(range(len(ids)))
