"""Every new token can occur in text, however the tokenizer cuts words."""

import json

import pytest
import torch
from conftest import SAMPLE, byte_fallback_tokenizer, save_model, weights
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lep.errors import TokenizerError
from lep.tokenizer.compare import compare_tokenizers
from lep.tokenizer.count import WordCutter, count_texts, read_counts, word_bytes, write_counts
from lep.tokenizer.extend import extend_bpe
from lep.tokenizer.parts import Parts
from lep.tokenizer.reach import unreachable_tokens
from lep.tokenizer.write import (
    count_corpus,
    extend_tokenizer,
    optimize_tokenizer,
    prune_tokenizer,
    train_tokenizer,
)
from lep.transfer.initialise import initialise
from lep.transfer.mappings import read_mapping

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NEW = 60
RU = sorted((SAMPLE / "ru").glob("*.txt"))[:12]


def split(pattern: str, behavior: str = "isolated", **options) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior, **options)


def in_bytes(use_regex: bool = False, prefix: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)


DIGITS, EACH_DIGIT = pre_tokenizers.Digits(), pre_tokenizers.Digits(individual_digits=True)
BYTE_LEVEL = {
    "GPT-2": [in_bytes(use_regex=True)],
    "with a space before": [in_bytes(use_regex=True, prefix=True)],
    "Falcon": [pre_tokenizers.Punctuation("contiguous"), in_bytes(use_regex=True), EACH_DIGIT],
    "digits behind": [in_bytes(use_regex=True), DIGITS],
    "digits before": [EACH_DIGIT, in_bytes(use_regex=True)],
    "a pattern": [split(GPT2), in_bytes()],
    "Llama 3": [split(LLAMA3), in_bytes()],
    "removed": [split(LLAMA3, "removed", invert=True), in_bytes()],
    "pairs of bytes": [in_bytes(), split(r".{1,5}")],
    "pairs of letters": [split(r"\p{L}{1,4}"), in_bytes()],
    "words alone": [pre_tokenizers.Whitespace(), in_bytes()],
    "scripts": [pre_tokenizers.UnicodeScripts(), in_bytes(use_regex=True)],
    "nothing": [in_bytes()],
}
FALLBACK = {
    "Metaspace": [pre_tokenizers.Metaspace()],
    "Metaspace and digits": [pre_tokenizers.Metaspace(), EACH_DIGIT],
    "punctuation": [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()],
    "white space": [pre_tokenizers.Whitespace()],
    "letters": [pre_tokenizers.Metaspace(), split(r"\p{L}{1,4}")],
    "vowels": [pre_tokenizers.Metaspace(), split("[аеиоуыэюя]", "merged_with_previous")],
    "spaces alone": [split("\u2581", "isolated")],
    "nothing": [],
}


