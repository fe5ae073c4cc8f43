"""Packs that were made on an instruct model, and the siblings and relatives that receive them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLE, TEMPLATE, weights
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lep.errors import TokenizerError
from lep.settings import PretrainSettings
from lep.tokenizer.write import extend_tokenizer
from lep.training.pretrain import pretrain
from lep.transfer.coverage import Coverage
from lep.transfer.initialise import initialise
from lep.transfer.language_pack import apply_pack, make_pack, pack_tokenizer
from lep.transfer.pack_file import LanguagePack

TABLES = ("model.embed_tokens.weight", "lm_head.weight")
TEXT = "Съешь ещё этих мягких французских булок, да выпей чаю."
SIBLING_TEMPLATE = TEMPLATE.replace("<|user|>", "<|tool|>").replace("'|> '", "'|>'")


def rewritten(folder: Path, change) -> None:
    tensors = weights(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def train(tensors) -> None:
    torch.manual_seed(0)
    for name in TABLES:
        tensors[name][-100:] += 0.1 * torch.randn(100, 32)


@pytest.fixture(scope="module")
def trained(pair, tmp_path_factory) -> Path:
    """The instruct model with 100 new tokens, whose rows, and no others, have moved."""
    folder = tmp_path_factory.mktemp("learned") / "model"
    initialise(pair["instruct"], pair["tokenizer"], folder)
    rewritten(folder, train)
    return folder


@pytest.fixture(scope="module")
def pack(pair, trained, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "ru.lep"
    make_pack(pair["instruct"], trained, path)
    return path


@pytest.fixture(scope="module")
def sibling(pair, tmp_path_factory) -> Path:
    """A fine-tune of the instruct model: another body, template and end, and two more tokens."""
    folder = tmp_path_factory.mktemp("sibling") / "chat"
    tokenizer = AutoTokenizer.from_pretrained(pair["instruct"])
    tokenizer.add_tokens([AddedToken("<|tool|>", special=True), AddedToken("<|stop|>")])
    tokenizer.chat_template = SIBLING_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(pair["instruct"])
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.data += 0.005 * torch.randn_like(parameter)
    model.resize_token_embeddings(504)  # two rows of padding
    model.generation_config.eos_token_id = [501, 1]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ids(folder: Path) -> dict[str, int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()


def new_names(pair) -> set[str]:
    return ids(pair["tokenizer"]).keys() - ids(pair["instruct"]).keys()


def means(folder: Path, name: str, table: torch.Tensor) -> torch.Tensor:
    """The mean of the rows that spell a token in a model's own vocabulary."""
    pieces = Tokenizer.from_file(str(folder / "tokenizer.json")).model.tokenize(name)
    return table[[piece.id for piece in pieces]].double().mean(0)


def check_rows(origin: Path, trained: Path, model: Path, result: Path, atol: float = 1e-6) -> None:
    """New rows are the model's means plus what was learned; known ones are the model's own."""
    new, before, after = ids(trained).keys() - ids(origin).keys(), ids(model), ids(result)
    assert after.keys() == before.keys() | new
    source, learned, own, got = map(weights, (origin, trained, model, result))
    for table in TABLES:
        for name in new:
            moved = learned[table][ids(trained)[name]].double()
            moved -= means(origin, name, source[table])
            expected = means(model, name, own[table]) + moved
            torch.testing.assert_close(
                got[table][after[name]].double(), expected, rtol=0, atol=atol
            )
        for name, index in before.items():
            assert torch.equal(got[table][after[name]], own[table][index]), name
    for name in own.keys() - set(TABLES):
        assert torch.equal(got[name], own[name]), name


