"""Rewriting checkpoints as a stream, the search for their tables, and what is refused."""

import json
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_model
from safetensors.torch import load_file, save_file
from tiny_configs import tiny_config
from transformers import (
    AutoModelForCausalLM,
    Qwen2VLForConditionalGeneration,
    Qwen3_5ForConditionalGeneration,
)

from lep.checkpoint.architecture import Architecture, _size_settings
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import Rows, read_header, rewrite
from lep.checkpoint.tables import Search
from lep.checkpoint.writer import resized_config, write_checkpoint
from lep.errors import CheckpointError, LepError
from lep.mapping import VocabularyMapping
from lep.settings import PropagateSettings
from lep.tokenizer.load import copy_tokenizer
from lep.transfer.initialise import initialise
from lep.transfer.propagate import propagate

IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
MIXED = {
    "b.weight": torch.randn(30, 7),
    "a.weight": torch.randn(5, 3).bfloat16(),
    "é": torch.arange(9).to(torch.uint8),
    "scalar": torch.tensor(3.0),
    "empty": torch.empty(0, 4),
    "ids": torch.arange(6).reshape(2, 3),
}


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "new",
    [
        {},
        {"b.weight": torch.randn(50, 7)},
        {"a.weight": torch.randn(3, 9).T.bfloat16(), "é": torch.zeros(2).byte()},
        {"scalar": torch.tensor(4.0), "empty": torch.ones(1, 4)},
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1 << 23, 100])
def test_a_stream_writes_what_safetensors_writes(new, chunk_bytes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lep.checkpoint.stream.CHUNK_BYTES", chunk_bytes)
    save(MIXED, tmp_path / "old")
    whole = {name: tensor.contiguous() for name, tensor in (MIXED | new).items()}
    save(whole, tmp_path / "expected")
    rewrite(tmp_path / "old", new, tmp_path / "got")
    written = load_file(tmp_path / "got")
    assert written.keys() == whole.keys()
    for name, tensor in load_file(tmp_path / "expected").items():
        assert torch.equal(written[name], tensor)
        assert written[name].dtype == tensor.dtype
    rewrite(tmp_path / "old", new, tmp_path / "again")
    assert (tmp_path / "got").read_bytes() == (tmp_path / "again").read_bytes()


def test_floats_alone_give_the_very_bytes_of_safetensors(tmp_path) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64]
    tensors = {f"layer.{i}": torch.randn(i + 1, 3).to(dtypes[i % 3]) for i in range(12)}
    save(tensors, tmp_path / "old")
    new = {"layer.3": torch.randn(8, 3)}
    save(tensors | new, tmp_path / "expected")
    rewrite(tmp_path / "old", new, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == (tmp_path / "expected").read_bytes()


def test_rows_are_computed_when_they_are_written(tmp_path) -> None:
    save(MIXED, tmp_path / "old")
    table = torch.randn(100, 7)
    rows = Rows((100, 7), torch.float32, lambda: iter(table.split(33)))
    rewrite(tmp_path / "old", {"b.weight": rows}, tmp_path / "got")
    assert torch.equal(load_file(tmp_path / "got")["b.weight"], table)
    longer, wider = replace(rows, shape=(101, 7)), replace(rows, dtype=torch.float64)
    with pytest.raises(ValueError, match="have 2,800 bytes, 2,828 were promised"):
        rewrite(tmp_path / "old", {"b.weight": longer}, tmp_path / "no")
    with pytest.raises(ValueError, match=r"b\.weight is torch\.float32, torch\.float64 was"):
        rewrite(tmp_path / "old", {"b.weight": wider}, tmp_path / "no")


BIG = """
import sys, torch
from pathlib import Path
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.writer import write_checkpoint

folder = Path(sys.argv[1])
source = Checkpoint(folder / "big")
table = torch.randn(5200, source.shape(source.tables.input)[1])
Path("/proc/self/clear_refs").write_text("5")  # resets the peak


def megabytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1000


before = megabytes("VmRSS")
write_checkpoint(source, {source.tables.input: table}, folder / "out")
print(round(megabytes("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak of memory"
)
def test_a_large_shard_is_never_in_memory(tmp_path) -> None:
    config = tiny_config("llama", 5000, {})
    config.hidden_size, config.intermediate_size, config.head_dim = 512, 32_768, 128
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    (tmp_path / "big").mkdir()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "big")
    spec, end = {}, 0
    for name, tensor in state.items():
        offsets = [end, end := end + tensor.nbytes]
        spec[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
    header = json.dumps(spec).encode()
    with (tmp_path / "big" / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)  # a sparse file of zeros
    assert end > 400e6
    command = [sys.executable, "-c", BIG, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 150  # MB
    entries, _ = read_header(tmp_path / "out" / "model.safetensors")
    assert entries["model.embed_tokens.weight"].shape == (5200, 512)


def test_settings_and_code_are_carried_weights_and_tokenizers_are_not(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    kept = ["preprocessor_config.json", "modeling_own.py", "LICENSE", "chat_template.json"]
    left = ["pytorch_model.bin", "pytorch_model.bin.index.json", "x.pt"]
    left += ["vocab.json", "special_tokens_map.json"]
    for name in kept + left:
        (tmp_path / "model" / name).write_text("{}")
    (tmp_path / "model" / "modeling_own.py").write_text("raise RuntimeError('was run')")
    write_checkpoint(Checkpoint(tmp_path / "model"), {}, tmp_path / "out")
    written = {"model.safetensors", "config.json", "generation_config.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == written | set(kept)


def test_a_link_that_a_killed_run_left_is_not_written_through(tmp_path, pair) -> None:
    source = Checkpoint(pair["base"])
    before = source.tensor(source.tables.input)
    write_checkpoint(source, {}, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").samefile(pair["base"] / "model.safetensors")
    write_checkpoint(source, {source.tables.input: torch.zeros(500, 32)}, tmp_path / "out")
    assert torch.equal(source.tensor(source.tables.input), before)
    assert not Checkpoint(tmp_path / "out").tensor(source.tables.input).any()


def test_another_disk_gets_copies(tmp_path, pair, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    write_checkpoint(Checkpoint(pair["base"]), {}, tmp_path / "out")
    written, source = tmp_path / "out" / "model.safetensors", pair["base"] / "model.safetensors"
    assert written.read_bytes() == source.read_bytes()
    assert not written.samefile(source)


def test_what_was_written_is_read_back(tmp_path, pair, monkeypatch) -> None:
    source = Checkpoint(pair["base"])
    monkeypatch.setattr(
        "lep.checkpoint.writer.rewrite", lambda old, new, target: shutil.copyfile(old, target)
    )
    with pytest.raises(AssertionError, match="does not hold what was written"):
        write_checkpoint(source, {source.tables.input: torch.zeros(501, 32)}, tmp_path / "out")


def test_nested_sizes_are_changed_and_nothing_else() -> None:
    settings = [("text_config", "vocab_size"), ("text_config", "vocab_size_per_layer_input")]
    before, after = (
        {"hidden_size": 8, "vocab_size": rows, "vocab_size_per_layer_input": rows}
        for rows in (5, 9)
    )
    config = {"text_config": before, "eps": 1e-6}
    assert resized_config(config, 9, settings) == {"text_config": after}
    expected = {"text_config": {"vocab_size": 9}}
    assert resized_config({"text_config": {}}, 9, settings[:1]) == expected
    assert resized_config({"n_words": 5}, 9, [("n_words",)]) == {"n_words": 9}


def tiny_checkpoint(model_type: str, folder: Path, **settings: int) -> Path:
    config = tiny_config(model_type, 500, IDS)
    for name, value in settings.items():
        setattr(config, name, value)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def extended_copy(model: Path, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A copy of a model with more tensors in its file."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    file = folder / "model.safetensors"
    save(load_file(file) | tensors, file)
    return folder


def edited_config(model: Path, folder: Path, **settings: Any) -> Path:
    """A copy of a model with other settings in config.json."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize(
    ("model_type", "others"),
    [
        ("phi", {"lm_head.bias"}),
        ("gptj", {"lm_head.bias"}),
        ("bert", {"cls.predictions.bias"}),
        ("gemma3n_text", {"model.embed_tokens_per_layer.weight"}),
        ("llama", set()),
    ],
)
def test_other_tensors_with_a_row_per_token_are_found(model_type, others, tmp_path) -> None:
    assert set(Checkpoint(tiny_checkpoint(model_type, tmp_path / "model")).tables.others) == others


