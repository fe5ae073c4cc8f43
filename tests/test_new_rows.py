"""Training new rows alone: the rest stays bit for bit, new rows train as in the whole table."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SAMPLE, TEMPLATE, changed, save_model, weights
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError
from lep.mapping import VocabularyMapping
from lep.pipeline.shape import Shape, training_memory
from lep.settings import PretrainSettings
from lep.tokenizer.write import extend_tokenizer, optimize_tokenizer
from lep.training import trainable_rows, trainer
from lep.training.loss import head_is_plain, head_loss
from lep.training.optimizer import scale_epsilon
from lep.training.pretrain import pretrain
from lep.training.trainable_rows import SplitTable, new_token_rows, row_features, split_tables
from lep.transfer.initialise import initialise
from lep.transfer.mappings import saved_mappings
from lep.transfer.propagate import initialise_instruct

SIZES = {"tokens": 6_000, "block_size": 64, "batch_tokens": 256, "checkpoints": 5}
SETTINGS = PretrainSettings(learning_rate=5e-3, weight_decay=0.1, train="new_rows", **SIZES)
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 96}
SHAPE |= {"num_hidden_layers": 1, "num_attention_heads": 2}
RU = [SAMPLE / "ru"]


def initialised(folder: Path, tokenizer, *, in_place: bool = False, **model) -> Path:
    source, extended = folder / "model", folder / "tokenizer"
    save_model(source, tokenizer, **model)
    if in_place:
        optimize_tokenizer(source, RU, 450, 500, extended, in_place=True)
    else:
        extend_tokenizer(source, RU, 60, extended)
    initialise(source, extended, folder / "initialised")
    return folder / "initialised"


SLOW = ({"in_place": True}, {"tied": True}, {"dtype": torch.bfloat16}, {"padding_rows": 12})


@pytest.mark.parametrize(
    "model",
    [{}, *(pytest.param(model, marks=pytest.mark.slow) for model in SLOW)],
    ids=lambda model: next(iter(model), "plain"),
)
def test_kept_rows_and_body_stay_bit_for_bit(model, byte_level, tmp_path) -> None:
    source = initialised(tmp_path, byte_level, **model)
    result = pretrain(source, RU, tmp_path / "out", SETTINGS)
    before, after = weights(source), weights(tmp_path / "out")
    tables = set(Checkpoint(source).tables.names)
    assert changed(before, after) == tables
    new = saved_mappings(Checkpoint(source))["input"].new_rows()
    for name in tables:
        moved = (before[name] != after[name]).any(1).nonzero().flatten()
        assert len(moved)
        assert set(moved.tolist()) <= set(new.tolist())
    assert result.trained_rows["input"] == len(new)
    assert result.losses[-1].loss < result.losses[0].loss


def test_new_rows_of_an_instruct_model_with_tokens_of_its_own(pair, byte_level, tmp_path) -> None:
    """Its own tokens come after the new ones; they are no new rows, and stay."""
    longer = Tokenizer.from_str(byte_level.to_str())
    longer.add_special_tokens(["<|own|>", "<|other|>"])
    save_model(tmp_path / "instruct", longer, seed=1, template=TEMPLATE)
    initialise(pair["base"], pair["tokenizer"], tmp_path / "base")
    initialise_instruct(pair["base"], tmp_path / "instruct", tmp_path / "base", tmp_path / "start")
    start = Checkpoint(tmp_path / "start")
    rows = new_token_rows(start)
    assert {kind: len(new) for kind, new in rows.items()} == {"input": 100, "output": 100}
    assert start.shape(start.tables.input)[0] == 502 + 100
    pretrain(tmp_path / "start", RU, tmp_path / "out", SETTINGS)
    before, after = weights(tmp_path / "start"), weights(tmp_path / "out")
    moved = (before[start.tables.input] != after[start.tables.input]).any(1).nonzero().flatten()
    assert set(moved.tolist()) <= set(rows["input"].tolist())
    assert len(moved)


def test_an_instruct_model_keeps_what_it_knew(byte_level, tmp_path) -> None:
    """Direct training of new rows: hidden states of text without new tokens stay bit-equal."""
    source = initialised(tmp_path, byte_level, template=TEMPLATE)
    pretrain(source, RU, tmp_path / "out", SETTINGS)
    ids = torch.randint(0, 500, (2, 40), generator=torch.Generator().manual_seed(0))
    states, kept = [], []
    for folder in (tmp_path / "model", tmp_path / "out"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            outputs = model(input_ids=ids, output_hidden_states=True)
        states.append(outputs.hidden_states[-1])
        kept.append(outputs.logits[..., :500])
    assert torch.equal(*states)
    # as exact as products of another shape are
    torch.testing.assert_close(*kept, rtol=1e-5, atol=1e-6)


def small_model(kind: str):
    """A model of 96 tokens, with a bias in its head, scaled embeddings, or one table for both."""
    torch.manual_seed(0)
    if kind == "head bias":
        model = PhiForCausalLM(PhiConfig(**SHAPE))
        torch.nn.init.normal_(model.lm_head.bias)
        return model
    model = GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=16, num_key_value_heads=2))
    if kind == "scaled":
        model.lm_head.weight = torch.nn.Parameter(torch.randn(96, 32))
    return model


KINDS = pytest.mark.parametrize("kind", ["scaled", "head bias", "tied"])


@pytest.mark.parametrize("rows", [[90, 91, 92, 93, 94, 95], [3, 50, 7]], ids=["last", "scattered"])
@KINDS
def test_the_gradient_of_new_rows_is_that_of_the_whole_table(kind, rows) -> None:
    model = small_model(kind)
    rows = torch.tensor(rows)
    ids = torch.cat([torch.randint(0, 96, (4, 30)), rows.repeat(4, 1)], dim=1)
    expected = model(input_ids=ids, labels=ids).loss
    expected.backward()
    slopes = {"input": model.get_input_embeddings().weight.grad[rows]}
    table = model.get_input_embeddings().weight.detach().clone()
    trained = {"input": rows} if kind == "tied" else {"input": rows, "output": rows}
    if kind != "tied":
        slopes["output"] = model.get_output_embeddings().weight.grad[rows]
    model.requires_grad_(False)
    split = split_tables(model, trained)
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, expected)
    assert head_is_plain(model)
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
    loss = head_loss(model.get_output_embeddings(), hidden, ids[:, 1:].flatten()) / hidden.shape[0]
    loss.backward()
    torch.testing.assert_close(loss, expected)
    order = rows.sort().indices
    for name, part in split.items():
        torch.testing.assert_close(part.new.grad, slopes[name][order], rtol=1e-4, atol=1e-6)
    assert torch.equal(split["input"].whole(), table)
    assert all("new" in name for name, p in model.named_parameters() if p.requires_grad)


@KINDS
def test_a_shared_map_is_part_of_the_rows(kind) -> None:
    """Loss and gradients are those of transformers' model with the sums in its tables."""
    model, rows = small_model(kind), torch.tensor([50, 3, 91, 7])
    kinds = ("input",) if kind == "tied" else ("input", "output")
    features = {name: torch.randn(4, 6) for name in kinds}
    shared = {name: torch.randn(6, 32) / 8 for name in kinds}
    layers = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    tables = {name: layers[name].weight for name in kinds}
    before = {name: table.detach().clone() for name, table in tables.items()}
    ids = torch.cat([torch.randint(0, 96, (4, 30)), rows.repeat(4, 1)], dim=1)
    with torch.no_grad():
        for name, table in tables.items():
            table[rows] += features[name] @ shared[name]
    expected = model(input_ids=ids, labels=ids).loss
    expected.backward()
    slopes = {name: table.grad[rows] for name, table in tables.items()}
    sums = {name: table.detach().clone() for name, table in tables.items()}
    model.requires_grad_(False)
    for name, table in tables.items():
        table.copy_(before[name])
    split = split_tables(model, dict.fromkeys(kinds, rows), features)
    for name, table in split.items():
        assert torch.equal(table.whole(), before[name])
        table.shared.data.copy_(shared[name])
        torch.testing.assert_close(table.whole(), sums[name])
    loss = model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(loss, expected)
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
    loss = head_loss(model.get_output_embeddings(), hidden, ids[:, 1:].flatten()) / hidden.shape[0]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for name, table in split.items():
        of_map = features[name].T @ slopes[name]
        torch.testing.assert_close(table.shared.grad, of_map, rtol=1e-4, atol=1e-6)
    assert sum("shared" in name for name, _ in model.named_parameters()) == len(kinds)


