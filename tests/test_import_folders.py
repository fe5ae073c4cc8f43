"""Folders with pickled weights or a SentencePiece tokenizer alone."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import weights
from safetensors.torch import load_file

import lep
from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, LepError
from lep.imports.worker import perform
from lep.tokenizer.load import load_tokenizer


def has(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


spm = pytest.mark.skipif(not has("google.protobuf"), reason="needs lep[spm]")


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def pickled(pair: dict[str, Path], tmp_path: Path) -> Path:
    """The base model with its weights in two pickles."""
    folder = tmp_path / "pickled"
    shutil.copytree(pair["base"], folder)
    tensors = weights(folder)
    (folder / "model.safetensors").unlink()
    names, half = sorted(tensors), len(tensors) // 2
    shards = {"pytorch_model-1.bin": names[:half], "pytorch_model-2.bin": names[half:]}
    for shard, inside in shards.items():
        torch.save({name: tensors[name] for name in inside}, folder / shard)
    places = {name: shard for shard, inside in shards.items() for name in inside}
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("kind", [None, "f16"])
def test_pickled_weights(pickled: Path, pair: dict[str, Path], tmp_path: Path, kind) -> None:
    (tmp_path / "out").mkdir()
    report = perform("pickles", pickled, tmp_path / "out", type=kind)
    before, after = weights(pair["base"]), weights(tmp_path / "out")
    assert report["tensors"] == len(before) == len(after)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.half() if kind else tensor), name


@pytest.mark.slow
def test_a_folder_of_pickles(pickled: Path, pair: dict[str, Path], here, tmp_path: Path) -> None:
    """By the command: an ordinary folder with all that was beside the weights."""
    output = here("import", pickled, "--output", tmp_path / "out")
    assert f"{len(weights(pair['base']))} pickled" in output
    assert torch.equal(
        weights(tmp_path / "out")["model.norm.weight"], weights(pair["base"])["model.norm.weight"]
    )
    model = Checkpoint(tmp_path / "out").check()
    assert model.config == Checkpoint(pair["base"]).config
    assert model.tokenizer("да")["input_ids"] == load_tokenizer(pair["base"])("да")["input_ids"]
    assert not list((tmp_path / "out").glob("*.bin*"))


def spoiled(folder: Path, how: str) -> str:
    """Change a folder of pickles for the worse; a part of the sentence about it."""
    first, index = folder / "pytorch_model-1.bin", folder / "pytorch_model.bin.index.json"
    if how == "code":
        torch.save({"model.norm.weight": Hostile(folder / "ran")}, first)
        return "holds more than tensors"
    if how == "repeated":
        torch.save({"model.norm.weight": torch.zeros(1).expand(2**40)}, first)
        return "repeats its numbers"
    if how == "not a tensor":
        torch.save({"model.norm.weight": [1, 2]}, first)
        return "model.norm.weight is a list"
    if how == "sparse":
        torch.save({"model.norm.weight": torch.eye(3).to_sparse()}, first)
        return "torch.sparse_coo"
    if how == "cut":
        first.write_bytes(first.read_bytes()[:-100])
        return "or is damaged"
    if how == "nothing":
        first.write_bytes(b"")
        return "or is damaged"
    name = {"outside": "../x.bin", "missing": "x.bin", "odd": 5}[how]
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    return "lacks x.bin" if how == "missing" else "which is no file beside it"


def test_one_pickled_file_counts_before_an_index(pickled: Path, pair, tmp_path: Path) -> None:
    """As in transformers; one of the two is left over."""
    first = {name: torch.zeros_like(t) for name, t in weights(pair["base"]).items()}
    torch.save(first, pickled / "pytorch_model.bin")
    (tmp_path / "out").mkdir()
    perform("pickles", pickled, tmp_path / "out", type=None)
    (file,) = (tmp_path / "out").glob("*.safetensors")
    read = load_file(file)
    assert set(read) == set(first)
    assert not any(tensor.any() for tensor in read.values())


@pytest.mark.parametrize(
    "how",
    ["code", "repeated", "not a tensor", "sparse", "cut", "nothing", "outside", "missing", "odd"],
)
def test_pickles_that_hold_something_else(pickled: Path, tmp_path: Path, how: str) -> None:
    expected = spoiled(pickled, how)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError) as error:
        perform("pickles", pickled, tmp_path / "out", type=None)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert not (pickled / "ran").exists()
    assert not list((tmp_path / "out").iterdir())


def test_what_is_not_imported(pair: dict[str, Path], pickled: Path, tmp_path: Path) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    for source, expected in (
        (pair["base"], "is an ordinary model folder"),
        (empty, "has no safetensors and no pytorch_model"),
        (tmp_path / "absent.gguf", "there is no file or folder"),
    ):
        with pytest.raises(LepError, match=expected):
            lep.import_model(source, out)
    (empty / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(LepError, match=r"give the file .*m\.gguf"):
        lep.import_model(empty, out)
    (pickled / "adapter_config.json").write_text("{}")
    with pytest.raises(LepError, match="merge it with peft first"):
        lep.import_model(pickled, out)
    assert not out.exists()


@pytest.fixture
def sentencepiece_folder(
    pair: dict[str, Path], russian: list[str], english: list[str], tmp_path: Path
) -> Path:
    """The base model, with a SentencePiece vocabulary as its only tokenizer."""
    import sentencepiece

    folder = tmp_path / "spm"
    shutil.copytree(pair["base"], folder)
    lines = [line for text in russian + english for line in text.splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    for name in ("tokenizer.json", "tokenizer.vocab"):
        (folder / name).unlink()
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}'
    )
    return folder


@spm
@pytest.mark.slow
def test_a_folder_with_sentencepiece_alone(sentencepiece_folder: Path, here, tmp_path) -> None:
    """The ids of the new tokenizer.json are SentencePiece's."""
    import sentencepiece

    folder = tmp_path / "out"
    output = here("import", sentencepiece_folder, "--output", folder)
    assert "by SentencePiece" in output
    model = sentencepiece.SentencePieceProcessor(str(sentencepiece_folder / "tokenizer.model"))
    tokenizer = load_tokenizer(folder)
    for text in ("Съешь ещё этих мягких булок.", "  two  spaces\n\ttab", "🙂 12", "a"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == model.encode(text)
    assert tokenizer("a")["input_ids"][0] == model.bos_id()
    Checkpoint(folder).check()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
