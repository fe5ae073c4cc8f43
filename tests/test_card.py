"""Cards of models, and that no file of a result tells of the machine on which it was made."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SAMPLE, TEMPLATE, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import lep
from lep.checkpoint.origin import Origin

RU, EN = SAMPLE / "ru", SAMPLE / "en"
SIZES = {"learning_rate": 5e-3, "block_size": 64, "batch_tokens": 256, "checkpoints": 2}


@pytest.fixture(scope="module")
def source(pair, tmp_path_factory) -> Path:
    """The instruct model, loaded from its folder and saved again, as people do."""
    folder = tmp_path_factory.mktemp("source") / "Tiny-Instruct"
    shutil.copytree(pair["instruct"], folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    for name, more in {
        "config.json": {"_name_or_path": str(folder)},
        "tokenizer_config.json": {"is_local": True, "name_or_path": str(folder)},
    }.items():
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | more))
    (folder / "README.md").write_text(
        "---\nlicense: llama3.1\nlanguage: [en]\ntags: [x]\n---\n\n# Tiny\n"
    )
    (folder / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n")
    return folder


@pytest.fixture(scope="module")
def trained(source, pair, tmp_path_factory) -> Path:
    """The same model with new tokens, after joint training on text of both languages."""
    folder = tmp_path_factory.mktemp("trained")
    lep.initialise(source, pair["tokenizer"], folder / "start")
    options = {"old_text": [str(EN)], "train": "new_rows", "tokens": 2_000, **SIZES}
    looks = {"eval_text": {"ru": [str(RU)]}, "eval_characters": 1_000}
    lep.pretrain(folder / "start", [RU], folder / "Tiny-ru", **options, **looks)
    return folder / "Tiny-ru"


def traces(folder: Path, *machine: object) -> dict[str, list[str]]:
    """What files of a folder hold of the machine, by file."""
    words = [*map(str, machine), "is_local", "local_files_only", "name_or_path"]
    contents = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert contents
    hits = {str(p): [w for w in words if w.encode() in content] for p, content in contents.items()}
    return {path: words for path, words in hits.items() if words}


def test_no_file_of_a_result_tells_of_the_machine(source, trained, pair, tmp_path) -> None:
    places = (source.parent.parent, Path.home(), SAMPLE.parent)
    assert traces(source, *places)  # this test can fail
    assert not traces(trained, *places)
    assert not traces(trained.parent / "start", *places)
    questions = [json.dumps({"messages": m}) + "\n" for m in MESSAGES]
    (tmp_path / "data.jsonl").write_text("".join(questions))
    options = {"text": {"ru": [RU]}, "copy_tasks": 2, "learning_rate": 1e-2}
    lep.tune(source, tmp_path / "data.jsonl", tmp_path / "tuned", **options, merge=False)
    assert not traces(tmp_path / "tuned" / "lep", *places)
    assert not traces(tmp_path / "tuned", *places[:2]).keys() - {
        str(tmp_path / "tuned" / "adapter" / "adapter_config.json")  # has the name, without a value
    }
    adapter = json.loads((tmp_path / "tuned" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] is None


MESSAGES = [
    [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]
    for n in range(6)
]


def test_a_result_knows_what_it_was_made_from(source, trained, tmp_path) -> None:
    origin = json.loads((trained / "lep" / "origin.json").read_text())
    assert origin == {
        "name": "Tiny-Instruct",
        "license": {"license": "llama3.1"},
        "languages": ["en"],
    }
    assert (trained / "LICENSE").read_text() == "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n"


CARDS = {
    "no card": (None, {}, {}),
    "no front matter": ("# A model\n", {}, {}),
    "no license": ("---\nlanguage: ru\n---\n", {}, {}),
    "a named one": (
        "---\r\nlicense: other\r\nlicense_name: x-1\r\nlicense_link: LICENSE\r\n---\r\n",
        {},
        {"license": "other", "license_name": "x-1", "license_link": "LICENSE"},
    ),
    "a list": ("---\nlicense: [mit]\n---\n", {}, {}),
    "a bomb": ("---\na: &a [x, x]\nb: [*a, *a]\nlicense: mit\n---\n", {}, {}),
    "too deep": ("---\nlicense: " + "[" * 3_000 + "\n---\n", {}, {}),
    "code": ("---\nlicense: !!python/object/apply:os.getcwd []\n---\n", {}, {}),
    "a text": (None, {"LICENSE.txt": "\n  Apache License\n  Version 2.0, 2004"}, "apache-2.0"),
    "Meta's": (None, {"LICENSE": "META LLAMA 3 COMMUNITY LICENSE AGREEMENT"}, "llama3"),
    "Meta's second": (None, {"LICENSE": "LLAMA 2 COMMUNITY LICENSE AGREEMENT"}, "llama2"),
    "Qwen's": (
        None,
        {"LICENSE": "Qwen RESEARCH LICENSE AGREEMENT"},
        {"license": "other", "license_name": "qwen-research", "license_link": "LICENSE"},
    ),
    "another text": (None, {"LICENSE": "You may not."}, {}),
}


@pytest.mark.parametrize("name", CARDS)
def test_the_licence_of_a_source(name, tmp_path) -> None:
    card, files, expected = CARDS[name]
    for file, text in (files | ({"README.md": card} if card else {})).items():
        (tmp_path / file).write_text(text)
    expected = {"license": expected} if isinstance(expected, str) else expected
    assert Origin.of(tmp_path).license == expected


def test_a_download_has_its_hub_id(tmp_path) -> None:
    folder = tmp_path / "models--Qwen--Qwen2.5-0.5B-Instruct" / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    assert Origin.of(folder).name == "Qwen/Qwen2.5-0.5B-Instruct"
    assert Origin.of(folder).hub_id == Origin.of(folder).name
    assert Origin.of(tmp_path).hub_id is None


def test_shards_have_the_names_and_the_index_of_the_hub(byte_level, pair, tmp_path) -> None:
    """After new tokens: every tensor and both sums as `save_pretrained` would write them."""
    save_model(tmp_path / "model", byte_level, template=TEMPLATE, shard_size="60KB")
    lep.initialise(tmp_path / "model", pair["tokenizer"], tmp_path / "start")
    shards = sorted(path.name for path in (tmp_path / "start").glob("*.safetensors"))
    count = len(shards)
    assert count > 2
    assert shards == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    model, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "start", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values())
    index = json.loads((tmp_path / "start" / "model.safetensors.index.json").read_text())
    numbers = sum(p.numel() for p in model.parameters())
    assert index["metadata"] == {"total_parameters": numbers, "total_size": 4 * numbers}
    assert set(index["weight_map"]) == set(model.state_dict())
    assert set(index["weight_map"].values()) == set(shards)
