"""Language packs, which give what a base learned to its instruct models; inspect and verify."""

import json
import shutil

import pytest
import torch
from conftest import SAMPLE, TEMPLATE, byte_level_tokenizer, sample_texts, save_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lep.checkpoint.reader import Checkpoint
from lep.cli import app
from lep.errors import CheckpointError, LepWarning, OutputError, TokenizerError
from lep.settings import PropagateSettings
from lep.tokenizer.write import extend_tokenizer
from lep.transfer.initialise import initialise
from lep.transfer.inspect import inspect_checkpoint
from lep.transfer.language_pack import LanguagePack, apply_pack, make_pack
from lep.transfer.propagate import propagate
from lep.transfer.verify import compare_checkpoints


@pytest.fixture(scope="module")
def trained(pair, tmp_path_factory):
    """The base with the new vocabulary after some training: half of its rows moved."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    initialise(pair["base"], pair["tokenizer"], folder)
    stored = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        stored[name][::2] += 0.1 * torch.randn_like(stored[name][::2])
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_pack_of_nothing_says_so(pair, tmp_path) -> None:
    initialise(pair["base"], pair["tokenizer"], tmp_path / "means")
    with pytest.warns(
        LepWarning, match="no row of .*means differs from what lep init gives: train"
    ):
        make_pack(pair["base"], tmp_path / "means", tmp_path / "ru.lep")


def test_two_languages_within_padding_rows_are_new_in_one_pack(byte_level, tmp_path) -> None:
    """A row of padding that the first language took is none that the base knew."""
    save_model(tmp_path / "base", byte_level, padding_rows=64)
    model = tmp_path / "base"
    for code in ("ru", "el"):
        extend_tokenizer(model, SAMPLE / code, 20, tmp_path / f"tokenizer-{code}")
        model = initialise(model, tmp_path / f"tokenizer-{code}", tmp_path / code).output
    before, after = (
        AutoTokenizer.from_pretrained(tmp_path / n).get_vocab() for n in ("base", "el")
    )
    new = sorted(after[token] for token in set(after) - set(before))
    assert len(new) == 40
    assert max(new) < 564  # padding is enough
    stored = load_file(tmp_path / "el" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        stored[name][new] += 1
    save_file(stored, tmp_path / "el" / "model.safetensors", metadata={"format": "pt"})
    pack = make_pack(tmp_path / "base", tmp_path / "el", tmp_path / "both.lep", new_only=True)
    assert pack.rows == {"input": 40, "output": 40}


@pytest.mark.slow
def test_a_pack_gives_what_task_arithmetic_gives(pair, trained, tmp_path) -> None:
    pack = make_pack(pair["base"], trained, tmp_path / "ru.lep")
    assert pack.rows == {"input": 300, "output": 300}
    for number, seed in enumerate((1, 2)):  # two instruct models of the base
        chat = tmp_path / f"chat{number}"
        shutil.copytree(pair["instruct"], chat)
        stored = load_file(chat / "model.safetensors")
        torch.manual_seed(seed)
        for name, tensor in stored.items():
            stored[name] = tensor + 0.005 * seed * torch.randn_like(tensor)
        save_file(stored, chat / "model.safetensors", metadata={"format": "pt"})
        apply_pack(tmp_path / "ru.lep", chat, tmp_path / f"out{number}")
        propagate(
            pair["base"],
            chat,
            trained,
            tmp_path / f"same{number}",
            PropagateSettings(method="task-arithmetic"),
        )
        packed, propagated = (
            load_file(tmp_path / f"{n}{number}" / "model.safetensors") for n in ("out", "same")
        )
        for name, tensor in propagated.items():
            torch.testing.assert_close(packed[name], tensor, rtol=0, atol=1e-6)
        added = set(Checkpoint(chat).vocabulary.added_ids().values())
        untouched = [i for i in range(1, 500, 2) if i not in added]
        assert torch.equal(packed["lm_head.weight"][untouched], stored["lm_head.weight"][untouched])
        names = ("tokenizer.json", "config.json", "generation_config.json")
        assert all(
            (tmp_path / f"out{number}" / f).read_bytes()
            == (tmp_path / f"same{number}" / f).read_bytes()
            for f in names
        )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out0")
    assert tokenizer.chat_template == TEMPLATE
    AutoModelForCausalLM.from_pretrained(tmp_path / "out0")


def test_new_rows_alone(pair, trained, tmp_path) -> None:
    make_pack(pair["base"], trained, tmp_path / "ru.lep", new_only=True)
    apply_pack(tmp_path / "ru.lep", pair["instruct"], tmp_path / "out")
    packed, chat = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out", pair["instruct"])
    )
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(packed[name][:500], chat[name][:500])
    assert (tmp_path / "ru.lep").stat().st_size < 200_000


def test_packs_are_the_same_each_time(pair, trained, tmp_path) -> None:
    for name in ("one", "two"):
        make_pack(pair["base"], trained, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    about = LanguagePack.load(tmp_path / "one").about
    assert about["history"]["init"]["method"] == "mean"
    assert set(about["tables"]) == {"input", "output"}


def test_models_that_a_pack_does_not_fit(pair, trained, byte_level, tmp_path) -> None:
    make_pack(pair["base"], trained, tmp_path / "ru.lep")
    save_model(tmp_path / "stranger", byte_level, seed=99, template=TEMPLATE)
    with pytest.raises(
        CheckpointError, match=r"mean cosine of -?0\.\d\d, related models have 0.5 or more; --force"
    ):
        apply_pack(tmp_path / "ru.lep", tmp_path / "stranger", tmp_path / "out")
    apply_pack(tmp_path / "ru.lep", tmp_path / "stranger", tmp_path / "forced", force=True)
    save_model(tmp_path / "wide", byte_level, hidden=64)
    save_model(tmp_path / "tied", byte_level, tied=True)
    save_model(tmp_path / "other", byte_level_tokenizer(sample_texts("ru"), 500, ["<s>", "</s>"]))
    for name, error, message in [
        ("wide", CheckpointError, "has hidden size 64, .* was made on base with 32"),
        ("tied", CheckpointError, "ties its embeddings and the pack does not"),
        ("other", TokenizerError, "the tokens of .* are not those of"),
    ]:
        with pytest.raises(error, match=message):
            apply_pack(tmp_path / "ru.lep", tmp_path / name, tmp_path / "out", force=True)
    (tmp_path / "cut.lep").write_bytes((tmp_path / "ru.lep").read_bytes()[:-100])
    for file in ("cut.lep", "stranger/model.safetensors", "missing.lep"):
        with pytest.raises(CheckpointError, match=r"is not a language pack|cannot be read"):
            apply_pack(tmp_path / file, pair["instruct"], tmp_path / "out")
    sampled = LanguagePack.load(tmp_path / "ru.lep").sample["output"][0]
    shutil.copytree(pair["instruct"], tmp_path / "spoilt")
    stored = load_file(pair["instruct"] / "model.safetensors")
    stored["lm_head.weight"][sampled[3], 5] = torch.nan
    save_file(stored, tmp_path / "spoilt" / "model.safetensors", metadata={"format": "pt"})
    for force in (False, True):
        with pytest.raises(CheckpointError, match=r"lm_head.weight of .*spoilt is not finite"):
            apply_pack(tmp_path / "ru.lep", tmp_path / "spoilt", tmp_path / "out", force=force)
    with pytest.raises(OutputError, match="exists already"):
        make_pack(pair["base"], trained, tmp_path / "ru.lep")
    for one, other, message in [
        (tmp_path / "tied", trained, "ties its embeddings"),
        (pair["base"], tmp_path / "wide", "hidden sizes differ"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            make_pack(one, other, tmp_path / "out" / "no.lep")
    assert not list(tmp_path.glob("out*"))


def test_a_pack_writes_nothing_but_the_model(pair, trained, tmp_path) -> None:
    make_pack(pair["base"], trained, tmp_path / "deep" / "er" / "ru.lep")
    tensors = load_file(tmp_path / "deep" / "er" / "ru.lep")
    spoilt = tensors | {
        f"tokenizer/{tmp_path}/escaped": tensors["tokenizer/tokenizer.json"].clone()
    }
    save_file(spoilt, tmp_path / "spoilt.lep")
    apply_pack(tmp_path / "spoilt.lep", pair["instruct"], tmp_path / "out")
    assert not (tmp_path / "escaped").exists()
    beyond = tensors | {"learned/input/rows": tensors["learned/input/rows"] + 10_000}
    save_file(beyond, tmp_path / "beyond.lep")
    with pytest.raises(CheckpointError, match="a row lies beyond 600"):
        apply_pack(tmp_path / "beyond.lep", pair["instruct"], tmp_path / "no")


def test_commands(pair, trained, tmp_path) -> None:
    def lep(*arguments) -> str:
        result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    lep("pack", "--base", pair["base"], "--adapted", trained, "--output", tmp_path / "ru.lep")
    lep("apply", tmp_path / "ru.lep", "--model", pair["instruct"], "--output", tmp_path / "out")
    output = lep("verify", pair["instruct"], tmp_path / "out", "--json", tmp_path / "v.json")
    assert "resized: lm_head.weight 500 x 32 -> 600 x 32" in output
    assert json.loads((tmp_path / "v.json").read_text())["counts"]["resized"] == 2
    assert "600 x 32" in lep("inspect", tmp_path / "out")


def test_verify_says_what_changed(pair, trained, tmp_path) -> None:
    comparison = compare_checkpoints(pair["base"], pair["base"]).record
    assert set(comparison["counts"]) == {"same"}
    assert comparison["config"] == {}
    assert all(rows["same"] == rows["tokens"] == 500 for rows in comparison["rows"].values())
    comparison = compare_checkpoints(pair["base"], trained).record
    assert comparison["counts"]["resized"] == 2
    assert (comparison["tokens"]["kept"], comparison["tokens"]["new"]) == (500, 100)
    assert {kind: rows["same"] for kind, rows in comparison["rows"].items()} == {
        "input": 250,
        "output": 250,
    }
    assert comparison["config"]["vocab_size"] == [500, 600]
    stored = load_file(pair["base"] / "model.safetensors")
    shutil.copytree(pair["base"], tmp_path / "odd")
    stored["model.norm.weight"][0] += 1
    del stored["model.layers.1.mlp.down_proj.weight"]
    save_file(
        stored | {"extra": torch.zeros(3)},
        tmp_path / "odd" / "model.safetensors",
        metadata={"format": "pt"},
    )
    result = compare_checkpoints(pair["base"], tmp_path / "odd")
    comparison = result.record
    states = {
        name: entry["state"]
        for name, entry in comparison["tensors"].items()
        if entry["state"] != "same"
    }
    assert states == {
        "model.norm.weight": "changed",
        "extra": "only after",
        "model.layers.1.mlp.down_proj.weight": "only before",
    }
    assert "changed: model.norm.weight" in str(result)


def test_verify_sees_another_type_and_another_vocabulary(byte_level, tmp_path) -> None:
    """Zeros have the same bytes in every type of 16 bits."""
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        model = save_model(tmp_path / name, byte_level, dtype=dtype)
        stored = model.state_dict() | {"model.norm.weight": torch.zeros(32, dtype=dtype)}
        save_file(stored, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    tensors = compare_checkpoints(tmp_path / "bf16", tmp_path / "f16").record["tensors"]
    assert tensors["model.norm.weight"]["state"] == "changed"
    for name in ("ab", "cd"):
        ids = {name[0]: 0, name[1]: 1, "<s>": 2, "</s>": 3}
        save_model(tmp_path / name, Tokenizer(models.BPE(ids, [])))
        for file in (tmp_path / name).glob("tokenizer*.json"):
            file.write_text(file.read_text().replace("s>", f"{name}>"))
    rows = compare_checkpoints(tmp_path / "ab", tmp_path / "cd").record["rows"]
    assert rows == {kind: {"tokens": 0, "same": 0} for kind in ("input", "output")}


def test_parameters_of_a_tied_table_that_is_stored_twice_count_once(byte_level, tmp_path) -> None:
    save_model(tmp_path / "model", byte_level, tied=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    assert inspect_checkpoint(tmp_path / "model").record["parameters"] == model.num_parameters()


def test_inspect_finds_suspicious_rows(pair, byte_level, tmp_path) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    table = stored["model.embed_tokens.weight"]
    table[50], table[60], table[70, 3] = 0, table[61], torch.nan
    vocabulary = Checkpoint(tmp_path / "model").vocabulary
    never = [
        vocabulary.tokens.index(t)
        for t in vocabulary.tokens
        if t and t.content in (b"\xc0", b"\xc1", b"\xf5")
    ]
    centre = torch.randn(32)
    for row in never:
        table[row] = centre + 1e-3 * torch.randn(32)
    table[80] = centre  # an unused token stays near the bytes that cannot occur
    others = [
        i
        for i, t in enumerate(vocabulary.tokens)
        if t and t.content[:1] >= b"\xf6" and len(t.content) == 1
    ]
    table[others] = centre + 1e-3 * torch.randn(len(others), 32)
    save_file(stored, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    inspection = inspect_checkpoint(tmp_path / "model")
    rows = inspection.record["tables"]["model.embed_tokens.weight"]["suspicious"]

    def named(title: str) -> set[int]:
        return {row for _, row in rows[title]["first"]}

    assert named("zero") == {50}
    assert named("equal to another row") == {60, 61}
    assert named("not finite") == {70}
    assert named("never trained") == {50, 80}
    assert inspection.record["special_tokens"] == vocabulary.added_ids()
    assert "zero: 1 rows" in str(inspection)
