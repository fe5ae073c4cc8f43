"""Production tokenizers, changed in every way (needs LEP_DATA, the folder of development data)."""

import json
import os
import random
from pathlib import Path

import pytest
import regex
import zstandard
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lep.corpus.read import stream_texts
from lep.errors import CorpusError
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.reach import unreachable_tokens
from lep.tokenizer.script import ScriptFilter
from lep.tokenizer.vocabulary import Vocabulary
from lep.tokenizer.write import extend_tokenizer, optimize_tokenizer, train_tokenizer

DATA = Path(os.environ.get("LEP_DATA", "/nonexistent"))
NAMES = [
    "llama-3",
    "mistral-7b-v0.1",
    "mistral-nemo-tekken",
    "qwen2",
    "gemma-4",
    "llama-2",
    "gpt-2",
]
NEW_TOKENS, RANDOM_TEXTS, TEXTS = 1_000, 6_000, 300
ONE_OF_EACH = [
    "llama-3",
    "mistral-7b-v0.1",
]  # what does not depend on the rest of a tokenizer: two are enough
OTHER_SCRIPTS = [*ONE_OF_EACH, "gpt-2"]  # GPT-2 knows fewest letters
CYRILLIC = ScriptFilter("Cyrillic")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (DATA / "tokenizers").is_dir(), reason="LEP_DATA does not name a folder with tokenizers"
    ),
]


