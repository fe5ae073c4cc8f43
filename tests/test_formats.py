"""What people bring that is no folder with safetensors: the commands that convert it, run."""

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SAMPLE, byte_fallback_tokenizer, save_model, weights
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.write import count_corpus, extend_tokenizer


def command(message: str) -> list[str]:
    """The Python command that a message ends in, for this interpreter."""
    arguments = shlex.split(message[message.index("python -c ") :])
    return [sys.executable, *arguments[1:]]


def refused(source: Path) -> str:
    """The one sentence that every verb says."""
    said = []
    for verb in (
        Checkpoint,
        lambda path: extend_tokenizer(path, [SAMPLE / "ru"], 10, path.parent / "no"),
        lambda path: count_corpus(path, [SAMPLE / "ru"], path.parent / "no.counts.zst"),
    ):
        with pytest.raises(CheckpointError) as error:
            verb(source)
        said.append(str(error.value))
    assert not list(source.parent.glob("no*"))
    assert len(set(said)) == 1
    assert "\n" not in said[0]
    return said[0]


@pytest.mark.parametrize("inside", [False, True])
def test_a_gguf_file(inside, tmp_path, here) -> None:
    folder = tmp_path / "a folder's"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(b"GGUF")
    source = folder if inside else folder / "m.gguf"
    message = here("inspect", source, code=2)
    python = command(message)
    assert python[3:] == [str(folder), "m.gguf", str(folder / "m")]
    compile(python[2], "command", "exec")
    assert "pip install gguf" in message
    assert "the hub" not in message
    if not inside:
        assert refused(source) in message


def test_other_files_are_answered_with_their_folder(pair, here) -> None:
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        message = here("inspect", pair["base"] / name, code=2)
        assert f"is a file, not a folder: give the folder {pair['base']}" in message


def pickled(folder: Path, pair: dict[str, Path], name: str = "pytorch_model.bin") -> Path:
    shutil.copytree(pair["base"], folder)
    (folder / "model.safetensors").unlink()
    torch.save(weights(pair["base"]), folder / name)
    return folder


def test_pickled_weights(pair, tmp_path, here) -> None:
    folder = pickled(tmp_path / "m", pair)
    for source in (folder, folder / "pytorch_model.bin"):
        python = command(here("inspect", source, code=2))
        assert python[3:] == [str(folder), str(tmp_path / "m-safetensors")]
        compile(python[2], "command", "exec")
    other = pickled(tmp_path / "other", pair, "consolidated.00.pth")
    assert "take the model in the format of transformers" in here("inspect", other, code=2)


@pytest.mark.slow
def test_the_command_for_pickled_weights(pair, tmp_path, here) -> None:
    folder = pickled(tmp_path / "m", pair)
    subprocess.run(command(here("inspect", folder, code=2)), check=True)
    after = weights(tmp_path / "m-safetensors")
    assert all(torch.equal(after[name], each) for name, each in weights(pair["base"]).items())
    assert "500 tokens" in here("inspect", tmp_path / "m-safetensors")


@pytest.mark.slow
def test_the_command_for_pickled_weights_runs_no_code(pair, tmp_path, here) -> None:
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    folder = pickled(tmp_path / "m", pair)
    torch.save({"model.norm.weight": Hostile()}, folder / "pytorch_model.bin")
    done = subprocess.run(command(here("inspect", folder, code=2)), capture_output=True, text=True)
    assert done.returncode != 0
    assert not (tmp_path / "ran").exists()


def test_a_folder_with_sentencepiece_alone(pair, tmp_path, here) -> None:
    shutil.copytree(pair["base"], tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").rename(tmp_path / "m" / "tokenizer.model")
    for name, expected in (("LlamaTokenizerFast", "LlamaTokenizer"), ("os", "AutoTokenizer")):
        (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        with pytest.raises(CheckpointError) as error:
            load_tokenizer(tmp_path / "m")
        python = command(str(error.value))
        assert f"from transformers import {expected} as T" in python[2]
        assert python[3:] == [str(tmp_path / "m")]
        assert "pip install protobuf sentencepiece" in str(error.value)
        assert str(error.value) in here("inspect", tmp_path / "m", code=2)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("google.protobuf") is None
    if importlib.util.find_spec("google")
    else True,
    reason="protobuf is not installed",
)
def test_the_command_for_sentencepiece(russian, tmp_path) -> None:
    import sentencepiece

    lines = [line for text in russian for line in text.splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    folder = tmp_path / "m"
    folder.mkdir()
    shutil.copy(tmp_path / "tokenizer.model", folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(folder)
    subprocess.run(command(str(error.value)), check=True)
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    after = load_tokenizer(folder)
    for line in lines[:50]:
        assert after(line, add_special_tokens=False)["input_ids"] == model.encode(line)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")
def test_the_command_for_a_gguf_file(pair, tmp_path, here) -> None:
    import gguf

    config, table = json.loads((pair["base"] / "config.json").read_text()), weights(pair["base"])
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(500)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(500)])
    writer.add_token_merges([])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in table.items():
        renamed = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(renamed, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    subprocess.run(command(here("inspect", tmp_path / "m.gguf", code=2)), check=True)
    after = weights(tmp_path / "m")
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(after[name], table[name].to(torch.bfloat16))
    for file in pair["base"].glob("*token*"):  # as the message says
        shutil.copy(file, tmp_path / "m")
    assert "LlamaForCausalLM" in here("inspect", tmp_path / "m")


def test_a_tokenizer_that_is_rebuilt_is_named(english, tmp_path, here) -> None:
    """As Mistral's: the class of the model's type cuts otherwise than tokenizer.json."""
    raw = byte_fallback_tokenizer(english, 400)
    raw.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    spec = json.loads(raw.to_str()) | {"pre_tokenizer": None}
    folder = tmp_path / "m"
    save_model(folder, Tokenizer.from_str(json.dumps(spec)))
    assert "AutoTokenizer" not in here("inspect", folder)
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"})
    )
    auto, fast = (c.from_pretrained(folder) for c in (AutoTokenizer, PreTrainedTokenizerFast))
    assert auto(" a  b")["input_ids"] != fast(" a  b")["input_ids"]
    line = "AutoTokenizer reads this folder differently from its tokenizer.json (on "
    assert here("inspect", folder).count(line) == 1
    text = min((SAMPLE / "ru").glob("*.txt"))
    options = ["--base", folder, "--corpus", text, "--new-tokens", 20]
    assert here("tokenizer", "extend", *options, "--output", tmp_path / "t").count(line) == 1
    output = here("tokenizer", "compare", folder, tmp_path / "t", "--text", f"ru={text}")
    assert output.count(line) == 1  # the result is read alike by all
    assert "loader_note" not in json.loads((tmp_path / "t" / "changes.json").read_text())