def test_features_are_word_beginnings_and_the_rows_of_pieces(pair, tmp_path) -> None:
    extend_tokenizer(pair["instruct"], [SAMPLE / "ru"], 40, tmp_path / "tokenizer")
    initialise(pair["instruct"], tmp_path / "tokenizer", tmp_path / "start")
    checkpoint = Checkpoint(tmp_path / "start")
    rows = new_token_rows(checkpoint)
    features = row_features(checkpoint, rows)
    old = AutoTokenizer.from_pretrained(pair["instruct"])
    new = AutoTokenizer.from_pretrained(tmp_path / "start")
    model = AutoModelForCausalLM.from_pretrained(pair["instruct"], dtype=torch.float32)
    layers = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    for kind, index in rows.items():
        assert features[kind].shape == (len(index), 2 + 2 * model.config.hidden_size)
        table, ends, begins = layers[kind].weight.detach(), [], []
        for row in index.tolist():
            text = new.decode([row])
            pieces = old(text, add_special_tokens=False)["input_ids"]
            ends.append(torch.cat([table[pieces[0]], table[pieces[-1]]]))
            begins.append([float(not text.startswith(" ")), float(text.startswith(" "))])
        assert torch.equal(features[kind][:, :2], torch.tensor(begins))
        assert 0 < features[kind][:, 0].sum() < len(index)
        size = torch.stack(ends).reshape(-1, model.config.hidden_size).abs().sum(1).mean()
        torch.testing.assert_close(features[kind][:, 2:], torch.stack(ends) / size)


