"""What people bring that is no folder with safetensors: the commands that convert it, run."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SAMPLE, byte_fallback_tokenizer, save_model, weights
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, TokenizerError
from lep.tokenizer.load import check_loaders, load_tokenizer
from lep.tokenizer.write import count_corpus, extend_tokenizer


def command(message: str) -> list[str]:
    """The arguments of lep in the command that a message ends in."""
    return shlex.split(message[message.rindex("lep import ") :])[1:]


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
    assert command(message) == ["import", str(folder / "m.gguf"), "--output", str(folder / "m")]
    assert "the hub" not in message
    if not inside:
        assert refused(source) in message


def test_other_files_are_answered_with_their_folder(pair, here) -> None:
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        message = here("inspect", pair["base"] / name, code=2)
        assert f"is a file, not a folder: give the folder {pair['base']}" in message
    message = here("inspect", ROOT / "README.md", code=2)
    assert message.endswith("README.md is a file, not a folder: give the folder of a model\n")


def pickled(folder: Path, pair: dict[str, Path], name: str = "pytorch_model.bin") -> Path:
    shutil.copytree(pair["base"], folder)
    (folder / "model.safetensors").unlink()
    torch.save(weights(pair["base"]), folder / name)
    return folder


def test_pickled_weights(pair, tmp_path, here) -> None:
    folder = pickled(tmp_path / "m", pair)
    for source in (folder, folder / "pytorch_model.bin"):
        output = str(tmp_path / "m-safetensors")
        arguments = command(here("inspect", source, code=2))
        assert arguments == ["import", str(folder), "--output", output]
    other = pickled(tmp_path / "other", pair, "consolidated.00.pth")
    assert "take the model in the format of transformers" in here("inspect", other, code=2)


@pytest.mark.slow
def test_the_command_for_pickled_weights(pair, tmp_path, here) -> None:
    folder = pickled(tmp_path / "m", pair)
    here(*command(here("inspect", folder, code=2)))
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
    output = here(*command(here("inspect", folder, code=2)), code=2)
    assert "holds more than tensors" in output
    assert not (tmp_path / "ran").exists()


def test_a_folder_with_sentencepiece_alone(pair, tmp_path, here) -> None:
    shutil.copytree(pair["base"], tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").rename(tmp_path / "m" / "tokenizer.model")
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(tmp_path / "m")
    assert command(str(error.value)) == [
        "import",
        str(tmp_path / "m"),
        "--output",
        str(tmp_path / "m-fast"),
    ]
    assert str(error.value) in here("inspect", tmp_path / "m", code=2)


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
    with pytest.raises(
        TokenizerError, match=r"AutoTokenizer reads .* differently from its tokenizer"
    ):
        check_loaders(folder, ["a", " a  b"])
    line = "AutoTokenizer reads this folder differently from its tokenizer.json (on "
    assert here("inspect", folder).count(line) == 1
    text = min((SAMPLE / "ru").glob("*.txt"))
    options = ["--base", folder, "--corpus", text, "--new-tokens", 20]
    assert here("tokenizer", "extend", *options, "--output", tmp_path / "t").count(line) == 1
    output = here("tokenizer", "compare", folder, tmp_path / "t", "--text", f"ru={text}")
    assert output.count(line) == 1  # the result is read alike by all
    assert "loader_note" not in json.loads((tmp_path / "t" / "changes.json").read_text())
