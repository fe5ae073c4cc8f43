"""Pruning, in-place and new vocabularies, id maps, counting and comparison."""

import gzip
import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from conftest import SAMPLE, byte_fallback_tokenizer, byte_level_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

import lep
from lep.corpus.read import read_documents, stream_texts
from lep.errors import CorpusError, LepError, OutputError, TokenizerError
from lep.tokenizer import count as counting
from lep.tokenizer.compare import compare_tokenizers
from lep.tokenizer.count import (
    WordCutter,
    count_texts,
    count_words,
    merge_counts,
    read_counts,
    write_counts,
)
from lep.tokenizer.idmap import IdMap
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.parts import Parts
from lep.tokenizer.prune import kept_tokens, last_merges, pruned, token_counts
from lep.tokenizer.reach import unreachable_tokens
from lep.tokenizer.train import replacement, replacement_cutter
from lep.tokenizer.vocabulary import Vocabulary
from lep.tokenizer.write import (
    count_corpus,
    extend_tokenizer,
    make_tokenizer,
    optimize_tokenizer,
    prune_tokenizer,
    train_tokenizer,
)
from lep.transfer.mappings import build_mapping

RU, EN = SAMPLE / "ru", SAMPLE / "en"
FAMILIES = ["byte_level", "byte_fallback"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def prune(
    tokenizer: Tokenizer, texts: list[str], keep: int, protected: list[str] = (), **options
) -> Parts:
    parts = Parts.of(tokenizer)
    counts = token_counts(tokenizer, texts, len(parts.names))
    protected_ids = token_counts(tokenizer, protected, len(parts.names)) > 0
    return pruned(parts, kept_tokens(parts, counts, keep, protected_ids), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_merge_path_is_broken_by_pruning(family, request, russian, english) -> None:
    tokenizer = request.getfixturevalue(family)
    keep = tokenizer.get_vocab_size() - 60
    after = prune(tokenizer, russian + english[:3], keep).vocabulary.tokenizer
    assert after.get_vocab_size() == keep
    assert sorted(after.get_vocab().values()) == list(range(keep))
    assert unreachable_tokens(after) == unreachable_tokens(tokenizer) == []
    assert {t.content for t in after.get_added_tokens_decoder().values()} == {
        t.content for t in tokenizer.get_added_tokens_decoder().values()
    }
    left = set(after.get_vocab())
    for text in [*russian, *english]:
        expected = tokenizer.encode(text, add_special_tokens=False).tokens
        if set(expected) <= left:  # all its tokens stayed: nothing may change
            assert after.encode(text, add_special_tokens=False).tokens == expected
        assert after.decode(after.encode(text).ids) == tokenizer.decode(tokenizer.encode(text).ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_protected_texts_stay_as_they_were(family, request, russian, english) -> None:
    tokenizer = request.getfixturevalue(family)
    keep = tokenizer.get_vocab_size() - 40
    after = prune(tokenizer, russian, keep, english[:2]).tokenizer
    for text in english[:2]:
        assert after.encode(text).tokens == tokenizer.encode(text).tokens


def test_the_least_used_goes_first(byte_level, russian) -> None:
    parts = Parts.of(byte_level)
    counts = token_counts(byte_level, russian, len(parts.names))
    kept = kept_tokens(parts, counts, len(parts.names) - 1, np.zeros(len(counts), dtype=bool))
    parents = last_merges(parts)
    needed = {i for pair in parents if pair for i in pair}
    leaves = [i for i, pair in enumerate(parents) if pair and i not in needed]
    assert list(np.flatnonzero(~kept)) == [min(leaves, key=lambda i: (counts[i], -i))]


def test_uses_go_to_the_pieces() -> None:
    vocabulary = {name: i for i, name in enumerate(["a", "b", "c", "d", "ab", "abc", "cd"])}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("a", "b"), ("ab", "c"), ("c", "d")], byte_fallback=True)
    )
    parts = Parts.of(tokenizer)
    uses = np.array([0, 0, 0, 0, 2, 2, 3])
    nothing = np.zeros(7, dtype=bool)
    kept = {keep: kept_tokens(parts, uses, keep, nothing) for keep in (6, 5)}
    assert [parts.names[i] for i in np.flatnonzero(~kept[6])] == ["abc"]
    # The two uses of abc raised ab from two to four, so cd (three) goes next.
    assert [parts.names[i] for i in np.flatnonzero(~kept[5])] == ["abc", "cd"]