def test_the_class_that_wrote_the_checkpoint_is_probed(tmp_path) -> None:
    """`AutoModelForCausalLM` would build the text model alone."""
    model = Qwen3_5ForConditionalGeneration(tiny_config("qwen3_5", 500, {}))
    model.save_pretrained(tmp_path / "model")
    source = Checkpoint(tmp_path / "model")
    architecture = Architecture.probe(source.folder, source.config)
    assert type(architecture.model) is Qwen3_5ForConditionalGeneration
    assert len(source.tables.names) == 2


def test_tensors_that_are_not_loaded_are_converted_by_their_size(tmp_path, pair) -> None:
    table, projection = torch.randn(500, 16), torch.randn(16, 16)
    tensors = {"mtp.0.embed_tokens.weight": table, "mtp.0.proj.weight": projection}
    model = extended_copy(pair["base"], tmp_path / "model", tensors)
    initialise(model, pair["tokenizer"], tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after["mtp.0.embed_tokens.weight"].shape == (600, 16)
    assert torch.equal(after["mtp.0.embed_tokens.weight"][:500], table)
    assert torch.equal(after["mtp.0.proj.weight"], projection)
    model = extended_copy(model, tmp_path / "turned", {"mtp.0.head.weight": torch.randn(16, 500)})
    message = r"mtp\.0\.head\.weight of .* only rows can be converted"
    with pytest.raises(CheckpointError, match=message):
        initialise(model, pair["tokenizer"], tmp_path / "no")
    assert not list(tmp_path.glob("no*"))


def test_integers_come_from_the_main_piece() -> None:
    mapping = VocabularyMapping.from_rows([[0], [2, 1], [1, 0]], 3, [[1.0], [0.5, 0.5], [0.2, 0.8]])
    assert mapping.main_source().tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("nested", [("text_config", "vocab_size")]),
        ("top", [("vocab_size",)]),
        ("both", [("vocab_size",), ("text_config", "vocab_size")]),
    ],
)
def test_the_size_is_written_where_the_file_says_it(layout, settings, tmp_path, pair) -> None:
    """Early Qwen2-VL has the settings of its text model at the top."""
    folder = tmp_path / "model"
    model = Qwen2VLForConditionalGeneration(tiny_config("qwen2_vl", 500, IDS))
    model.save_pretrained(folder)
    copy_tokenizer(pair["base"], folder)
    raw = json.loads((folder / "config.json").read_text())
    if layout == "top":
        text = raw.pop("text_config")
        raw = {name: value for name, value in text.items() if name != "model_type"} | raw
    elif layout == "both":
        raw["vocab_size"] = 500
    (folder / "config.json").write_text(json.dumps(raw))
    assert list(Checkpoint(folder).tables.size_settings) == settings
    initialise(folder, pair["tokenizer"], tmp_path / "out")
    model = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert len(model.get_input_embeddings().weight) == 600
    assert len(model.get_output_embeddings().weight) == 600
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == raw | resized_config(raw, 600, settings)
    assert raw == written | resized_config(written, 500, settings)


