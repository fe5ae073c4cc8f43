"""Extension: exact size, lossless, and no change where the new script does not occur."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from lep.errors import CorpusError, TokenizerError
from lep.tokenizer.extend import ScriptFilter, continue_bpe, extend_bpe
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.metrics import fertility

ANY = ScriptFilter(None)


@pytest.fixture(scope="module")
def extended(pair) -> tuple[Tokenizer, Tokenizer]:
    return (load_tokenizer(pair["base"]).backend_tokenizer, load_tokenizer(pair["tokenizer"]).backend_tokenizer)


def test_size_is_exact_and_known_ids_stay(extended) -> None:
    before, after = extended
    assert after.get_vocab_size() == before.get_vocab_size() + 100
    assert before.get_vocab().items() <= after.get_vocab().items()


def test_every_new_token_is_reachable_and_saves_tokens(extended, pair, russian) -> None:
    _, after = extended
    record = json.loads((pair["tokenizer"] / "extension.json").read_text())
    assert record["script"] == "Cyrillic"
    for token in record["tokens"]:
        assert len(after.model.tokenize(after.pre_tokenizer.pre_tokenize_str(token)[0][0])) == 1
    old, new = load_tokenizer(pair["base"]), load_tokenizer(pair["tokenizer"])
    assert fertility(new, russian).symbols_per_token > 1.15 * fertility(old, russian).symbols_per_token


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
    old, new = (json.loads(t.to_str())["added_tokens"] for t in extended)
    assert old == new
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


@given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 5)), max_size=8))
@settings(max_examples=200, deadline=None)
def test_equals_the_slow_definition(words) -> None:
    contents = [b"a", b"b", b"c", b"d"]
    merges, grown = continue_bpe([(list(ids), count) for ids, count in words], contents, 6, ANY)
    slow = slow_bpe(words, contents, len(merges))
    assert merges == slow
    assert len(grown) <= 10


def test_script_filter() -> None:
    georgian = ScriptFilter("Georgian")
    assert georgian("ქარ".encode())
    assert georgian("ქ".encode()[:2])  # a prefix only Georgian letters have
    assert not georgian(b"\xe1")  # shared with other scripts
    assert not georgian(b"the")
    assert ScriptFilter("Latin")(b"the")


def test_too_small_a_corpus_says_how_many(byte_level) -> None:
    with pytest.raises(CorpusError, match=r"yields only \d+ of 5000 new tokens \(Cyrillic script"):
        extend_bpe(byte_level, ["Мало текста, мало слов, мало букв."] * 3, 5000)


def test_other_kinds_are_refused(byte_fallback) -> None:
    for tokenizer in (byte_fallback, Tokenizer(models.Unigram([("a", 0.0)]))):
        with pytest.raises(TokenizerError, match="only byte-level BPE"):
            extend_bpe(tokenizer, ["text"], 5)