def test_last_merges_against_the_tokenizer_itself(byte_fallback) -> None:
    parts = Parts.of(byte_fallback)
    spec = json.loads(byte_fallback.to_str())
    for index, pair in enumerate(last_merges(parts)):
        if pair is None:
            continue
        name = parts.names[index]
        smaller = {"merges": [m for m in spec["model"]["merges"] if m[0] + m[1] != name]}
        without = Tokenizer.from_str(json.dumps(spec | {"model": spec["model"] | smaller}))
        assert [piece.id for piece in without.model.tokenize(name)] == list(pair)


def test_too_small_to_hold_what_must_stay(pair, byte_level, english, tmp_path) -> None:
    message = r"260 tokens are to stay, but \d+ must: .* what protected texts use \(\d+\)"
    with pytest.raises(TokenizerError, match=message):
        prune(byte_level, english, 260, english)
    with pytest.raises(TokenizerError, match="9,999 tokens are to stay, but only"):
        prune_tokenizer(pair["base"], [RU], 9999, tmp_path / "no")


def test_what_the_chat_template_writes_is_not_pruned(pair, tmp_path) -> None:
    """Its words may be rare in every text, but each prompt has them."""
    folder = shutil.copytree(pair["instruct"], tmp_path / "model")
    template = (
        "{% for m in messages %}### the {{ m.role }} said: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}### and so the answer is: {% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    chat = [{"role": "user", "content": "Jx4"}, {"role": "assistant", "content": "Jx4"}]
    known = load_tokenizer(folder)
    prompt = known.apply_chat_template([*chat, chat[0]], tokenize=False, add_generation_prompt=True)
    size = len(known) - 40
    prune_tokenizer(folder, [RU], size, tmp_path / "out")
    pieces = [
        Tokenizer.from_file(str(f / "tokenizer.json")).encode(prompt)
        for f in (folder, tmp_path / "out")
    ]
    assert pieces[0].tokens == pieces[1].tokens
    plain = shutil.copytree(folder, tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    prune_tokenizer(plain, [RU], size, tmp_path / "plain-out")  # nobody says that it is needed
    assert (
        Tokenizer.from_file(str(tmp_path / "plain-out" / "tokenizer.json")).encode(prompt).tokens
        != pieces[0].tokens
    )


def test_in_place_keeps_every_other_id(pair, tmp_path) -> None:
    before = load_tokenizer(pair["base"]).backend_tokenizer
    size = before.get_vocab_size()
    change = optimize_tokenizer(
        pair["base"], [RU, EN], size - 60, size, tmp_path / "out", script="cyrillic", in_place=True
    )
    after = load_tokenizer(tmp_path / "out").backend_tokenizer
    assert (change.kept, change.moved, change.new, change.dropped) == (size - 60, 0, 60, 60)
    assert after.get_vocab_size() == size
    same = before.get_vocab().items() & after.get_vocab().items()
    assert len(same) == size - 60
    assert json.loads(after.to_str())["added_tokens"] == json.loads(before.to_str())["added_tokens"]
    assert unreachable_tokens(after) == []
    message = f"in place the size stays {size}, but --vocab-size is 700"
    with pytest.raises(TokenizerError, match=message):
        optimize_tokenizer(pair["base"], [RU], 400, 700, tmp_path / "no", in_place=True)
    assert not (tmp_path / "no").exists()


def test_optimize_is_exact_and_moves_special_tokens(pair, tmp_path) -> None:
    change = optimize_tokenizer(
        pair["instruct"], [RU, EN], 440, 480, tmp_path / "out", script="cyrillic"
    )
    before, after = load_tokenizer(pair["instruct"]), load_tokenizer(tmp_path / "out")
    assert (change.size, change.new) == (480, 40)
    assert after.chat_template == before.chat_template
    assert after.backend_tokenizer.get_vocab_size() == 480
    chat = [{"role": "user", "content": "Привет, hello"}]
    prompts = [
        t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for t in (before, after)
    ]
    assert prompts[0] == prompts[1]
    assert after.decode(after(prompts[1], add_special_tokens=False)["input_ids"]) == prompts[1]
    assert after("x")["input_ids"][0] == after.bos_token_id
    with pytest.raises(TokenizerError, match="--keep 480 of 480 leaves no room for new tokens"):
        optimize_tokenizer(pair["base"], [RU], 480, 480, tmp_path / "no")


def test_post_processor_gets_the_new_ids(english) -> None:
    tokenizer = byte_level_tokenizer(english, 400, ["<s>", "</s>"])
    spec = json.loads(tokenizer.to_str())
    vocabulary = spec["model"]["vocab"]
    names = {name: (i + 50) % 400 for name, i in vocabulary.items()}  # specials at 50 and 51
    spec["model"]["vocab"] = dict(sorted(names.items(), key=lambda item: item[1]))
    for entry in spec["added_tokens"]:
        entry["id"] = names[entry["content"]]
    moved = Tokenizer.from_str(json.dumps(spec))
    for processor in (
        processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 50), ("</s>", 51)]
        ),
        processors.RobertaProcessing(("</s>", 51), ("<s>", 50)),
        processors.Sequence(
            [processors.ByteLevel(), processors.BertProcessing(("</s>", 51), ("<s>", 50))]
        ),
    ):
        moved.post_processor = processor
        after = prune(moved, english, 370).tokenizer
        ids, specials = after.encode("the").ids, tuple(map(after.token_to_id, ("<s>", "</s>")))
        assert (ids[0], ids[-1]) == specials != (50, 51)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize("family", FAMILIES)