def test_a_size_that_the_file_leaves_out_is_written() -> None:
    """Files of Gemma 3 say of their text model only what differs from the default."""
    nested, flat = tiny_config("qwen2_vl", 500, IDS), tiny_config("llama", 500, {})
    expected = (("text_config", "vocab_size"),)
    assert _size_settings({"text_config": {"eps": 1}}, nested, ["vocab_size"]) == expected
    assert _size_settings({"n_vocab": 7}, flat, ["vocab_size"]) == (("vocab_size",),)


# Bad input.


def test_a_vocabulary_on_another_axis_is_refused_by_name(pair) -> None:
    source = Checkpoint(pair["base"])
    architecture = Architecture.probe(source.folder, source.config)
    axes = architecture.axes | {"model.layers.0.mlp.up_proj.weight": 1}
    search = Search(source.folder, replace(architecture, axes=axes), source.entries)
    message = r"up_proj\.weight of .* has the vocabulary on axis 1 of \[64, 32\]"
    with pytest.raises(CheckpointError, match=message):
        search.tables()


def test_a_table_of_integers_is_refused_by_name(tmp_path, pair) -> None:
    model = extended_copy(pair["base"], tmp_path / "model", {"frequency": torch.arange(500)})
    message = r"frequency of .* is stored as I64: integers that belong to tokens cannot be mixed"
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(model).check()


def test_a_table_of_another_size_is_refused_by_name(tmp_path) -> None:
    folder = tiny_checkpoint("gemma3n_text", tmp_path / "model", vocab_size_per_layer_input=480)
    message = r"embed_tokens_per_layer\.weight of .* has 480 rows for a vocabulary of"
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(folder).tables  # noqa: B018 - the search fails


