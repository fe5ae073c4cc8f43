"""Adapters beside the tables are merged, carried into the instruct model, or refused."""

from pathlib import Path

import pytest
import torch
from conftest import SAMPLE, save_model, weights
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from lep.checkpoint.adapter import added, saved_factors
from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError
from lep.settings import PretrainSettings, PropagateSettings
from lep.training.heldout import HeldoutText
from lep.training.lora import add_adapter
from lep.training.pretrain import pretrain
from lep.transfer.language_pack import make_pack
from lep.transfer.propagate import propagate

RU = [SAMPLE / "ru"]
SIZES = {"tokens": 4_000, "learning_rate": 5e-3, "block_size": 64, "batch_tokens": 256}
SETTINGS = PretrainSettings(train="embeddings+lora", lora_rank=4, lora_alpha=8, **SIZES)


@pytest.fixture(scope="module")
def trained(adapted, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "trained"
    (folder.parent / "start").symlink_to(adapted.parent / "initialised")
    pretrain(adapted.parent / "initialised", RU, folder, SETTINGS)
    return folder


def test_tables_and_projections_move_and_nothing_else(adapted, trained) -> None:
    before, after = weights(adapted.parent / "initialised"), weights(trained)
    factors = saved_factors(trained)
    assert len(factors) == 3 * 7  # layers, projections of each
    for name, tensor in before.items():
        if name in factors:
            left, right = factors[name]
            assert left.shape[1] == right.shape[0] == SETTINGS.lora_rank
            assert torch.equal(after[name], tensor + left @ right)
            assert not torch.equal(after[name], tensor)
        else:
            moved = name in ("model.embed_tokens.weight", "lm_head.weight")
            assert torch.equal(after[name], tensor) != moved, name


@pytest.mark.slow
def test_what_is_written_is_what_trained(adapted, trained, tmp_path) -> None:
    """Held-out text is looked at in the model with adapters; the merged model must see the same."""
    text = {"ru": [str(RU[0])]}
    looked = {"eval_text": text, "eval_characters": 2_000, "precision": "float32"}
    settings = SETTINGS.model_copy(update=looked)
    result = pretrain(adapted.parent / "initialised", RU, tmp_path / "out", settings)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    seen = HeldoutText(text, 2_000, Checkpoint(tmp_path / "out")).look(model)["ru"]
    best = next(look for look in result.looks if look.step == result.best_step)
    assert seen == pytest.approx(best.bits_per_byte["ru"], rel=1e-5)


@pytest.mark.parametrize("method", ["swap", "new-rows"])
def test_the_instruct_model_gets_what_was_added(pair, trained, tmp_path, method) -> None:
    settings = PropagateSettings(method=method)
    propagate(pair["base"], pair["instruct"], trained, tmp_path / "out", settings)
    chat, result = weights(pair["instruct"]), weights(tmp_path / "out")
    factors = saved_factors(trained)
    for name, tensor in chat.items():
        if name in factors:
            left, right = factors[name]
            assert torch.equal(result[name], tensor + left @ right)
        elif tensor.shape == result[name].shape:
            assert torch.equal(result[name], tensor)


def test_a_pack_cannot_hold_an_adapter(pair, trained, tmp_path) -> None:
    message = r"trained with an adapter on its body .* propagate it instead"
    with pytest.raises(CheckpointError, match=message):
        make_pack(pair["base"], trained, tmp_path / "pack.lep")
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_shape_is_refused(pair, byte_level, trained, tmp_path) -> None:
    save_model(tmp_path / "other", byte_level, hidden=16)
    message = r"an adapter was trained for \S+ of shape .*has it as"
    with pytest.raises(CheckpointError, match=message):
        added(Checkpoint(tmp_path / "other"), saved_factors(trained))


@pytest.mark.slow
def test_what_was_added_before_is_kept(trained, tmp_path) -> None:
    """After another training, with adapters or without, all that was added still propagates."""
    before = saved_factors(trained)
    tables_only = SETTINGS.model_copy(update={"train": "embeddings"})
    pretrain(trained, RU, tmp_path / "rows", tables_only)
    for name, (left, right) in saved_factors(tmp_path / "rows").items():
        assert torch.equal(left @ right, before[name][0] @ before[name][1])
    pretrain(trained, RU, tmp_path / "more", SETTINGS)
    start, end = weights(trained.parent / "start"), weights(tmp_path / "more")
    for name, (left, right) in saved_factors(tmp_path / "more").items():
        assert left.shape[1] == 2 * SETTINGS.lora_rank
        torch.testing.assert_close(start[name] + left @ right, end[name], rtol=1e-5, atol=1e-6)


def test_an_architecture_without_projections_is_refused(tmp_path) -> None:
    """GPT-2's are no linear layers."""
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path)
    message = r"no linear projections in its layers .*GPT2LMHeadModel"
    with pytest.raises(CheckpointError, match=message):
        add_adapter(model, Checkpoint(tmp_path), 4, 8)