def test_replacement_is_exact_and_lossless(algorithm, family, request, russian, english) -> None:
    base = request.getfixturevalue(family)
    words = count_texts(replacement_cutter(base), russian + english, "any")
    after = replacement(base, words, 600, algorithm=algorithm)
    assert sorted(after.get_vocab().values()) == list(range(600))
    added_before, added_after = (
        {e["content"]: e for e in json.loads(t.to_str())["added_tokens"]} for t in (base, after)
    )
    assert {name: e | {"id": 0} for name, e in added_before.items()} == {
        name: e | {"id": 0} for name, e in added_after.items()
    }
    for text in [*russian[:3], *english[:3], "\t\n\r\n  a\u2581b \u0301 ё 🙂 ჻\x00", "   "]:
        ids = after.encode(text, add_special_tokens=False).ids
        assert after.decode(ids, skip_special_tokens=False) == text
    if algorithm == "bpe":
        assert unreachable_tokens(after) == []
    message = r"of 250 tokens is too small: the alphabet of 256 bytes and \d added tokens need"
    with pytest.raises(LepError, match=message):
        replacement(base, words, 250, algorithm=algorithm)
    with pytest.raises(LepError, match="unknown algorithm 'wordpiece': choose one of bpe, unigram"):
        replacement(base, words, 600, algorithm="wordpiece")