def test_a_sibling_keeps_all_that_is_its_own(pair, trained, pack, sibling, tmp_path) -> None:
    applied = apply_pack(pack, sibling, tmp_path / "out")
    check_rows(pair["instruct"], trained, sibling, tmp_path / "out")
    assert (applied.made_on, applied.new_tokens, applied.new_only) == ("instruct", 100, True)
    lines = str(applied).splitlines()
    assert lines[0].endswith("with the rows of instruct")
    assert "100 new tokens; the rows of known tokens stay as they are" in lines
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == SIBLING_TEMPLATE
    stop = tokenizer.convert_tokens_to_ids("<|stop|>")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [stop, 1]
    assert tokenizer.convert_ids_to_tokens(tokenizer(TEXT)["input_ids"]) == (
        AutoTokenizer.from_pretrained(trained).tokenize(TEXT, add_special_tokens=True)
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 602


@pytest.mark.slow
def test_training_goes_on_from_a_pack(pair, trained, pack, sibling, tmp_path) -> None:
    """The result says which rows are new, and training keeps the record of their origin."""
    apply_pack(pack, sibling, tmp_path / "out")
    mapping = load_file(tmp_path / "out" / "lep" / "mapping.safetensors")
    names = {index: name for name, index in ids(tmp_path / "out").items()}
    mixed = (~mapping["copies"]).nonzero().flatten().tolist()
    assert {names[index] for index in mixed} == new_names(pair)
    assert (int(mapping["source_size"]), len(mapping["copies"])) == (504, 602)
    assert Coverage(tmp_path / "out", contexts=5).report().new_tokens == 100
    sizes = {"tokens": 1_000, "block_size": 64, "eval_characters": 500, "checkpoints": 1}
    sizes |= {"train": "new_rows", "learning_rate": 1e-2, "eval_text": {"ru": [str(SAMPLE / "ru")]}}
    settings = PretrainSettings(**sizes)
    pretrain(tmp_path / "out", [SAMPLE / "ru"], tmp_path / "further", settings)
    before, after = weights(tmp_path / "out"), weights(tmp_path / "further")
    for table in TABLES:
        moved = (before[table] != after[table]).any(1).nonzero().flatten().tolist()
        assert moved
        assert {names[index] for index in moved} <= new_names(pair)
    record = json.loads((tmp_path / "further" / "lep" / "init.json").read_text())
    assert record["method"] == "pack"
    assert record["model"] == "chat"
    assert (record["copied"], record["mixed"]) == (502, 100)
    assert record["pack"]["base"] == "instruct"
    assert record["pack"]["history"]["init"]["method"] == "mean"
    make_pack(sibling, tmp_path / "further", tmp_path / "further.lep")
    about = LanguagePack.load(tmp_path / "further.lep").about
    assert about["history"]["init"] == record
    assert about["history"]["pretrain"]["settings"]["tokens"] == 1_000
    assert not {"losses", "looks"} & about["history"]["pretrain"].keys()
    assert str(SAMPLE) not in json.dumps(about)


def test_added_tokens_that_a_model_lacks_are_left_out(pair, sibling, tmp_path) -> None:
    """A pack made on the sibling, given to the instruct model, brings no row of zeros."""
    extend_tokenizer(sibling, [SAMPLE / "ru"], 100, tmp_path / "tokenizer")
    initialise(sibling, tmp_path / "tokenizer", tmp_path / "trained")
    rewritten(tmp_path / "trained", train)
    packed = make_pack(sibling, tmp_path / "trained", tmp_path / "tool.lep")
    assert (packed.rows, packed.new_only) == ({"input": 100, "output": 100}, True)
    apply_pack(tmp_path / "tool.lep", pair["instruct"], tmp_path / "out")
    check_rows(sibling, tmp_path / "trained", pair["instruct"], tmp_path / "out")
    before, after = ids(tmp_path / "trained"), ids(tmp_path / "out")
    assert (before["<|tool|>"], before["<|stop|>"]) == (500, 501)
    assert {name: i - 2 * (i > 501) for name, i in before.items() if i not in (500, 501)} == after
    one, other = (
        Tokenizer.from_file(str(tmp_path / f / "tokenizer.json")) for f in ("trained", "out")
    )
    for text in (TEXT, *(file.read_text() for file in sorted((SAMPLE / "ru").glob("*.txt"))[:3])):
        assert one.encode(text).tokens == other.encode(text).tokens


def test_only_new_rows_need_no_option(pair, trained, pack, tmp_path) -> None:
    make_pack(pair["instruct"], trained, tmp_path / "ru.lep", new_only=True)
    assert (tmp_path / "ru.lep").read_bytes() == pack.read_bytes()
    shutil.copytree(trained, tmp_path / "moved")
    rewritten(tmp_path / "moved", lambda tensors: tensors[TABLES[0]][400:410].add_(1))
    moved = make_pack(pair["instruct"], tmp_path / "moved", tmp_path / "moved.lep")
    assert (moved.rows, moved.new_only) == ({"input": 110, "output": 100}, False)
    assert "of known and new tokens" in str(moved)
    applied = apply_pack(tmp_path / "moved.lep", pair["base"], tmp_path / "out")
    assert "known tokens change as those of that model did" in str(applied)


def test_a_sibling_in_bf16_stays_so(pair, trained, pack, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair["instruct"], dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "chat")
    AutoTokenizer.from_pretrained(pair["instruct"]).save_pretrained(tmp_path / "chat")
    apply_pack(pack, tmp_path / "chat", tmp_path / "out")
    check_rows(pair["instruct"], trained, tmp_path / "chat", tmp_path / "out", atol=1e-3)
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.bfloat16}


