"""Adapters beside the tables are merged, carried into the instruct model, or refused."""

from pathlib import Path

import pytest
import torch
from conftest import save_model
from safetensors.torch import load_file

from lep.checkpoint.adapter import saved_factors
from lep.errors import CheckpointError
from lep.settings import PretrainSettings, PropagateSettings
from lep.training.pretrain import pretrain
from lep.transfer.language_pack import make_pack
from lep.transfer.propagate import propagate

SAMPLE = Path(__file__).parent.parent / "lab" / "text" / "train" / "ru"
SETTINGS = PretrainSettings(
    tokens=4_000,
    learning_rate=5e-3,
    block_size=64,
    batch_tokens=256,
    train="embeddings+lora",
    lora_rank=4,
    lora_alpha=8,
)


@pytest.fixture(scope="module")
def trained(adapted, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "trained"
    (folder.parent / "start").symlink_to(adapted.parent / "initialised")
    pretrain(adapted.parent / "initialised", [SAMPLE], folder, SETTINGS)
    return folder


def test_tables_and_projections_move_and_nothing_else(adapted, trained) -> None:
    before, after = (
        load_file(f / "model.safetensors") for f in (adapted.parent / "initialised", trained)
    )
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
    from transformers import AutoModelForCausalLM

    from lep.checkpoint.reader import Checkpoint
    from lep.training.heldout import HeldoutText

    text = {"ru": [str(SAMPLE)]}
    settings = SETTINGS.model_copy(
        update={"eval_text": text, "eval_characters": 2_000, "precision": "float32"}
    )
    result = pretrain(adapted.parent / "initialised", [SAMPLE], tmp_path / "out", settings)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    seen = HeldoutText(text, 2_000, Checkpoint(tmp_path / "out")).look(model)["ru"]
    best = next(look for look in result.looks if look.step == result.best_step)
    assert seen == pytest.approx(best.bits_per_byte["ru"], rel=1e-5)


@pytest.mark.parametrize("method", ["swap", "new-rows"])
def test_the_instruct_model_gets_what_was_added_to_the_body(
    pair, trained, tmp_path, method
) -> None:
    propagate(
        pair["base"], pair["instruct"], trained, tmp_path / "out", PropagateSettings(method=method)
    )
    chat, result = (
        load_file(f / "model.safetensors") for f in (pair["instruct"], tmp_path / "out")
    )
    factors = saved_factors(trained)
    for name, tensor in chat.items():
        if name in factors:
            left, right = factors[name]
            assert torch.equal(result[name], tensor + left @ right)
        elif tensor.shape == result[name].shape:
            assert torch.equal(result[name], tensor)


def test_a_pack_cannot_hold_an_adapter(pair, trained, tmp_path) -> None:
    with pytest.raises(
        CheckpointError, match=r"trained with an adapter on its body .* propagate it instead"
    ):
        make_pack(pair["base"], trained, tmp_path / "pack.lep")
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_shape_is_refused(pair, byte_level, trained, tmp_path) -> None:
    from lep.checkpoint.adapter import added
    from lep.checkpoint.reader import Checkpoint

    save_model(tmp_path / "other", byte_level, hidden=16)
    with pytest.raises(
        CheckpointError, match=r"an adapter was trained for \S+ of shape .*has it as"
    ):
        added(Checkpoint(tmp_path / "other"), saved_factors(trained))


@pytest.mark.slow
def test_what_was_added_before_is_kept(trained, tmp_path) -> None:
    """After another training, with adapters or without, all that was added still propagates."""
    before = saved_factors(trained)
    pretrain(
        trained, [SAMPLE], tmp_path / "rows", SETTINGS.model_copy(update={"train": "embeddings"})
    )
    for name, (left, right) in saved_factors(tmp_path / "rows").items():
        assert torch.equal(left @ right, before[name][0] @ before[name][1])
    pretrain(trained, [SAMPLE], tmp_path / "more", SETTINGS)
    start, end = (
        load_file(f / "model.safetensors") for f in (trained.parent / "start", tmp_path / "more")
    )
    for name, (left, right) in saved_factors(tmp_path / "more").items():
        assert left.shape[1] == 2 * SETTINGS.lora_rank
        torch.testing.assert_close(start[name] + left @ right, end[name], rtol=1e-5, atol=1e-6)


def test_an_architecture_without_projections_is_refused(tmp_path) -> None:
    """GPT-2's are no linear layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from lep.checkpoint.reader import Checkpoint
    from lep.training.lora import add_adapter

    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"no linear projections in its layers .*GPT2LMHeadModel"
    ):
        add_adapter(model, Checkpoint(tmp_path), 4, 8)
