"""The recipes for real models: forecast, and run small on real tokenizers (needs LEP_DATA)."""

import json
import os
from pathlib import Path

import pytest
import torch
import zstandard
from transformers import AutoConfig, AutoModelForCausalLM

from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import read_documents, write_records
from lep.pipeline.forecast import forecast
from lep.pipeline.recipe_file import load_recipe
from lep.pipeline.run import run_recipe

DATA = Path(os.environ.get("LEP_DATA", "/no-data"))
RECIPES = Path(__file__).parent.parent / "recipes"
TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}"
    "{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
# recipe: tokenizer, architecture, tokens that only the instruct model has, table rows, language
MODELS = {
    "llama3-ru": ("llama-3", "llama", [], 128_256, "ru"),
    "mistral-ru": ("mistral-7b-v0.1", "mistral", ["<|end_of_turn|>", "<|pad_0|>"], 32_000, "ru"),
    "qwen-kk": ("qwen2", "qwen2", [], 152_064, "kk"),  # padded beyond its 151,646 tokens
}
CHARACTERS = 1_000_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (DATA / "tokenizers").is_dir(), reason="LEP_DATA does not name a folder with tokenizers"
    ),
]


@pytest.fixture(params=MODELS)
def small(request, tmp_path, monkeypatch) -> tuple[str, list[str], list[str]]:
    """A recipe's name, and what makes it small: two random layers, 1 MB of text, few tasks.

    Changes come first for the paper's way, then for joint training.
    """
    tokenizer, kind, added, rows, language = MODELS[request.param]
    source = DATA / "tokenizers" / tokenizer
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "max_position_embeddings": 4_096,
    }
    config = AutoConfig.for_model(kind, vocab_size=rows, **shape)
    for name in ("base", "instruct"):
        folder = tmp_path / name
        folder.mkdir()
        packed = (source / "tokenizer.json.zst").open("rb")
        spec = json.loads(zstandard.ZstdDecompressor().stream_reader(packed).read())
        settings = json.loads((source / "tokenizer_config.json").read_text())
        settings.setdefault("eos_token", spec["added_tokens"][0]["content"])
        if name == "instruct":
            settings["chat_template"] = TEMPLATE
            config.vocab_size = rows + len(added)
            special = {
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            spec["added_tokens"] += [
                {"id": rows + i, "content": each} | special for i, each in enumerate(added)
            ]
        (folder / "tokenizer.json").write_text(json.dumps(spec))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        model = AutoModelForCausalLM.from_config(config)
        model.generation_config.eos_token_id = _end(spec, settings)
        model.to(torch.bfloat16).save_pretrained(folder)
    (tmp_path / "text").mkdir()
    for code in (language, "en"):
        write_records(tmp_path / "text" / f"{code}.jsonl", _text(code))
    monkeypatch.setenv("LEP_DATA", str(tmp_path / "text"))
    monkeypatch.setattr("lep.calibration.answers.reason_to_drop", lambda *_: None)
    changes = [
        f"instruct={tmp_path / 'instruct'}",
        *(f"text.{code}={tmp_path / 'text'}/{code}.jsonl" for code in (language, "en")),
        "corpus.heldout_share=0.1",
        "tokenizer.new_tokens=500",
        "evaluate.items=2",
        "evaluate.characters=2_000",
    ]
    joint = [
        "adapt.tokens=8_000",
        "adapt.block_size=512",
        "adapt.prompt_tasks=4",
        "adapt.own_prompts=0",
        "adapt.max_new_tokens=8",
        "adapt.shares=practice=0",  # random models copy nothing
    ]
    paper = [
        f"base={tmp_path / 'base'}",
        "pretrain.epochs=null",
        "pretrain.tokens=8_000",
        "pretrain.batch_tokens=2048",
        "pretrain.block_size=256",
        "calibrate.prompts=null",
        "calibrate.prompt_tasks=2",
        "calibrate.copy_tasks=8",
        "calibrate.max_new_tokens=8",
        "calibrate.batch_size=8",
        "select.prompts=8",
        "select.characters=2_000",
        "select.max_new_tokens=8",
        "select.copies=0",
    ]
    if "tune" in (RECIPES / "paper" / f"{request.param}.yaml").read_text():
        paper += ["tune.data=null", "tune.data_tasks=2", "tune.copy_tasks=8", "tune.batch_size=8"]
    if (
        request.param == "qwen-kk"
    ):  # answers of a random model do not end, so that `auto` would have none to go by
        paper += ["propagate=[conversion, exact]", "calibrate.after=[exact, direct]"]
    return request.param, [*changes, *paper], [*changes, *joint]


def _end(spec: dict, settings: dict) -> int:
    end = settings["eos_token"]
    end = end if isinstance(end, str) else end["content"]
    return next(entry["id"] for entry in spec["added_tokens"] if entry["content"] == end)


def _text(code: str):
    """1 MB of documents; of lists of sentences, five a paragraph."""
    seen = 0
    for document in read_documents([DATA / "train" / code]):
        text = document.text[:20_000]
        lines = text.split("\n")
        if max(map(len, lines)) < 200:
            text = "\n\n".join(
                " ".join(lines[start : start + 5]) for start in range(0, len(lines), 5)
            )
        yield {"id": document.id, "text": text}
        seen += len(text)
        if seen > CHARACTERS:
            return


def test_planned_and_run_in_small(small, tmp_path) -> None:
    name, changes, _ = small
    recipe = load_recipe(RECIPES / "paper" / f"{name}.yaml", changes)
    assert "tokens saved" in str(forecast(recipe, "h100"))
    assert "conversion" in run_recipe(recipe, tmp_path / "run").table
    stages = json.loads((tmp_path / "run" / "run.json").read_text())["instruct_models"]
    first = recipe.calibrate.after[0]
    result = Checkpoint(tmp_path / "run" / f"calibrate-{first}").check()
    rows = MODELS[name][3] + len(MODELS[name][2]) + 500
    assert f"{first} + self-calibration" in stages
    if name != "qwen-kk":  # whose padding the new tokens take
        assert result.shape(result.tables.input)[0] == len(result.vocabulary) == rows
    loaded = AutoModelForCausalLM.from_pretrained(result.folder)
    assert loaded(torch.tensor([[5, len(result.vocabulary) - 1]])).logits.isfinite().all()


def test_joint_training_planned_and_run_in_small(small, tmp_path) -> None:
    name, _, changes = small
    recipe = load_recipe(RECIPES / f"{name}.yaml", changes)
    text = str(forecast(recipe, "h100"))
    assert "tokens saved" in text
    assert "hours cover joint training only" in text
    assert "joint training" in run_recipe(recipe, tmp_path / "run").table
    before = Checkpoint(tmp_path / "instruct").check()
    result = Checkpoint(tmp_path / "run" / "adapt").check()
    assert len(result.vocabulary) == len(before.vocabulary) + 500
    kinds = zip(before.tables.by_kind().values(), result.tables.by_kind().values(), strict=True)
    for old, new in kinds:  # known rows stay, bit for bit
        rows = len(before.vocabulary)
        assert torch.equal(before.tensor(old)[:rows], result.tensor(new)[:rows])
    record = json.loads((tmp_path / "run" / "adapt" / "lep" / "pretrain.json").read_text())
    assert {"text", "answers", "old_text"} <= set(record["streams"])
