"""Rarer tokenizers and texts: other scripts, words added by hand, unused ids, shards."""

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import SAMPLE, SPECIALS, byte_fallback_tokenizer, byte_level_tokenizer, sample_texts
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from lep.cli import app
from lep.corpus.language import dominant_script
from lep.corpus.read import cut_at_lines
from lep.errors import CorpusError, OutputError, TokenizerError
from lep.tokenizer import count as counting
from lep.tokenizer.compare import compare_tokenizers
from lep.tokenizer.count import WordCounts, count_texts
from lep.tokenizer.extend import extend_bpe
from lep.tokenizer.idmap import IdMap
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.parts import Parts
from lep.tokenizer.script import resolve_script
from lep.tokenizer.vocabulary import BYTE_TO_CHARACTER, Vocabulary
from lep.tokenizer.write import count_corpus, extend_tokenizer, train_tokenizer

RU = SAMPLE / "ru"


def saved(tokenizer: Tokenizer, folder: Path, **changes) -> Path:
    folder.mkdir(parents=True)
    spec = json.loads(tokenizer.to_str())
    spec["model"] |= changes
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return folder


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return byte_level_tokenizer(sample_texts("en") + sample_texts("ru")[:4], 500, SPECIALS)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("ភាសាខ្មែរ គឺជាភាសាផ្លូវការ Unicode", "Khmer"),
        ("አማርኛ የኢትዮጵያ ቋንቋ Unicode", "Ethiopic"),
        ("ಕನ್ನಡ ಭಾಷೆ HTML", "Kannada"),
        ("カタカナ テキスト OK", "Japanese"),
        ("𐌰𐌱𐌲𐌳 ok", None),
        ("123 !", None),
    ],
)
def test_one_foreign_word_does_not_decide_the_script(text, script) -> None:
    assert dominant_script(text) == script


@pytest.mark.parametrize("name", ["", "}a", "klingon"])
def test_scripts_that_do_not_exist(name) -> None:
    with pytest.raises(TokenizerError, match="Unicode has no script"):
        resolve_script(name, "")


@pytest.mark.parametrize("size", [500, 700])
def test_a_unigram_vocabulary_has_the_size_that_was_asked_for(byte_level, size, tmp_path) -> None:
    """Even where letters of the corpus never occur alone, and get no piece of their own."""
    base = saved(byte_level, tmp_path / "base")
    change = train_tokenizer(base, [SAMPLE / "en"], "unigram", size, tmp_path / "out")
    assert change.size == size
    assert len(load_tokenizer(tmp_path / "out")) == size