def test_a_farther_relative_has_no_template(pair, trained, pack, tmp_path) -> None:
    apply_pack(pack, pair["base"], tmp_path / "out")
    check_rows(pair["instruct"], trained, pair["base"], tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template is None


def test_a_model_that_has_the_new_tokens(pair, trained, pack, here, tmp_path) -> None:
    message = "has 100 of the 100 new tokens of .*ru.lep already: give the model as it was before"
    for write in (
        lambda: apply_pack(pack, trained, tmp_path / "out", force=True),
        lambda: pack_tokenizer(pack, trained, [SAMPLE / "ru"], tmp_path / "out"),
    ):
        with pytest.raises(TokenizerError, match=message):
            write()
    extend_tokenizer(pair["instruct"], [SAMPLE / "ru"], 10, tmp_path / "ten")
    initialise(pair["instruct"], tmp_path / "ten", tmp_path / "other")
    text = here("apply", pack, "--model", tmp_path / "other", "--output", tmp_path / "out", code=2)
    assert "has 10 of the 100 new tokens" in text
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_of_a_pack_and_what_it_saves(pair, pack, sibling, tmp_path) -> None:
    """A run that starts from a pack has the tokenizer's folder that its page reads."""
    apply_pack(pack, sibling, tmp_path / "out")
    pack_tokenizer(pack, sibling, [SAMPLE / "ru"], tmp_path / "tokenizer")
    assert ids(tmp_path / "tokenizer") == ids(tmp_path / "out")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (
            tmp_path / "out" / name
        ).read_bytes()
    record = json.loads((tmp_path / "tokenizer" / "changes.json").read_text())
    assert (record["verb"], record["pack"], record["made_on"]) == ("pack", "ru.lep", "instruct")
    assert (record["new"], record["dropped"], record["size"]) == (100, 0, 602)
    assert len(record["tokens"]) == 100
    sample = record["corpus_sample"]
    texts = [file.read_text() for file in (SAMPLE / "ru").glob("*.txt")]
    for folder, name in ((sibling, "tokens_before"), (tmp_path / "out", "tokens_after")):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        counts = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
        assert sample[name] == np.sum(counts)
    id_map = json.loads((tmp_path / "tokenizer" / "id_map.json").read_text())
    names = {index: name for name, index in ids(tmp_path / "out").items()}
    assert {names[index] for index in id_map["new"]} == new_names(pair)