def test_a_piece_that_the_model_has_no_more_gives_the_row_of_its_token(monkeypatch) -> None:
    table = torch.randn(3, 4)
    mapping = VocabularyMapping.from_rows([[0], [3], [2, 3]], source_size=4)
    monkeypatch.setattr(trainable_rows, "saved_mappings", lambda *_, **__: {"input": mapping})
    checkpoint = SimpleNamespace(
        vocabulary=SimpleNamespace(contents=[b"a", b"d", b"cd"]),
        tables=SimpleNamespace(by_kind=lambda: {"input": "table"}),
        tensor=lambda name: table,
    )
    (features,) = row_features(checkpoint, {"input": torch.tensor([2])}).values()
    pieces = torch.stack([table[2], table[1]])
    size = pieces.abs().sum(1).mean()
    torch.testing.assert_close(features[0], torch.cat([torch.tensor([1.0, 0.0]), *(pieces / size)]))


def test_what_is_no_plain_lookup_is_refused() -> None:
    model = PhiForCausalLM(PhiConfig(**SHAPE))
    model.requires_grad_(False)
    plain = model.get_input_embeddings().forward
    model.get_input_embeddings().forward = lambda ids: plain(ids).tanh()
    with pytest.raises(CheckpointError, match="does more than look up rows and multiply"):
        split_tables(model, {"input": torch.tensor([1]), "output": torch.tensor([1])})


def test_a_model_that_does_not_say_what_is_new_is_refused(pair, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"does not say which of its rows are new .*lep init"):
        pretrain(pair["base"], RU, tmp_path / "out", SETTINGS)
    assert not list(tmp_path.iterdir())


def test_maps_have_an_epsilon_of_their_own_and_no_decay() -> None:
    """Adapters keep Adam's own."""
    rows, maps, other = (torch.nn.Parameter(torch.ones(3, 2)) for _ in range(3))
    adapter = torch.nn.Parameter(torch.ones(1, 2))
    groups = [
        {"params": [other, adapter], "lr": 0.5},
        {"params": [rows, maps], "decay_of_touched_rows": 0.1},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.25, weight_decay=0.1)
    names = {"other": other, "rows.lora_A": adapter, "rows.new": rows, "rows.table.shared": maps}
    model = SimpleNamespace(named_parameters=names.items)
    apart = partial(trainer.TablesTrainer._apart, SimpleNamespace(model=model))
    apart(optimizer, trainer.SHARED, weight_decay=0.0, decay_of_touched_rows=0.0)
    apart(optimizer, trainer.ADAPTER, keeps_epsilon=True, lr=2.0)
    first, second, third, fourth = optimizer.param_groups
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == [
        [id(other)],
        [id(rows)],
        [id(maps)],
        [id(adapter)],
    ]
    assert (third["lr"], third["weight_decay"], third["decay_of_touched_rows"]) == (0.25, 0, 0)
    assert (fourth["lr"], fourth["weight_decay"]) == (2.0, 0.1)
    for parameter, size in ((other, 1.0), (rows, 10.0), (maps, 100.0), (adapter, 1.0)):
        parameter.grad = torch.full_like(parameter, size)
    scale_epsilon(optimizer)
    assert fourth["eps"] == 1e-8
    assert [g["eps"] / first["eps"] for g in (second, third)] == pytest.approx([10, 100])


def test_the_plan_has_the_bytes_of_the_maps() -> None:
    shape = Shape(0, 90, 32, 2, 1, 64, 0, plain=True, ids=90)
    plan = training_memory(shape, 96, 6, 128, width=4, maps=True)
    layers = SplitTable(torch.zeros(96, 32), torch.arange(90, 96), torch.zeros(6, 2 + 2 * 32))
    each = 4 * layers.features.numel() + 4 * 4 * layers.shared.numel()  # value, gradient, moments
    assert plan["maps in common"] == 2 * each
    assert "maps in common" not in training_memory(shape, 96, 6, 128, width=4)