@pytest.fixture(scope="module", params=NAMES)
def original(request, tmp_path_factory) -> Path:
    """A tokenizer folder as its makers would publish it."""
    source, folder = (
        DATA / "tokenizers" / request.param,
        tmp_path_factory.mktemp("tokenizers") / request.param,
    )
    folder.mkdir()
    with (source / "tokenizer.json.zst").open("rb") as raw:
        (folder / "tokenizer.json").write_bytes(
            zstandard.ZstdDecompressor().stream_reader(raw).read()
        )
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings |= {"model_max_length": 8192, "chat_template": "{{ messages[0]['content'] }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def russian() -> list[Path]:
    return [
        DATA / "train" / "ru" / name
        for name in ("tech_rustbook.jsonl.zst", "news_factrueval.jsonl.zst")
    ]


@pytest.fixture(scope="module")
def changed(original, russian, tmp_path_factory) -> dict[str, Path]:
    """The tokenizer extended, extended in place, and replaced (by Unigram if in `ONE_OF_EACH`)."""
    folder, size = tmp_path_factory.mktemp("changed"), len(Vocabulary.of(load_tokenizer(original)))
    out = {name: folder / name for name in ("extended", "in_place", "bpe", "unigram")}
    english = DATA / "train" / "en" / "tech_rustbook.jsonl.zst"
    extend_tokenizer(original, russian, NEW_TOKENS, out["extended"])
    optimize_tokenizer(
        original,
        [*russian, english],
        size - NEW_TOKENS,
        size,
        out["in_place"],
        script="cyrillic",
        in_place=True,
    )
    for algorithm in ("bpe", "unigram") if original.name in ONE_OF_EACH else ("bpe",):
        train_tokenizer(original, [russian[1], english], algorithm, 5_000, out[algorithm])
    return {name: path for name, path in out.items() if path.exists()}


def english_and_code(megabytes: float) -> list[str]:
    """Texts of English and code without a Cyrillic letter."""
    texts, size = [], 0
    sources = ["deb_python", "deb_postgres", "tech_php", "wiki", "novels_eltec"]
    for name in sources:
        budget = megabytes * 1e6 / len(sources)
        for text in stream_texts([DATA / "train" / "en" / f"{name}.jsonl.zst"]):
            if budget <= 0:
                break
            text = text[:50_000]
            if not CYRILLIC.has_character(text):
                texts.append(text)
                budget -= len(text.encode())
                size += len(text.encode())
    assert size >= 0.95e6 * megabytes
    return texts


def random_texts(count: int) -> list[str]:
    """Any code points, and code, emoji, mixed scripts, white space and bare marks."""
    rng = random.Random(0)
    pieces = [
        "def f(x):\n\treturn x",
        "\r\n",
        "\n\n\n",
        "  ",
        " " * 9,
        "\t",
        "🙂",
        "👩\u200d👩\u200d👧",
        "🇺🇦",
        "é",
        "e\u0301",
        "\u0301",
        "ё",
        "Привет",
        " мир",
        "ქართული",
        "한국어",
        "中文",
        "हिन्दी",
        "العربية",
        "12345",
        "0.5e-3",
        "--",
        "'s",
        "\u00a0",
        "\u200b",
        "\u2581",
        "\ufeff",
        "<s>",
        "</s>",
        "<unk>",
        "<0x41>",
        "<|endoftext|>",
        "\x00",
        "\U0001f1e6",
        "ﬁ",
        "ǅ",
        "჻",
    ]

    def character() -> str:
        top = rng.choice([0x80, 0x250, 0x600, 0x3000, 0xD800, 0x20000, 0x110000])
        code = rng.randrange(top)
        return chr(code) if not 0xD800 <= code < 0xE000 else " "

    return [
        "".join(
            rng.choice(pieces) if rng.random() < 0.5 else character()
            for _ in range(rng.randrange(1, 16))
        )
        for _ in range(count)
    ]


def encoded(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [each.ids for each in tokenizer.encode_batch(texts, add_special_tokens=False)]


def given_back(tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    return tokenizer.decode_batch(encoded(tokenizer, texts), skip_special_tokens=False)


def test_published_vectors_still_come_out(original, changed) -> None:
    source = DATA / "tokenizers" / original.name
    if not (source / "vectors.inp").exists():
        pytest.skip("no vectors for this tokenizer")
    texts = (source / "vectors.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = [
        [int(i) for i in line.split()] for line in (source / "vectors.out").read_text().splitlines()
    ]
    before, after = (
        load_tokenizer(folder).backend_tokenizer for folder in (original, changed["extended"])
    )
    first_new = len(Vocabulary.of(before))
    assert len(texts) >= len(expected) > 40
    for text, ids in zip(texts, expected, strict=False):
        assert before.encode(text, add_special_tokens=False).ids == ids
        new_ids = after.encode(text, add_special_tokens=False).ids
        assert new_ids == ids or max(new_ids) >= first_new  # new tokens may only appear in Cyrillic
        assert new_ids == ids or CYRILLIC.has_character(text)


def test_text_without_the_script_is_as_before(original, changed) -> None:
    before, after = (
        load_tokenizer(folder).backend_tokenizer for folder in (original, changed["extended"])
    )
    excluded = json.loads((changed["extended"] / "changes.json").read_text())["excluded"]
    assert excluded == []  # for Cyrillic nothing is shared
    texts = english_and_code(5.2)
    different = sum(
        a != b for a, b in zip(encoded(before, texts), encoded(after, texts), strict=True)
    )
    assert different == 0


def test_ids_where_no_new_token_applies(original, changed, russian) -> None:
    before, after = (
        load_tokenizer(folder).backend_tokenizer for folder in (original, changed["extended"])
    )
    merges, known = (
        [tuple(merge) for merge in json.loads(t.to_str())["model"]["merges"]]
        for t in (after, before)
    )
    # a new merge gives a new token, or a known one that the known merges did not reach here
    results = {after.token_to_id("".join(merge)) for merge in set(merges) - set(known)}
    lines = [
        line for text in stream_texts(russian) for line in text.splitlines() if 20 < len(line) < 400
    ][: 10 * TEXTS]
    plain = [
        line
        for line in lines
        if results.isdisjoint(after.encode(line, add_special_tokens=False).ids)
    ][:TEXTS]
    plain += english_and_code(0.5)[: TEXTS - len(plain)]
    assert len(plain) >= 100
    assert encoded(before, plain) == encoded(after, plain)


@pytest.mark.parametrize("variant", ["extended", "in_place", "bpe", "unigram"])
def test_sizes_reach_and_loaders(original, changed, variant) -> None:
    if variant not in changed:
        pytest.skip("replaced for one tokenizer of each family")
    before, after = (
        load_tokenizer(folder).backend_tokenizer for folder in (original, changed[variant])
    )
    size = {
        "extended": len(Vocabulary.of(before)) + NEW_TOKENS,
        "in_place": len(Vocabulary.of(before)),
    }.get(variant, 5_000)
    assert sorted(after.get_vocab(with_added_tokens=True).values()) == list(range(size))
    if variant in ("extended", "in_place"):
        vocabulary = Vocabulary.of(after)
        known = set(Vocabulary.of(before).ids)
        lost = [vocabulary.tokens[i] for i in unreachable_tokens(after)]
        assert not [token for token in lost if token not in known]  # every new token is reached
    added_before, added_after = (
        {e["content"]: e for e in json.loads(t.to_str())["added_tokens"]} for t in (before, after)
    )
    assert {name: e | {"id": 0} for name, e in added_before.items()} == {
        name: e | {"id": 0} for name, e in added_after.items()
    }
    loaded = [
        cls.from_pretrained(changed[variant]) for cls in (AutoTokenizer, PreTrainedTokenizerFast)
    ]
    for text in random_texts(200):
        ids = after.encode(text).ids
        assert all(tokenizer(text)["input_ids"] == ids for tokenizer in loaded)
    assert all(
        t.model_max_length == 8192 and t.chat_template == "{{ messages[0]['content'] }}"
        for t in loaded
    )


@pytest.mark.parametrize("variant", ["extended", "in_place", "bpe", "unigram"])
def test_round_trips(original, changed, variant) -> None:
    if variant not in changed:
        pytest.skip("replaced for one tokenizer of each family")
    before, after = (
        load_tokenizer(folder).backend_tokenizer for folder in (original, changed[variant])
    )
    texts = random_texts(RANDOM_TEXTS)
    held = [
        text for text, back in zip(texts, given_back(before, texts), strict=True) if text == back
    ]
    assert len(held) > RANDOM_TEXTS / 10
    lost = [
        (text, back)
        for text, back in zip(held, given_back(after, held), strict=True)
        if text != back
    ]
    assert lost == []


@pytest.mark.parametrize(
    ("language", "script"), [("ka", "georgian"), ("kk", "cyrillic"), ("hi", "devanagari")]
)
def test_other_scripts(original, language, script, tmp_path) -> None:
    if original.name not in OTHER_SCRIPTS:
        pytest.skip("extended for other scripts on some tokenizers")
    corpus = [DATA / "train" / language]
    change = extend_tokenizer(original, corpus, 400, tmp_path / "out", script=script)
    sample = change.corpus_sample
    assert sample["tokens_after"] < sample["tokens_before"]
    before, after = (
        load_tokenizer(folder).backend_tokenizer for folder in (original, tmp_path / "out")
    )
    accept, excluded = ScriptFilter(script.capitalize()), set(change.excluded)
    unassigned = regex.compile(
        r"\p{Cn}"
    )  # what no Unicode version has named may lie among the script's code points
    texts = [
        t
        for t in random_texts(5_000)
        if not accept.has_character(t) and not excluded & set(t) and not unassigned.search(t)
    ]
    assert len(texts) > 1_000
    assert encoded(before, texts) == encoded(after, texts)
    with pytest.raises(CorpusError, match="the corpus holds no Thai text"):
        extend_tokenizer(original, corpus, 400, tmp_path / "no", script="thai")
    assert not (tmp_path / "no").exists()