@given(text=ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_round_trips(request, pair_of_changed, text: str) -> None:
    for before, after in pair_of_changed:
        ids = before.encode(text, add_special_tokens=False).ids
        if before.decode(ids, skip_special_tokens=False) == text:
            ids = after.encode(text, add_special_tokens=False).ids
            assert after.decode(ids, skip_special_tokens=False) == text


@pytest.fixture(scope="module")
def pair_of_changed(
    byte_level, byte_fallback, russian, english
) -> list[tuple[Tokenizer, Tokenizer]]:
    changed = []
    for tokenizer in (byte_level, byte_fallback):
        smaller = prune(tokenizer, russian, tokenizer.get_vocab_size() - 50)
        changed.append((tokenizer, smaller.tokenizer))
        words = count_texts(replacement_cutter(tokenizer), russian + english, "any")
        changed += [
            (tokenizer, replacement(tokenizer, words, 500, algorithm=name))
            for name in ("bpe", "unigram")
        ]
    return changed


def test_id_map_agrees_with_the_embedding_mapping(pair, tmp_path) -> None:
    optimize_tokenizer(pair["base"], [RU, EN], 440, 480, tmp_path / "out", script="cyrillic")
    source, target = (
        Vocabulary.of(load_tokenizer(folder)) for folder in (pair["base"], tmp_path / "out")
    )
    id_map = IdMap.between(source, target)
    assert id_map == IdMap.load(tmp_path / "out" / "id_map.json")
    rows, sources = build_mapping(source, target, len(source)).kept()
    assert dict(zip(sources.tolist(), rows.tolist(), strict=True)) == {
        i: new for i, new in enumerate(id_map.target) if new is not None
    }
    assert len(id_map.kept) + len(id_map.moved) + len(id_map.dropped) == len(source)
    assert len(id_map.kept) + len(id_map.moved) + len(id_map.new) == len(target)


def test_files_of_all_kinds(tmp_path) -> None:
    records = [{"text": "раз"}, {"text": "два"}]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    frames = zstandard.compress(lines[:14]) + zstandard.compress(lines[14:])
    (tmp_path / "c.jsonl.zst").write_bytes(frames)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "d.parquet")
    (tmp_path / "e.txt").write_text("раз\nдва")
    (tmp_path / "f.txt.gz").write_bytes(gzip.compress("раз\nдва".encode()))
    assert list(stream_texts([tmp_path])) == ["раз", "два"] * 4 + ["раз\nдва"] * 2
    assert [d.text for d in read_documents([tmp_path])] == list(stream_texts([tmp_path]))
    for name, content in (
        ("g.jsonl.gz", b"no"),
        ("h.parquet", b"no"),
        ("i.txt.gz", gzip.compress(b"long text")[:-9]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorpusError, match=r"is not a readable|ends early"):
            list(stream_texts([tmp_path / name]))
    (tmp_path / "i.parquet").unlink(missing_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"body": "x"}]), tmp_path / "j.parquet")
    with pytest.raises(CorpusError, match=r"j.parquet, line 1: no field 'text' \(fields: body\)"):
        list(stream_texts([tmp_path / "j.parquet"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_words_are_cut_as_the_tokenizer_cuts(family, request, russian, english) -> None:
    tokenizer = request.getfixturevalue(family)
    cutter = WordCutter.of(tokenizer)
    for text in [*russian[:5], *english[:5], "  a  b\t c'est 12345 \n\n--x", ""]:
        words = cutter(text)
        if family == "byte_level":
            assert "".join(words) == text
            assert words == replace(cutter, pattern=None)(text)
            assert cutter.check([text]) is cutter
        else:
            assert all(word.strip().isalpha() for word in words)


def test_a_pattern_that_differs_is_not_used(byte_level, monkeypatch) -> None:
    monkeypatch.setattr(counting, "split_pattern", lambda spec: r"\w")
    cutter = WordCutter.of(byte_level).check(["some text"])
    assert cutter("some text") == ["some", " text"]


def test_shards_add_up(byte_level, russian, tmp_path, monkeypatch) -> None:
    cutter = WordCutter.of(byte_level)
    monkeypatch.setattr(counting, "CHUNK_CHARACTERS", 1_000)
    monkeypatch.setattr(counting, "PARALLEL_CHARACTERS", 2_000)  # so that other processes count too
    whole = count_texts(byte_level, russian)
    assert whole.counts == Counter(
        word
        for text in russian
        for word in cutter(text)
        if any("а" <= c <= "я" or "А" <= c <= "Я" or c in "ёЁ" for c in word)
    )
    halves = [count_texts(byte_level, russian[::2]), count_texts(byte_level, russian[1::2])]
    assert merge_counts(halves) == whole
    for i, half in enumerate(halves):
        with (tmp_path / f"{i}.counts.zst").open("wb") as file:
            write_counts(file, half, cutter)
    assert count_words(byte_level, [tmp_path / "0.counts.zst", tmp_path / "1.counts.zst"]) == whole
    with pytest.raises(CorpusError, match="counts of Cyrillic and of None words"):
        merge_counts([whole, count_texts(byte_level, russian, "any")])


def test_counts_of_another_tokenizer(byte_level, byte_fallback, russian, tmp_path) -> None:
    words, cutter = count_texts(byte_level, russian), WordCutter.of(byte_level)
    with (tmp_path / "a.counts.zst").open("wb") as file:
        write_counts(file, words, cutter)
    with pytest.raises(CorpusError, match="counted for a tokenizer that cuts words differently"):
        read_counts(tmp_path / "a.counts.zst", WordCutter.of(byte_fallback))
    (tmp_path / "b.counts.zst").write_bytes(zstandard.compress(b"what?\n"))
    with pytest.raises(CorpusError, match="is no file of counts"):
        read_counts(tmp_path / "b.counts.zst", cutter)
    with pytest.raises(CorpusError, match="does not exist"):
        count_words(byte_level, [tmp_path / "c.counts.zst"])
    with pytest.raises(CorpusError, match="holds Cyrillic words: count again for georgian"):
        count_words(byte_level, [tmp_path / "a.counts.zst"], "georgian")


def test_memory_is_bounded(byte_level, russian, monkeypatch) -> None:
    whole = count_texts(byte_level, russian).counts
    monkeypatch.setattr(counting, "MAX_WORDS", 300)
    few = count_texts(byte_level, russian).counts
    assert 0 < len(few) <= 300
    assert few.items() <= whole.items()
    assert min(few.values()) > min(whole.values())


def test_verbs_take_strings_and_their_results_print(pair, tmp_path) -> None:
    base, output = str(pair["base"]), str(tmp_path / "extended")
    change = lep.extend_tokenizer(base, [str(RU)], new_tokens=50, output=output)
    record = json.loads((tmp_path / "extended" / "changes.json").read_text())
    hidden = ("output", "options", "loader_note")
    assert record == {"verb": "extend", "method": "continue"} | {
        name: value for name, value in vars(change).items() if name not in hidden
    }
    assert len(change.tokens) == change.new == change.new_tokens == 50
    lines = str(change).splitlines()
    assert lines[0] == "500 tokens before, 550 after: 500 kept, 0 moved, 50 new, 0 dropped"
    assert repr(change.tokens[0]) in lines[1]
    assert lines[2] == "text without the Cyrillic script is tokenised as before"
    assert lines[-1] == f"written to {output}"
    sizes = lep.prune_tokenizer(base, [str(RU)], vocab_size=450, output=str(tmp_path / "pruned"))
    assert "435 kept, 15 moved, 0 new, 50 dropped" in str(sizes)
    assert "new_tokens" not in sizes.record()
    counts = count_corpus(base, [str(RU)], str(tmp_path / "ru.counts.zst"))
    assert str(counts).endswith(f"characters of text: {tmp_path / 'ru.counts.zst'}")
    trained = make_tokenizer(base, [str(RU)], str(tmp_path / "bpe"), method="bpe", vocab_size=450)
    assert trained.options == {"verb": "train", "algorithm": "bpe"}
    with pytest.raises(LepError, match="the method bpe needs vocab_size"):
        make_tokenizer(base, [RU], tmp_path / "no", method="bpe")


def test_extend_from_counts(pair, tmp_path) -> None:
    count_corpus(pair["base"], [RU], tmp_path / "ru.counts.zst")
    with pytest.raises(OutputError, match="exists already"):
        count_corpus(pair["base"], [RU], tmp_path / "ru.counts.zst")
    extend_tokenizer(pair["base"], [tmp_path / "ru.counts.zst"], 50, tmp_path / "a")
    extend_tokenizer(pair["base"], [RU], 50, tmp_path / "b")
    one, other = (tmp_path / name / "tokenizer.json" for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    with pytest.raises(LepError, match="unknown method 'glue': choose one of continue, merge"):
        extend_tokenizer(pair["base"], [RU], 50, tmp_path / "no", method="glue")
    with pytest.raises(OutputError, match="exists already"):
        prune_tokenizer(pair["base"], [RU], 450, tmp_path / "a")


def test_savings_are_of_texts_from_the_whole_corpus(pair, tmp_path) -> None:
    """A corpus whose first texts are English: the figure is about all of it."""
    english = ["The old house stood by the river."] * 300
    lines = [json.dumps({"text": text}) for text in english + ["Старый дом стоял у реки."] * 900]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    change = extend_tokenizer(pair["base"], [tmp_path / "a.jsonl"], 8, tmp_path / "out")
    sample = change.corpus_sample
    assert sample["texts"] == 200
    mean = sample["characters"] / 200
    of_all = (300 * len(english[0]) + 900 * len("Старый дом стоял у реки.")) / 1_200
    assert mean == pytest.approx(of_all, rel=0.03)  # 33 if only the first texts counted
    assert "200 texts drawn from the corpus" in str(change)
    again = extend_tokenizer(pair["base"], [tmp_path / "a.jsonl"], 8, tmp_path / "again")
    assert again.corpus_sample == sample


@pytest.mark.slow
def test_compare(pair, tmp_path) -> None:
    change = extend_tokenizer(pair["base"], [RU], 60, tmp_path / "extended")
    train_tokenizer(pair["base"], [RU], "unigram", 450, tmp_path / "unigram")
    comparison = compare_tokenizers(
        [pair["base"], tmp_path / "extended", tmp_path / "unigram"],
        {"ru": [RU], "en": [EN / sorted(EN.iterdir())[0].name]},
    )
    assert comparison.reference == "base"
    russian = [text for text in comparison.texts if text.name == "ru"]
    assert [text.file for text in russian] == ["ru"]  # the documents of a folder are one text
    for text in comparison.texts:
        base, extended, unigram = (text.costs[name] for name in ("base", "extended", "unigram"))
        assert all(cost.round_trip == 1 for cost in (base, extended, unigram))
        assert base.tokens * base.symbols_per_token == pytest.approx(text.characters)
        bytes_per_symbol = base.bytes_per_token / base.symbols_per_token
        assert bytes_per_symbol == pytest.approx(text.bytes / text.characters)
        assert base.new_share == base.new_used == 0
        assert (extended.tokens < base.tokens) == (text.name == "ru")
        assert (extended.new_share > 0) == (text.name == "ru")
        for cost in text.costs.values():
            assert cost.symbols_per_token <= cost.most  # each tokenizer's ceiling, by its words
    original = load_tokenizer(pair["base"]).backend_tokenizer
    pieces = list(stream_texts([RU]))
    words = sum(len(original.pre_tokenizer.pre_tokenize_str(piece)) for piece in pieces)
    cost = russian[0].costs["base"]
    assert cost.most == pytest.approx(sum(map(len, pieces)) / words)
    swapped = compare_tokenizers([tmp_path / "unigram", pair["base"]], {"ru": [RU]})
    assert swapped.texts[0].costs["base"].most == cost.most  # the order does not matter
    curve = comparison.curves["extended"]["ru"]
    assert "unigram" not in comparison.curves  # it dropped tokens: no curve of additions
    assert (curve[0][0], curve[-1][0]) == (0, 60)
    values = [value for _, value in curve]
    assert values == sorted(values)
    tokens = {n: sum(t.costs[n].tokens for t in russian) for n in ("base", "extended")}
    characters = sum(t.characters for t in russian)
    ends = tuple(characters / tokens[name] for name in ("base", "extended"))
    assert (values[0], values[-1]) == pytest.approx(ends)
    middle = curve[6][0]
    extend_tokenizer(pair["base"], [RU], middle, tmp_path / "half")
    half = load_tokenizer(tmp_path / "half").backend_tokenizer
    encoded = (half.encode(text, add_special_tokens=False) for text in stream_texts([RU]))
    direct = characters / sum(len(encoding.ids) for encoding in encoded)
    assert curve[6][1] == pytest.approx(direct, rel=1e-3)
    assert comparison.differences["extended"][0].word.strip()
    assert all(word.before != word.after for word in comparison.differences["extended"])
    assert f"{change.size:,} tokens" in str(comparison)
    with pytest.raises(LepError, match="give at least one tokenizer"):
        compare_tokenizers([], {"ru": [RU]})


def test_symbols_per_token_of_a_language_are_of_all_its_files(pair) -> None:
    comparison = compare_tokenizers([pair["base"]], {"both": [RU, EN]})
    assert [text.file for text in comparison.texts] == ["ru", "en"]
    tokenizer = Tokenizer.from_file(str(pair["base"] / "tokenizer.json"))
    texts = list(stream_texts([RU, EN]))
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
    words = sum(len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) for text in texts)
    characters = sum(map(len, texts))
    expected = (characters / tokens, characters / words)
    assert comparison.by_language()["base"]["both"] == pytest.approx(expected, rel=1e-3)
    first = str(comparison).splitlines()[0]
    assert first.startswith("symbols per token  base  both ")
    assert f"{characters / tokens:.2f} (at most {characters / words:.2f})" in first


def test_unreachable_tokens_are_found(byte_level) -> None:
    spec = json.loads(byte_level.to_str())
    lost = spec["model"]["vocab"]["zzzz"] = len(spec["model"]["vocab"])
    for shortcut in (False, True):  # being reached as a whole word only does not count
        spec["model"]["ignore_merges"] = shortcut
        assert unreachable_tokens(Tokenizer.from_str(json.dumps(spec))) == [lost]


def test_lengths_in_a_tokenizer_file_cut_nothing(pair, tmp_path) -> None:
    """Some published tokenizer.json files still hold the truncation and padding of a test."""
    shutil.copytree(pair["base"], tmp_path / "base")
    path = tmp_path / "base" / "tokenizer.json"
    raw = Tokenizer.from_file(str(path))
    raw.enable_truncation(8)
    raw.enable_padding(length=16)
    raw.save(str(path))
    text = next(iter((SAMPLE / "ru").glob("*.txt"))).read_text(encoding="utf-8")
    cut, whole = (
        load_tokenizer(folder).backend_tokenizer for folder in (tmp_path / "base", pair["base"])
    )
    assert cut.encode(text).ids == whole.encode(text).ids
    extend_tokenizer(tmp_path / "base", [SAMPLE / "ru"], 20, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert (written["truncation"], written["padding"]) == (None, None)


def test_pieces_of_the_report_are_text_in_any_family(russian, english, tmp_path) -> None:
    from lep.report.data import pieces

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_fallback_tokenizer(english + russian[:4], 600)
    )
    texts = [piece for _, piece in pieces(tokenizer, "Снег идёт, it was cold.")]
    assert "".join(texts) == "Снег идёт, it was cold."
