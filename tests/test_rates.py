"""Learning rates of tables: what a step may do to logits, computed with transformers directly."""

import math

import pytest
import torch
from conftest import ROOT, save_model
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError
from lep.settings import JointSettings, NewRowsSettings
from lep.training.pretrain import pretrain
from lep.training.rates import relative_rates, state_size

IDS = [*range(5, 69)]
SETTINGS = NewRowsSettings(tokens=1_000, precision="float32")


def saved(folder, tokenizer, *, tied: bool, states: float) -> Checkpoint:
    """A model whose hidden states are `states` times as large as usual."""
    model = save_model(folder, tokenizer, tied=tied)
    model.model.norm.weight.data *= states
    model.save_pretrained(folder)
    return Checkpoint(folder)


def rows_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The last ten rows train."""
    names = checkpoint.tables.by_kind()
    count = checkpoint.shape(names["input"])[0]
    return dict.fromkeys(names, torch.arange(count - 10, count))


def size_of_states(folder) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        states = model.model(input_ids=torch.tensor([IDS])).last_hidden_state
    return float(states.abs().sum(-1).mean())


def rates_of(checkpoint: Checkpoint, settings: JointSettings, folder) -> dict[str, float]:
    rates = relative_rates(checkpoint, rows_of(checkpoint), settings, IDS, folder)
    for kind, name in checkpoint.tables.by_kind().items():
        size = size_of_rows(checkpoint.tensor(name))
        assert rates[kind].rate == pytest.approx(rates[kind].share * size)
    return {kind: rate.rate for kind, rate in rates.items()}


def size_of_rows(table: torch.Tensor) -> float:
    return float(table[:-10].norm(dim=1).median()) / math.sqrt(table.shape[1])


@pytest.mark.parametrize("tied", [True, False])
def test_no_step_moves_a_logit_by_more_than_three_nats(byte_level, tmp_path, tied: bool) -> None:
    checkpoint = saved(tmp_path / "model", byte_level, tied=tied, states=100)
    rates = rates_of(checkpoint, SETTINGS, tmp_path)
    bound = 3 / size_of_states(tmp_path / "model")
    names = checkpoint.tables.by_kind()
    usual = {kind: 0.12 * size_of_rows(checkpoint.tensor(name)) for kind, name in names.items()}
    assert bound < 0.5 * min(usual.values())  # so that it matters
    expected = {"input": bound} if tied else {"input": usual["input"], "output": bound}
    assert rates == pytest.approx(expected, rel=1e-4)


def test_small_states_or_no_bound_leave_the_rate_as_it_is(byte_level, tmp_path) -> None:
    for states, bound in ((1, 3.0), (100, None)):
        folder = tmp_path / str(states)
        checkpoint = saved(folder, byte_level, tied=True, states=states)
        settings = SETTINGS.model_copy(update={"logit_step": bound})
        size = size_of_rows(checkpoint.tensor(checkpoint.tables.input))
        assert rates_of(checkpoint, settings, folder) == pytest.approx({"input": 0.12 * size})
    settings = JointSettings(tokens=9, learning_rate=0.1)
    assert relative_rates(checkpoint, rows_of(checkpoint), settings, IDS, tmp_path) is None


def test_a_training_that_goes_on_and_other_processes_take_the_same_size(
    byte_level, tmp_path
) -> None:
    checkpoint = saved(tmp_path / "model", byte_level, tied=True, states=100)
    (tmp_path / "states.json").write_text("50000.0")
    rates = rates_of(checkpoint, SETTINGS, tmp_path)
    assert rates == pytest.approx({"input": 3 / 50_000})


def test_scaled_logits_are_moved_by_as_much_less(byte_level, tmp_path) -> None:
    """Granite divides its logits."""
    save_model(tmp_path / "model", byte_level)  # for its tokenizer
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=byte_level.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=8.0,
    )
    GraniteForCausalLM(config).save_pretrained(tmp_path / "model")
    size = state_size(Checkpoint(tmp_path / "model"), SETTINGS, IDS)
    assert size == pytest.approx(size_of_states(tmp_path / "model") / 8, rel=1e-4)


@pytest.mark.slow
def test_the_rate_that_a_sweep_chose_is_the_one_that_is_recorded(adapted, tmp_path) -> None:
    text = [ROOT / "lab" / "text" / "train" / "ru"]
    settings = JointSettings(
        tokens=512,
        block_size=32,
        batch_tokens=64,
        relative_rate=9.0,  # far too high, so that a lower one is taken
        logit_step=None,
        eval_text={"ru": [str(path) for path in text]},
        checkpoints=1,
        sweep=True,
        precision="float32",
    )
    result = pretrain(adapted, text, tmp_path / "out", settings)
    assert (
        result.sweep.best
        == result.settings.learning_rate
        < max(map(float, result.sweep.bits_per_byte))
    )
    assert result.rates["input"].rate == pytest.approx(result.sweep.best)
    share = result.sweep.best / size_of_rows(
        Checkpoint(adapted).tensor("model.embed_tokens.weight")
    )
    assert result.rates["input"].share == pytest.approx(share, rel=0.1)


def test_states_that_are_no_numbers_are_refused(byte_level, tmp_path) -> None:
    checkpoint = saved(tmp_path / "model", byte_level, tied=True, states=math.inf)
    with pytest.raises(CheckpointError, match="the model is damaged"):
        rates_of(checkpoint, SETTINGS, tmp_path)
