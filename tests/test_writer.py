"""Rewriting safetensors as a stream, and what is refused before or while that happens."""

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

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
from lep.tokenizer.load import copy_tokenizer
from lep.transfer.initialise import initialise

MIXED = {
    "b.weight": torch.randn(30, 7),
    "a.weight": torch.randn(5, 3).bfloat16(),
    "é": torch.arange(9).to(torch.uint8),
    "scalar": torch.tensor(3.0),
    "empty": torch.empty(0, 4),
    "ids": torch.arange(6).reshape(2, 3),
}


@pytest.mark.parametrize(
    "new",
    [
        {},
        {"b.weight": torch.randn(50, 7)},
        {"a.weight": torch.randn(3, 9).T.bfloat16(), "é": torch.zeros(2).byte()},
        {"scalar": torch.tensor(4.0), "empty": torch.ones(1, 4)},
    ],
)
@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_stream_writes_what_safetensors_writes(new, in_kernel, tmp_path, monkeypatch) -> None:
    if not in_kernel:
        monkeypatch.delattr("os.copy_file_range")
    save_file(MIXED, tmp_path / "old", metadata={"format": "pt"})
    save_file(
        {k: v.contiguous() for k, v in (MIXED | new).items()},
        tmp_path / "expected",
        metadata={"format": "pt"},
    )
    rewrite(tmp_path / "old", new, tmp_path / "got")
    got, expected = load_file(tmp_path / "got"), load_file(tmp_path / "expected")
    assert got.keys() == expected.keys()
    assert all(
        torch.equal(got[name], expected[name]) and got[name].dtype == expected[name].dtype
        for name in got
    )
    rewrite(tmp_path / "old", new, tmp_path / "again")
    assert (tmp_path / "got").read_bytes() == (tmp_path / "again").read_bytes()