def byte_level(parts: list, texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = in_bytes(use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)  # so some known merges never apply
    return tokenizer


def fallback(parts: list, texts: list[str]) -> Tokenizer:
    tokenizer = byte_fallback_tokenizer(texts, 150)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    spec = json.loads(tokenizer.to_str())
    spec["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    if parts:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return tokenizer


CASES = [
    *((byte_level, name, parts) for name, parts in BYTE_LEVEL.items()),
    *((fallback, name, parts) for name, parts in FALLBACK.items()),
]


@pytest.mark.parametrize(
    ("make", "parts"),
    [(make, parts) for make, _, parts in CASES],
    ids=[f"{make.__name__}: {name}" for make, name, _ in CASES],
)
def test_every_new_token_occurs_in_text(make, parts, english, russian) -> None:
    """Asked in the slow and obvious way: some text of the corpus, or a part of one, yields it."""
    english, russian = english[:8], russian[:16]
    base = make(parts, [*english, *russian[:2], "x² ½ ³ ¹¼¾ 12", " \ufffd" * 600])
    parts = Parts.of(base)
    extension = extend_bpe(parts, count_texts(base, russian, "cyrillic"), NEW)
    after = extension.parts.tokenizer
    assert len(set(extension.new.values())) == NEW
    pieces = {piece for text in russian for piece in text.split()}
    pieces |= {f"{space}{t.decode()}" for t in extension.new for space in ("", " ", "a", "1")}
    encoded = [e.ids for e in after.encode_batch([*russian, *pieces], add_special_tokens=False)]
    used = {i for ids in encoded for i in ids}
    assert set(extension.new.values()) <= used
    assert not any("\ufffd" in token.decode() for token in extension.new)
    in_corpus = {i for ids in encoded[: len(russian)] for i in ids} & set(extension.new.values())
    assert len(in_corpus) > 0.7 * NEW  # the others are steps to longer ones
    assert not unreachable_tokens(after, extension.new.values())
    for text in english:
        assert after.encode(text).ids == base.encode(text).ids


def falcon_like(english, russian) -> Tokenizer:
    return byte_level(BYTE_LEVEL["Falcon"], [*english[:8], *russian[:2], " \ufffd" * 600])


def test_a_token_across_a_cut_is_reported(english, russian) -> None:
    """`ов` is d0 be d0 b2 in bytes, and Falcon's rule for digits cuts before the be and the b2."""
    tokenizer = falcon_like(english, russian)
    spec = json.loads(tokenizer.to_str())
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    merges += [["Ð", "¾"], ["Ð", "²"], ["Ð¾", "Ð²"], ["Ð¾", "Ð"]]
    for name in ("Ð¾", "Ð²", "Ð¾Ð²", "Ð¾Ð"):
        vocab.setdefault(name, len(vocab))
    changed = Tokenizer.from_str(json.dumps(spec))
    lost = [changed.id_to_token(i) for i in unreachable_tokens(changed)]
    assert {"Ð¾", "Ð²", "Ð¾Ð²", "Ð¾Ð"} <= set(lost)
    assert not {"Ð", "¾", "Ġthe", "Ð°"} & set(lost)
    texts = [*english, *russian]
    seen = {t for e in changed.encode_batch(texts, add_special_tokens=False) for t in e.tokens}
    assert not seen & set(lost)


def test_words_that_are_cut_inside_a_character_keep_their_bytes(english, russian, tmp_path) -> None:
    tokenizer = falcon_like(english, russian)
    words = WordCutter.of(tokenizer)("новый год")
    assert b"".join(map(word_bytes, words)) == "новый год".encode()
    assert len(words) > 5
    counts = count_texts(tokenizer, russian[:4], "any")
    cutter = WordCutter.of(tokenizer)
    with (tmp_path / "a.counts.zst").open("wb") as file:
        write_counts(file, counts, cutter)
    assert read_counts(tmp_path / "a.counts.zst", cutter) == counts
    assert "\ufffd" not in "".join(counts.counts)


def test_the_verbs_on_a_tokenizer_that_cuts_characters(english, russian, tmp_path) -> None:
    base = tmp_path / "base"
    save_model(base, falcon_like(english, russian))
    extend_tokenizer(base, RU, 50, tmp_path / "extended")
    comparison = compare_tokenizers([base, tmp_path / "extended"], {"ru": RU[:1]})
    before, after = (facts.unreachable for facts in comparison.tokenizers.values())
    assert before == after  # the base's own, which its rule for digits cuts
    for algorithm in ("bpe", "unigram"):
        train_tokenizer(base, RU, algorithm, 400, tmp_path / algorithm)
        tokenizer = Tokenizer.from_file(str(tmp_path / algorithm / "tokenizer.json"))
        assert algorithm == "unigram" or not unreachable_tokens(tokenizer)


def without_pre_tokenizer(english, *, lossless: bool) -> Tokenizer:
    """A byte-level tokenizer whose text is not cut, and perhaps not even turned into bytes."""
    tokenizer = byte_level([in_bytes(use_regex=True)], english)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.ByteLevel() if lossless else None
    return tokenizer


@pytest.mark.parametrize("lossless", [pytest.param(True, marks=pytest.mark.slow), False])
def test_byte_level_without_a_pre_tokenizer(lossless, english, tmp_path) -> None:
    base, corpus = tmp_path / "base", RU
    save_model(base, without_pre_tokenizer(english, lossless=lossless))
    verbs = {
        "extend": lambda out: extend_tokenizer(base, corpus, 30, out),
        "optimize": lambda out: optimize_tokenizer(base, corpus, 380, 400, out),
        "count.counts.zst": lambda out: count_corpus(base, corpus, out),
        "compare": lambda _: compare_tokenizers([base], {"ru": corpus}),
    }
    for name, verb in verbs.items():
        if lossless:
            verb(tmp_path / name)
        else:
            with pytest.raises(TokenizerError, match="so it loses text: add a ByteLevel pre-token"):
                verb(tmp_path / name)
            assert not (tmp_path / name).exists()
    # A new vocabulary has a rule of its own, and pruning learns no words.
    train_tokenizer(base, [*corpus, SAMPLE / "en"], "bpe", 500, tmp_path / "new")
    prune_tokenizer(base, corpus, 390, tmp_path / "pruned")
    after = Tokenizer.from_file(str(tmp_path / "new" / "tokenizer.json"))
    ids = after.encode("Съешь ещё этих мягких булок").ids
    assert after.decode(ids) == "Съешь ещё этих мягких булок"
    if lossless:
        extended = Tokenizer.from_file(str(tmp_path / "extend" / "tokenizer.json"))
        before = Tokenizer.from_file(str(base / "tokenizer.json"))
        new = range(before.get_vocab_size(), extended.get_vocab_size())
        texts = [word for path in RU for word in path.read_text(encoding="utf-8").split()]
        texts += [extended.decode([i]) for i in new]
        used = {i for e in extended.encode_batch(texts, add_special_tokens=False) for i in e.ids}
        assert set(new) <= used


def test_a_new_vocabulary_for_a_model_that_lacks_bytes(english, tmp_path) -> None:
    """The words of a corpus alone: SmolLM2 lacks 21 of the 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = in_bytes(use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([*english, "я"], trainer)
    model = tmp_path / "model"
    save_model(model, tokenizer, tied=True)
    train_tokenizer(model, [*RU, SAMPLE / "en"], "bpe", 500, tmp_path / "new")
    initialise(model, tmp_path / "new", tmp_path / "out")
    before, after = (
        weights(each)["model.embed_tokens.weight"] for each in (model, tmp_path / "out")
    )
    known, new = tokenizer.get_vocab(), Tokenizer.from_file(str(tmp_path / "new/tokenizer.json"))
    alphabet = [known[c] for c in pre_tokenizers.ByteLevel.alphabet() if c in known]
    assert "Ñ" in known
    assert "À" not in known  # c0, which no text has
    torch.testing.assert_close(after[new.token_to_id("À")], before[alphabet].mean(0))
    copies = read_mapping(tmp_path / "out" / "lep" / "mapping.safetensors").copies
    assert not copies[new.token_to_id("À")]
    assert copies[new.token_to_id("Ñ")]
    with pytest.raises(TokenizerError, match="replace it with `lep tokenizer train`"):
        extend_tokenizer(model, RU, 30, tmp_path / "extended")