def test_tables_read_by_a_hash_are_refused_by_name(tmp_path, pair) -> None:
    tensors = {"ple.ngram_embedding.weight": torch.randn(60, 8)}
    model = extended_copy(pair["base"], tmp_path / "model", tensors)
    message = r"ple\.ngram_embedding\.weight of .* is read by a hash of token ids"
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(model).check()


def test_rows_that_disagree_with_the_configuration(tmp_path, pair) -> None:
    model = edited_config(pair["base"], tmp_path / "model", vocab_size=512)
    message = r"has the shape \[500, 32\], its config.json makes it \[512, 32\]"
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(model).check()


def test_code_that_comes_with_a_model_is_never_run(tmp_path, pair) -> None:
    auto_map = {"AutoConfig": "remote.Config", "AutoModelForCausalLM": "remote.Model"}
    settings = {"model_type": "remote", "auto_map": auto_map}
    model = edited_config(pair["base"], tmp_path / "model", **settings)
    (model / "remote.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    message = r"brings its own code for 'remote' .* which is never run"
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(model).check()
    assert not (tmp_path / "was_run").exists()
    Checkpoint(edited_config(pair["base"], model, auto_map=auto_map)).check()  # a known class
    assert not (tmp_path / "was_run").exists()


def damaged(data: bytes, how: str) -> bytes:
    length = int.from_bytes(data[:8], "little")
    spec = json.loads(data[8 : 8 + length])
    head = spec["lm_head.weight"]
    if how == "shifted":
        head["data_offsets"] = [offset + 4 for offset in head["data_offsets"]]
    if how == "shape":
        head["shape"] = [499, 32]
    header = b"{" * length if how == "header" else json.dumps(spec).encode()
    whole = struct.pack("<Q", len(header)) + header + data[8 + length :]
    cut = {"truncated": data[:-100], "longer": data + b"x", "empty": b""}
    return (cut | {"number": b"\xff" * 8 + data[8:]}).get(how, whole)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"its header describes [\d,]+ bytes, the file has [\d,]+"),
        ("longer", "its header describes"),
        ("empty", "its header should have 0 bytes, the file has 0"),
        ("number", "its header should have"),
        ("header", "Expecting property name"),
        ("shifted", r"the bytes of .* do not agree with its shape"),
        ("shape", r"the bytes of lm_head.weight do not agree with its shape \[499, 32\]"),
    ],
)
@pytest.mark.parametrize("sharded", [True, False])
def test_a_damaged_shard_is_seen_at_once(how, message, sharded, tmp_path, byte_level) -> None:
    save_model(tmp_path / "model", byte_level, shard_size="60KB" if sharded else "50GB")
    shard = Checkpoint(tmp_path / "model").shard_of["lm_head.weight"]
    path = tmp_path / "model" / shard
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(CheckpointError, match=f"{shard} cannot be read .*{message}"):
        Checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("none.safetensors", r"lacks the shard none\.safetensors that its"),
        ("/etc/x.safetensors", r"names /etc/x\.safetensors, a path outside its"),
        ("../x.safetensors", r"names \.\./x\.safetensors, a path outside its"),
        ("..", "a path outside its folder"),
        (5, "names 5, a path outside its folder"),
        (None, r"says that other\.weight is in model-.*, which lacks it"),
    ],
)
def test_an_index_that_does_not_fit(shard, message, tmp_path, byte_level) -> None:
    save_model(tmp_path / "model", byte_level, shard_size="60KB")
    path = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    some = next(iter(index["weight_map"].values()))
    index["weight_map"] |= {"lm_head.weight": shard} if shard else {"other.weight": some}
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path / "model")
    for content, message in (("{}", "names no tensors"), ("[]", "holds a list, not an object")):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=message):
            Checkpoint(tmp_path / "model")


def test_rows_that_are_not_finite(pair, adapted, tmp_path) -> None:
    head = Checkpoint(pair["instruct"]).tensor("lm_head.weight")
    head[2, 5] = torch.inf  # an added token, whose row is carried over
    instruct = extended_copy(pair["instruct"], tmp_path / "instruct", {"lm_head.weight": head})
    settings = PropagateSettings(method="swap")
    with pytest.raises(LepError, match=r"row 2 of lm_head.weight of .* is not finite"):
        propagate(pair["base"], instruct, adapted, tmp_path / "out", settings)
    assert not list(tmp_path.glob("out*"))
