"""Cards of models, and that no file of a result tells of the machine on which it was made."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
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
    "too deep": ("---\nlicense: " + "[" * 1_000 + "\n---\n", {}, {}),
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


# --- cards ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation(source, trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "scores"
    text = {"ru": [RU], "en": [EN]}
    sizes = {"characters": 1_500, "window_characters": 100, "bootstrap": 20, "tasks": []}
    lep.evaluate([source, trained], text, folder, **sizes)
    return folder


@pytest.fixture
def model(trained, tmp_path) -> Path:
    """A copy of the trained model."""
    shutil.copytree(trained, tmp_path / "Tiny-ru")
    return tmp_path / "Tiny-ru"


def read(folder: Path) -> tuple[dict, str]:
    """Metadata and text of a card, by PyYAML alone."""
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_card_has_every_figure_with_its_interval(model, evaluation, here) -> None:
    printed = here("card", model, "--evaluation", evaluation, "--languages", "ru")
    scores = json.loads((evaluation / "scores.json").read_text())
    before, after = scores["Tiny-Instruct"], scores["Tiny-ru"]
    assert f"{len(after)} figures" in printed
    data, text = read(model)
    (entry,) = data["model-index"]
    assert entry["name"] == "Llama-Tiny-Instruct-ru"  # as the licence asks
    figures = [
        (result["dataset"]["config"], metric["name"], metric["value"], metric["args"])
        for result in entry["results"]
        for metric in result["metrics"]
    ]
    assert figures == [
        (s["language"], s["metric"], s["value"], {k: s[k] for k in ("low", "high", "count")})
        for s in after
    ]
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(after)
    for row, score in zip(rows, after, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        same = [s for s in before if all(s[k] == score[k] for k in ("metric", "language", "task"))]
        original = [f"{s['value']:.3f} ({s['low']:.3f} to {s['high']:.3f})" for s in same] or ["-"]
        interval = f"{score['low']:.3f} to {score['high']:.3f}"
        head = [score["metric"], score["language"], "-", f"{score['value']:.3f}", interval]
        assert cells == [*head, *original, str(score["count"])]
    per_token = [
        next(s["value"] for s in each if (s["metric"], s["language"]) == COST)
        for each in (after, before)
    ]
    assert (
        f"A token of Russian text holds {per_token[0]:.2f} characters; it was {per_token[1]:.2f}."
        in text
    )
    assert "Tiny-Instruct with 100 new tokens for Russian: 600 tokens in all." in text
    assert "the rows of new tokens, all else unchanged" in text
    assert "Russian takes" in text  # the verdict


COST = ("symbols per token", "ru")


def test_the_hub_reads_the_metadata(model, tmp_path) -> None:
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    lep.card(model, languages=["ru"], base_model="someone/Tiny-Instruct")
    text = (model / "README.md").read_text(encoding="utf-8")
    assert REGEX_YAML_BLOCK.match(text)
    assert ModelCard(text).data.to_dict() == {
        "language": ["en", "ru"],
        "license": "llama3.1",
        "base_model": "someone/Tiny-Instruct",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["vocabulary-extension", "lep"],
    }
    assert "[someone/Tiny-Instruct](https://huggingface.co/someone/Tiny-Instruct) with 100" in text


def test_the_code_of_a_card_runs(model, capsys) -> None:
    lep.card(model)
    code = read(model)[1].split("```python\n")[1].split("```")[0]
    exec(code.replace("MODEL", str(model)).replace("=200", "=3"), {})
    assert capsys.readouterr().out


def test_a_licence_of_meta_leaves_its_traces(model) -> None:
    lep.card(model)
    text = read(model)[1]
    assert "That of Tiny-Instruct: llama3.1. Its text: [LICENSE](LICENSE)." in text
    assert "show “Built with Llama”" in text
    notice = (model / "NOTICE").read_text(encoding="utf-8")
    assert notice.startswith("Llama 3.1 is licensed under the Llama 3.1 Community License, ")
    assert "This model is a modified version of Tiny-Instruct" in notice
    (model / "NOTICE").write_text("mine")
    lep.card(model)
    assert (model / "NOTICE").read_text() == "mine"


def test_an_unknown_licence_is_called_unknown(model, here) -> None:
    (model / "lep" / "origin.json").unlink()
    (model / "LICENSE").unlink()
    assert "licence unknown (give --licence NAME" in here("card", model, "--name", "x")
    data, text = read(model)
    assert data["license"] == "unknown"
    assert "The licence of Tiny-ru is unknown" in text
    here("card", model, "--licence", "Apache-2.0")
    assert read(model)[0]["license"] == "apache-2.0"
    here("card", model, "--licence", "my-own")
    data = read(model)[0]
    assert (data["license"], data["license_name"]) == ("other", "my-own")


def test_a_card_that_a_person_changed_stays(model, here) -> None:
    lep.card(model)
    lep.card(model, name="other")  # its own is replaced
    path = model / "README.md"
    changed = path.read_text(encoding="utf-8").replace("# other", "# better")
    path.write_text(changed, encoding="utf-8")
    refusal = here("card", model, code=2)
    assert "README.md is there already, and not as lep wrote it" in refusal
    assert path.read_text(encoding="utf-8") == changed


FAULTS = {
    "no folder": (["/no/such"], "there is no folder /no/such to write a card in"),
    "no model": (["EMPTY"], "has no weights|config.json"),
    "no scores": (["MODEL", "--evaluation", "EMPTY"], "there is no .*scores.json: give a folder"),
    "another's": (
        ["MODEL", "--evaluation", "SCORES", "--evaluated", "x"],
        "has figures of Tiny-Instruct, Tiny-ru, and none of 'x': give --evaluated NAME",
    ),
    "a licence": (["MODEL", "--licence", "do what you like"], "give an identifier such as"),
    "a damaged origin": (["DAMAGED"], "origin.json is damaged .*: delete it"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_has_no_card(name, model, evaluation, here, tmp_path) -> None:
    words, message = FAULTS[name]
    (tmp_path / "empty").mkdir()
    if "DAMAGED" in words:
        (model / "lep" / "origin.json").write_text('{"name": 3}')
    places = {"MODEL": model, "DAMAGED": model, "EMPTY": tmp_path / "empty", "SCORES": evaluation}
    refusal = here("card", *(places.get(word, word) for word in words), code=2)
    assert re.search(message, refusal), refusal
    assert not list(tmp_path.rglob("README.md"))