def test_floats_alone_give_the_very_bytes_of_safetensors(tmp_path) -> None:
    kinds = [torch.float32, torch.bfloat16, torch.float64]
    tensors = {f"layer.{i}": torch.randn(i + 1, 3).to(kinds[i % 3]) for i in range(12)}
    save_file(tensors, tmp_path / "old", metadata={"format": "pt"})
    new = {"layer.3": torch.randn(8, 3)}
    save_file(tensors | new, tmp_path / "expected", metadata={"format": "pt"})
    rewrite(tmp_path / "old", new, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == (tmp_path / "expected").read_bytes()


def test_rows_are_made_when_they_are_written(tmp_path) -> None:
    save_file(MIXED, tmp_path / "old", metadata={"format": "pt"})
    table = torch.randn(100, 7)

    def chunks() -> Iterator[torch.Tensor]:
        yield from table.split(33)

    rewrite(tmp_path / "old", {"b.weight": Rows((100, 7), torch.float32, chunks)}, tmp_path / "got")
    assert torch.equal(load_file(tmp_path / "got")["b.weight"], table)
    with pytest.raises(ValueError, match="have 2,800 bytes, 2,828 were promised"):
        rewrite(
            tmp_path / "old",
            {"b.weight": Rows((101, 7), torch.float32, chunks)},
            tmp_path / "short",
        )


BIG = """
import json, sys, torch
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.tables import Search
from lep.checkpoint.writer import write_checkpoint

folder = Path(sys.argv[1])
source = Checkpoint(folder / "big")
table = torch.randn(5200, source.shape(source.tables.input)[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
status = lambda key: int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) / 1000
before = status("VmRSS")
write_checkpoint(source, {source.tables.input: table}, folder / "out")
print(round(status("VmHWM") - before))
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
    spec, place = {}, 0
    for name, tensor in state.items():
        spec[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [place, place + tensor.nbytes],
        }
        place += tensor.nbytes
    header = json.dumps(spec).encode()
    with (tmp_path / "big" / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + place)  # zeros that take no place
    assert place > 400e6
    run = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 150  # MB
    assert read_header(tmp_path / "out" / "model.safetensors")[0][
        "model.embed_tokens.weight"
    ].shape == (5200, 512)


def test_settings_and_code_are_carried_weights_and_tokenizers_are_not(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    kept = ["preprocessor_config.json", "modeling_own.py", "LICENSE", "chat_template.json"]
    left = [
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "vocab.json",
        "special_tokens_map.json",
        "x.pt",
    ]
    for name in kept + left:
        (tmp_path / "model" / name).write_text("{}")
    (tmp_path / "model" / "modeling_own.py").write_text("raise RuntimeError('was run')")
    write_checkpoint(Checkpoint(tmp_path / "model"), {}, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        *kept,
    }


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
        "lep.checkpoint.writer.rewrite", lambda old, new, place: shutil.copyfile(old, place)
    )
    with pytest.raises(AssertionError, match="does not hold what was written"):
        write_checkpoint(source, {source.tables.input: torch.zeros(501, 32)}, tmp_path / "out")


def test_nested_sizes_are_changed_and_nothing_else() -> None:
    config = {
        "text_config": {"hidden_size": 8, "vocab_size": 5, "vocab_size_per_layer_input": 5},
        "eps": 1e-6,
    }
    settings = [("text_config", "vocab_size"), ("text_config", "vocab_size_per_layer_input")]
    assert resized_config(config, 9, settings) == {
        "text_config": {"hidden_size": 8, "vocab_size": 9, "vocab_size_per_layer_input": 9}
    }
    assert resized_config({"text_config": {}}, 9, settings[:1]) == {
        "text_config": {"vocab_size": 9}
    }
    assert resized_config({"n_words": 5}, 9, [("n_words",)]) == {"n_words": 9}


def tiny_checkpoint(model_type: str, place: Path, **settings: int) -> Path:
    config = tiny_config(model_type, 500, {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1})
    for name, value in settings.items():
        setattr(config, name, value)
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    return place


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
    assert (
        type(Architecture.probe(source.folder, source.config).model)
        is Qwen3_5ForConditionalGeneration
    )
    assert len(source.tables.names) == 2


def test_tensors_that_are_not_loaded_are_converted_by_their_size(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    stored["mtp.0.embed_tokens.weight"] = torch.randn(500, 16)
    stored["mtp.0.proj.weight"] = torch.randn(16, 16)
    save_file(stored, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    initialise(tmp_path / "model", pair["tokenizer"], tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after["mtp.0.embed_tokens.weight"].shape == (600, 16)
    assert torch.equal(
        after["mtp.0.embed_tokens.weight"][:500], stored["mtp.0.embed_tokens.weight"]
    )
    assert torch.equal(after["mtp.0.proj.weight"], stored["mtp.0.proj.weight"])
    stored["mtp.0.head.weight"] = torch.randn(16, 500)
    save_file(stored, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"mtp\.0\.head\.weight of .* only rows can be converted"
    ):
        initialise(tmp_path / "model", pair["tokenizer"], tmp_path / "no")
    assert not list(tmp_path.glob("no*"))


def test_integers_come_from_the_main_piece() -> None:
    mapping = VocabularyMapping.from_rows([[0], [2, 1], [1, 0]], 3, [[1.0], [0.5, 0.5], [0.2, 0.8]])
    assert mapping.main_source().tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("layout", "places"),
    [
        ("nested", [("text_config", "vocab_size")]),
        ("top", [("vocab_size",)]),
        ("both", [("vocab_size",), ("text_config", "vocab_size")]),
    ],
)
def test_the_size_is_written_where_the_file_says_it(layout, places, tmp_path, pair) -> None:
    """Early Qwen2-VL has the settings of its text model at the top."""
    folder = tmp_path / "model"
    config = tiny_config("qwen2_vl", 500, {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1})
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    copy_tokenizer(pair["base"], folder)
    raw = json.loads((folder / "config.json").read_text())
    if layout == "top":
        raw = {
            name: value for name, value in raw.pop("text_config").items() if name != "model_type"
        } | raw
    elif layout == "both":
        raw["vocab_size"] = 500
    (folder / "config.json").write_text(json.dumps(raw))
    assert list(Checkpoint(folder).tables.size_settings) == places
    initialise(folder, pair["tokenizer"], tmp_path / "out")
    model = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert (
        len(model.get_input_embeddings().weight) == len(model.get_output_embeddings().weight) == 600
    )
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == raw | resized_config(raw, 600, places)
    assert raw == written | resized_config(written, 500, places)


def test_a_size_that_the_file_leaves_out_is_written() -> None:
    """Files of Gemma 3 say of their text model only what differs from the default."""
    text = tiny_config("llama", 500, {})
    assert _size_settings({"text_config": {"eps": 1}}, ("text_config",), text, ["vocab_size"]) == (
        ("text_config", "vocab_size"),
    )
    assert _size_settings({"n_vocab": 7}, (), text, ["vocab_size"]) == (("vocab_size",),)


# Bad input.


def test_a_vocabulary_on_another_axis_is_refused_by_name(pair) -> None:
    source = Checkpoint(pair["base"])
    architecture = Architecture.probe(source.folder, source.config)
    turned = replace(
        architecture, axes=architecture.axes | {"model.layers.0.mlp.up_proj.weight": 1}
    )
    with pytest.raises(
        CheckpointError, match=r"up_proj\.weight of .* has the vocabulary on axis 1 of \[64, 32\]"
    ):
        Search(source.folder, turned, source.entries).tables()


def test_a_table_of_integers_is_refused_by_name(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors") | {"frequency": torch.arange(500)}
    save_file(stored, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"frequency of .* is stored as I64: what integers say about a token"
    ):
        Checkpoint(tmp_path / "model").check()


def test_a_table_of_another_size_is_refused_by_name(tmp_path) -> None:
    folder = tiny_checkpoint("gemma3n_text", tmp_path / "model", vocab_size_per_layer_input=480)
    with pytest.raises(
        CheckpointError,
        match=r"embed_tokens_per_layer\.weight of .* has 480 rows for a vocabulary of",
    ):
        Checkpoint(folder).tables  # noqa: B018 - finding them is what fails


def test_tables_read_by_a_hash_are_refused_by_name(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors") | {
        "ple.ngram_embedding.weight": torch.randn(60, 8)
    }
    save_file(stored, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"ple\.ngram_embedding\.weight of .* is read by a hash of token ids"
    ):
        Checkpoint(tmp_path / "model").check()


def test_rows_that_disagree_with_the_configuration(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"vocab_size": 512}))
    with pytest.raises(
        CheckpointError, match=r"has the shape \[500, 32\], its config.json makes it \[512, 32\]"
    ):
        Checkpoint(tmp_path / "model").check()


def test_code_that_comes_with_a_model_is_never_run(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (tmp_path / "model" / "config.json").write_text(
        json.dumps(config | {"model_type": "own", "auto_map": auto_map})
    )
    (tmp_path / "model" / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    with pytest.raises(
        CheckpointError, match=r"brings its own code for 'own' .* which is never run"
    ):
        Checkpoint(tmp_path / "model").check()
    assert not (tmp_path / "was_run").exists()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    Checkpoint(tmp_path / "model").check()  # transformers has a class of its own for it
    assert not (tmp_path / "was_run").exists()


def damaged(data: bytes, how: str) -> bytes:
    length = int.from_bytes(data[:8], "little")
    spec = json.loads(data[8 : 8 + length])
    if how == "shifted":
        spec["lm_head.weight"]["data_offsets"] = [
            place + 4 for place in spec["lm_head.weight"]["data_offsets"]
        ]
    if how == "shape":
        spec["lm_head.weight"]["shape"] = [499, 32]
    header = b"{" * length if how == "header" else json.dumps(spec).encode()
    whole = struct.pack("<Q", len(header)) + header + data[8 + length :]
    return {
        "truncated": data[:-100],
        "longer": data + b"x",
        "empty": b"",
        "number": b"\xff" * 8 + data[8:],
    }.get(how, whole)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"its header describes [\d,]+ bytes, the file has [\d,]+"),
        ("longer", "its header describes"),
        ("empty", "its header should have 0 bytes, the file has 0"),
        ("number", "its header should have"),
        ("header", "cannot be read"),
        ("shifted", r"the bytes of .* do not agree with its shape"),
        ("shape", r"the bytes of lm_head.weight do not agree with its shape \[499, 32\]"),
    ],
)
@pytest.mark.parametrize("sharded", [True, False])
def test_a_damaged_shard_is_seen_at_once(how, message, sharded, tmp_path, byte_level) -> None:
    save_model(tmp_path / "model", byte_level, shard_size="60KB" if sharded else "50GB")
    shard = Checkpoint(tmp_path / "model").shard_of["lm_head.weight"]
    place = tmp_path / "model" / shard
    place.write_bytes(damaged(place.read_bytes(), how))
    with pytest.raises(
        CheckpointError, match=f"{shard} cannot be read .*{message if how != 'header' else ''}"
    ):
        Checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"lm_head.weight": "none.safetensors"},
            r"lacks the shard none\.safetensors that its index names",
        ),
        (
            {"lm_head.weight": "/etc/model.safetensors"},
            r"names /etc/model\.safetensors, a path outside its folder",
        ),
        (
            {"lm_head.weight": "../x.safetensors"},
            r"names \.\./x\.safetensors, a path outside its folder",
        ),
        ({"lm_head.weight": ".."}, "a path outside its folder"),
        ({"lm_head.weight": 5}, "names 5, a path outside its folder"),
        ({"other.weight": None}, r"says that other\.weight is in model-.*, which lacks it"),
    ],
)
def test_an_index_that_does_not_fit(change, message, tmp_path, byte_level) -> None:
    save_model(tmp_path / "model", byte_level, shard_size="60KB")
    place = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(place.read_text())
    some = next(iter(index["weight_map"].values()))
    index["weight_map"] |= {
        name: some if shard is None else shard for name, shard in change.items()
    }
    place.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path / "model")
    for content, message in (("{}", "names no tensors"), ("[]", "holds a list, not an object")):
        place.write_text(content)
        with pytest.raises(CheckpointError, match=message):
            Checkpoint(tmp_path / "model")


def test_rows_that_are_not_finite(pair, adapted, tmp_path) -> None:
    from lep.settings import PropagateSettings
    from lep.transfer.propagate import propagate

    shutil.copytree(pair["instruct"], tmp_path / "instruct")
    stored = load_file(tmp_path / "instruct" / "model.safetensors")
    stored["lm_head.weight"][2, 5] = torch.inf  # an added token, whose row is carried over
    save_file(stored, tmp_path / "instruct" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LepError, match=r"row 2 of lm_head.weight in .* is not finite"):
        propagate(
            pair["base"],
            tmp_path / "instruct",
            adapted,
            tmp_path / "out",
            PropagateSettings(method="swap"),
        )
    assert not list(tmp_path.glob("out*"))