def test_clauses_are_sampled_and_not_forgotten(byte_level, monkeypatch) -> None:
    """In a script without spaces nearly every word is seen once: frequent ones are not the text."""
    clauses = [chr(0x4E00 + i % 3000) + chr(0x5000 + i // 3) + "。" for i in range(3000)]
    texts = [*clauses, *["年。"] * 400]
    whole = count_texts(byte_level, texts, "han")
    monkeypatch.setattr(counting, "MAX_WORDS", 1000)
    monkeypatch.setattr(counting, "CHUNK_CHARACTERS", 500)
    few = count_texts(byte_level, texts, "han")
    assert (whole.halvings, few.halvings) == (0, 2)
    assert 600 < len(few.counts) <= 1000
    assert few.counts.items() <= whole.counts.items()
    shards = [count_texts(byte_level, part, "han") for part in (texts[:1700], texts[1700:])]
    # The same words, wherever they were counted.
    assert counting.merge_counts(shards).counts == few.counts


def test_words_that_are_seen_again_stay(monkeypatch) -> None:
    monkeypatch.setattr(counting, "MAX_WORDS", 3)
    counts = Counter({"a": 9, "b": 5, "c": 4, "d": 1, "e": 1})
    assert counting._bounded(counts, 0) == 0
    assert counts == {"a": 9, "b": 5, "c": 4}


@pytest.mark.slow
@pytest.mark.parametrize("make", [byte_level_tokenizer, byte_fallback_tokenizer])
def test_a_new_vocabulary_from_counts_is_that_from_text(make, tmp_path) -> None:
    arguments = (SPECIALS,) if make is byte_level_tokenizer else ()
    base = saved(make(sample_texts("en"), 500, *arguments), tmp_path / "base")
    count_corpus(base, [SAMPLE], tmp_path / "all.counts.zst", fresh=True)
    for corpus, name in (([tmp_path / "all.counts.zst"], "counted"), ([SAMPLE], "read")):
        train_tokenizer(base, corpus, "bpe", 600, tmp_path / name)
    counted, read = (tmp_path / name / "tokenizer.json" for name in ("counted", "read"))
    assert counted.read_bytes() == read.read_bytes()
    count_corpus(base, [RU], tmp_path / "ru.counts.zst")
    with pytest.raises(CorpusError, match="--fresh"):
        train_tokenizer(base, [tmp_path / "ru.counts.zst"], "bpe", 600, tmp_path / "no")


def test_counts_that_cannot_be_written_are_not_counted(byte_level, tmp_path) -> None:
    base = saved(byte_level, tmp_path / "base")
    with pytest.raises(TokenizerError, match="its name must end in"):
        count_corpus(base, ["/no/such/text"], tmp_path / "x.counts")
    with pytest.raises(OutputError, match="there is no folder"):
        count_corpus(base, ["/no/such/text"], tmp_path / "no" / "x.counts.zst")


@pytest.mark.parametrize("make", [byte_level_tokenizer, byte_fallback_tokenizer])
def test_words_added_by_hand_are_not_learned_again(make) -> None:
    arguments = (SPECIALS,) if make is byte_level_tokenizer else ()
    tokenizer = make(sample_texts("en") + sample_texts("ru")[:2], 500, *arguments)
    tokenizer.add_tokens(["ост", "про", "ени"])
    words = count_texts(tokenizer, sample_texts("ru"), "cyrillic")
    new = [content.decode() for content in extend_bpe(Parts.of(tokenizer), words, 60).new]
    assert len(new) == 60
    assert not [token for token in new if any(word in token for word in ("ост", "про", "ени"))]


def test_unused_ids_are_filled(byte_level, tmp_path) -> None:
    vocabulary = json.loads(byte_level.to_str())["model"]["vocab"]
    spread = {name: i if i < 480 else i + 10 for name, i in vocabulary.items()}  # ten ids unused
    base = saved(byte_level, tmp_path / "base", vocab=spread)
    message = r"10 ids .* unused, .* ask for at least 10 new tokens, or 6 would still be unused"
    with pytest.raises(TokenizerError, match=message):
        extend_tokenizer(base, [RU], 4, tmp_path / "few")
    change = extend_tokenizer(base, [RU], 15, tmp_path / "many")
    assert (change.new, change.dropped) == (15, 0)  # an id without a token is nothing to drop
    assert (change.size_before, change.size) == (len(spread), len(spread) + 15)
    record = json.loads((tmp_path / "many" / "id_map.json").read_text())
    assert record["unused"] == list(range(480, 490))
    assert IdMap.load(tmp_path / "many" / "id_map.json").new == record["new"]


def test_characters_that_a_normaliser_makes_into_the_script_are_named(byte_level) -> None:
    tokenizer = byte_fallback_tokenizer(sample_texts("en"), 500)
    first = tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *([first] if first else [])])
    greek = count_texts(tokenizer, ["μια μέρα στο νησί " * 20], "greek")
    excluded = extend_bpe(Parts.of(tokenizer), greek, 8).excluded
    assert "\u00b5" in excluded  # the micro sign becomes a Greek letter
    assert "m" not in excluded
    russian = count_texts(byte_level, sample_texts("ru"))
    assert extend_bpe(Parts.of(byte_level), russian, 8).excluded == []


def test_a_letter_whose_first_byte_is_joined_to_the_space_before_it_is_reached() -> None:
    letters = [BYTE_TO_CHARACTER[b] for b in range(256)]
    space, first = BYTE_TO_CHARACTER[0x20], BYTE_TO_CHARACTER["年".encode()[0]]
    vocabulary = {name: i for i, name in enumerate([*letters, space + first])}
    spec = json.loads(byte_level_tokenizer(["a"], 300, ["<s>"]).to_str())
    spec["model"] |= {"vocab": vocabulary, "merges": [[space, first]]}
    spec |= {"added_tokens": [], "post_processor": None}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    words = WordCounts(Counter({" 年": 9, "年": 9}), "Han", 30)
    after = extend_bpe(Parts.of(tokenizer), words, 4).parts.vocabulary.tokenizer
    assert len(tokenizer.encode(" 年").ids) == 3
    assert len(after.encode(" 年").ids) == len(after.encode("年").ids) == 1
    for other in (" \u3000", "привет", " 🙂"):
        assert after.encode(other).ids == tokenizer.encode(other).ids


def test_long_texts_are_cut_where_lines_begin() -> None:
    texts = ["one line\n\n\n  and the next\nlast", "x" * 50]
    assert list(cut_at_lines(texts, 5)) == ["one line\n\n\n  and the next\n", "last", "x" * 50]
    assert list(cut_at_lines(["ab\ncd\nef"], 1)) == ["ab\n", "cd\n", "ef"]


@pytest.mark.slow
def test_models_that_cannot_be_extended_are_compared_too(byte_level, tmp_path) -> None:
    base = saved(byte_level, tmp_path / "base")
    train_tokenizer(base, [RU], "unigram", 400, tmp_path / "one")
    saved(Tokenizer.from_file(str(tmp_path / "one" / "tokenizer.json")), tmp_path / "two")
    comparison = compare_tokenizers([tmp_path / "one", tmp_path / "two"], {"ru": [RU]})
    assert comparison.curves == {}


def test_marked_word_ends_are_compared_without_a_curve(tmp_path) -> None:
    """Such a tokenizer (CLIP's) cannot be taken apart, but it has a cost."""
    ids = {"a": 0, "a</w>": 1, "b</w>": 2}
    for name, size in (("one", 2), ("two", 3)):
        model = models.BPE(dict(list(ids.items())[:size]), [], end_of_word_suffix="</w>")
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        saved(tokenizer, tmp_path / name)
    (tmp_path / "text.txt").write_text("aa")
    comparison = compare_tokenizers(
        [tmp_path / "one", tmp_path / "two"], {"en": [tmp_path / "text.txt"]}
    )
    assert comparison.curves == {}
    assert comparison.texts[0].costs["two"].tokens == 2


def test_words_are_shown_as_they_stand_in_a_sentence(tmp_path) -> None:
    tokenizer = byte_fallback_tokenizer(sample_texts("en"), 500)
    base = saved(tokenizer, tmp_path / "base")
    extend_tokenizer(base, [RU], 60, tmp_path / "more")
    comparison = compare_tokenizers([base, tmp_path / "more"], {"ru": [RU]})
    (differences,) = comparison.differences.values()
    assert differences
    if tokenizer.encode("a").tokens[0].startswith("\u2581"):
        assert not [one for one in differences if one.after[0] == " "]


def test_a_page_without_a_folder_is_refused_at_once(byte_level, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lep.tokenizer.compare.compare_tokenizers", None)
    base = saved(byte_level, tmp_path / "base")
    page = ["--html", str(tmp_path / "no" / "x.html")]
    with pytest.raises(OutputError, match="there is no folder"):
        app(["tokenizer", "compare", str(base), "--text", f"ru={RU}", *page], standalone_mode=False)


def test_chance_is_left_out_of_tokenisation(byte_level, tmp_path) -> None:
    certain = load_tokenizer(saved(byte_level, tmp_path / "base", dropout=0.9))
    assert certain("tokenization")["input_ids"] == byte_level.encode("tokenization").ids


def test_names_like_bytes_are_no_bytes() -> None:
    model = models.BPE(vocab={"<0xZZ>": 0, "<0x41>": 1, "a": 2}, merges=[], byte_fallback=True)
    tokens = Vocabulary.of(Tokenizer(model)).tokens
    assert [token.is_byte for token in tokens] == [False, True, False]


def test_an_added_word_whose_text_is_cut_alone_may_be_learned_in_others(byte_level) -> None:
    """`single_word` tokens are cut out only where no letter is beside them."""
    tokenizer = Tokenizer.from_str(byte_level.to_str())
    tokenizer.add_tokens([AddedToken("ост", single_word=True)])
    assert "ост".encode() not in Parts.of(tokenizer).taken
