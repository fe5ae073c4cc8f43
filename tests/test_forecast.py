"""The forecast of a recipe against arithmetic done by hand."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from conftest import SAMPLE
from transformers import AutoModelForCausalLM

from lep.errors import LepError
from lep.pipeline.devices import DEVICES, Device
from lep.pipeline.forecast import forecast
from lep.pipeline.recipe_file import load_recipe
from lep.pipeline.sampled_savings import Savings, sampled_savings
from lep.pipeline.shape import Shape
from lep.settings import TokenizerSettings

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4_096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@cache
def savings_of(tokenizer: str, paths: tuple[str, ...], settings: str) -> Savings | None:
    """`sampled_savings`, computed once for equal tokenizers, texts and settings."""
    given = TokenizerSettings.model_validate_json(settings)
    return sampled_savings(Path(tokenizer), list(paths), given)


@pytest.fixture(autouse=True)
def savings_once(pair, monkeypatch) -> None:
    def known(folder, paths, settings):
        assert (folder / "tokenizer.json").read_bytes() == tokenizer
        return savings_of(str(pair["base"]), tuple(map(str, paths)), settings.model_dump_json())

    tokenizer = (pair["base"] / "tokenizer.json").read_bytes()
    monkeypatch.setattr("lep.pipeline.forecast.sampled_savings", known)


@pytest.fixture
def recipe(pair, tmp_path):
    """Llama 3 8B's configuration, without weights, with a small tokenizer."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(LLAMA))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((pair["base"] / name).read_bytes())
    (tmp_path / "recipe.yaml").write_text(
        f"name: x\nbase: {base}\ninstruct: {base}\nlanguage: ru\ntext:\n  ru: {SAMPLE / 'ru'}\n"
        "tokenizer:\n  new_tokens: 100\n"
        "pretrain:\n  tokens: 180_000_000\n  activation_checkpointing: true\n"
    )
    return lambda *changes: load_recipe(tmp_path / "recipe.yaml", list(changes))


def test_four_hours_of_an_h100_are_some_180_million_tokens(recipe) -> None:
    plain = "pretrain.activation_checkpointing=false"
    estimate = forecast(recipe(plain), "h100", hours=4)
    parameters, body, operations = 8.03e9, 6.98e9, 4 * 3600 * 0.4 * 989e12
    assert estimate.tokens == pytest.approx(operations / (4 * parameters), rel=0.05)
    assert estimate.hours == pytest.approx(4, rel=1e-6)
    assert forecast(recipe(plain), "h100").hours == pytest.approx(4, rel=0.05)
    assert forecast(recipe(plain), "a100").hours == pytest.approx(4 * 989 / 312, rel=0.05)
    # Activation checkpointing repeats the forward pass.
    again = forecast(recipe(), "h100", hours=4)
    assert again.tokens == pytest.approx(operations / (4 * parameters + 2 * body), rel=0.05)


def test_memory_of_capped_logits_is_that_of_all_of_them(recipe) -> None:
    estimate = forecast(recipe(), "h100")
    capped = replace(estimate, shape=replace(estimate.shape, plain=False))
    logits = [each.memory["pretrain"]["logits"] for each in (capped, estimate)]
    assert logits[0] == 8 * logits[1] == 3 * 4 * 8192 * 128_256


def test_the_memory_of_tuning_is_planned_too(recipe, tmp_path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"messages": [{"role": "user", "content": "?"}]}')
    calibrated = [f"calibrate={{prompts: {tmp_path / 'prompts.jsonl'}}}", "propagate=[swap]"]
    text = str(forecast(recipe(*calibrated, "calibrate.after=swap"), "h100"))
    advice = "lower calibrate.micro_batch_size (16), set calibrate.activation_checkpointing"
    assert f"calibrate does not fit: {advice}" in text
    assert "pretrain does not fit" not in text
    small = [
        "calibrate.micro_batch_size=2",
        "calibrate.activation_checkpointing=true",
        "calibrate.max_length=2048",
    ]
    assert "does not fit" not in str(
        forecast(recipe(*calibrated, "calibrate.after=swap", *small), "h100")
    )


def test_what_is_held_out_is_not_trained_on(recipe) -> None:
    half = ["pretrain.tokens=null", "pretrain.epochs=1", "corpus.heldout_share=0.5"]
    some = [*half[:2], "corpus.heldout_share=0.01"]
    assert forecast(recipe(*half), "h100").tokens == pytest.approx(
        forecast(recipe(*some), "h100").tokens * 0.5 / 0.99, rel=0.01
    )


def test_passes_over_the_text_are_counted(recipe) -> None:
    """A budget far beyond the text says so, with the hours that are of use."""
    text = sum(len(f.read_text(encoding="utf-8")) for f in (SAMPLE / "ru").iterdir())
    estimate = forecast(recipe("corpus.heldout_share=0.001"), "h100")
    saved = estimate.savings
    one_pass = text * saved.after / saved.heldout_characters
    assert estimate.pass_tokens == pytest.approx(one_pass, rel=0.01)
    passes = 180_000_000 / one_pass
    assert f"that is {passes:,.0f}"[:11] in str(estimate)
    assert "more than 4 teach little: give more text, or train" in str(estimate)
    once = forecast(recipe("pretrain.tokens=null", "pretrain.epochs=2"), "h100")
    assert "that is 2.00 passes over" in str(once)
    assert "teach little" not in str(once)


def test_old_text_is_planned_too(recipe) -> None:
    once = ["pretrain.tokens=null", "pretrain.epochs=1", f"text.en={SAMPLE / 'en'}"]
    alone, both = (
        forecast(recipe(*once, *more), "h100").tokens for more in ([], ["pretrain.replay={en: 1}"])
    )
    assert 1.3 * alone < both < 2 * alone  # as many characters, in fewer tokens each


def test_parameters_are_those_of_the_model(recipe, pair) -> None:
    shape = Shape.of(pair["base"])
    model = AutoModelForCausalLM.from_pretrained(pair["base"])
    assert shape.body + 2 * shape.rows * shape.hidden == sum(p.numel() for p in model.parameters())
    assert forecast(recipe(), "h100").shape == Shape(
        6_979_588_096, 128_256, 4_096, 2, 32, 14_336, 65_536, True, 500
    )


def test_memory_counts_what_trains_four_times(recipe) -> None:
    whole, new = (
        forecast(recipe(f"pretrain.train={what}"), "h100").memory["pretrain"]
        for what in ("embeddings", "new_rows")
    )
    trained = "trained rows with gradients and moments"
    assert whole[trained] == 16 * 2 * 128_256 * 4_096
    assert new[trained] == 16 * 2 * 100 * 4_096
    assert new["frozen weights"] - whole["frozen weights"] == 2 * 2 * 128_256 * 4_096
    advice = "lower pretrain.micro_batch_tokens (8,192), train new_rows, add fewer tokens"
    assert f"pretrain does not fit: {advice}" in str(forecast(recipe(), "rtx4090"))


def test_new_tokens_use_padding_rows_first(recipe) -> None:
    """The table has 128,256 rows and the tokenizer 500 ids, as `lep init` counts them."""
    few = forecast(recipe("pretrain.train=new_rows"), "h100")
    assert (few.rows, few.new_rows, few.trained_rows) == (128_256, 100, 100)
    many = forecast(recipe("tokenizer.new_tokens=128_000"), "h100")
    assert (many.rows, many.new_rows) == (500 + 128_000, 128_000)
    smaller = ["tokenizer.method=optimize", "tokenizer.keep=300", "tokenizer.vocab_size=400"]
    pruned = forecast(recipe("tokenizer.new_tokens=null", *smaller), "h100")
    assert (pruned.rows, pruned.new_rows) == (400, 100)


def test_hours_are_those_of_the_tokens_beside_them(recipe) -> None:
    """The sweep takes four fifths of a training, and the baseline as much again: 3.6 trainings."""
    alone, all_trainings = (
        forecast(recipe(*changes), "h100")
        for changes in ([], ["pretrain.sweep=true", "direct=true"])
    )
    hours = 180_000_000 / alone.tokens_an_hour
    assert f"180,000,000 tokens in {alone.steps:,} steps: {hours:.1f} hours on one" in str(alone)
    assert "with the sweep" not in str(alone)
    text = str(all_trainings)
    assert f"{alone.steps:,} steps: {hours:.1f} hours on one h100" in text
    with_both = f"{3.6 * hours:.1f} hours with the sweep and the baseline on the instruct model"
    assert f"GFLOP a token); {with_both}" in text
    assert f"{3.6 * hours:.1f} hours of training pay off" in text or "add fewer" in text


@pytest.fixture
def joint(recipe, tmp_path):
    """The same model by joint training: no base, text of two languages."""
    text = (tmp_path / "recipe.yaml").read_text().split("pretrain:")[0].replace("base: ", "note: ")
    text = text.replace("tokenizer:", f"  en: {SAMPLE / 'en'}\ntokenizer:")
    (tmp_path / "joint.yaml").write_text(f"{text}adapt:\n  tokens: 18_000_000\n")
    return lambda *changes: load_recipe(tmp_path / "joint.yaml", list(changes))


def test_joint_training_is_planned(joint) -> None:
    """By hand: 6.98B parameters of the body and 128,256 rows, of which 100 train."""
    estimate = forecast(joint(), "h100")
    head = 128_256 * 4_096
    operations = 4 * (6_979_588_096 + head) + 2 * 100 * 4_096
    hours = 18e6 * operations / (0.4 * 989e12) / 3600
    assert estimate.hours == pytest.approx(hours)
    assert [*estimate.memory] == ["adapt"]
    trained = estimate.memory["adapt"]["trained rows with gradients and moments"]
    assert trained == 16 * 2 * 100 * 4_096
    text = str(estimate)
    assert f"{60 * hours:.0f} min on one h100" in text
    assert "hours cover joint training only: answers, practice tasks and evaluation are" in text
    share = "which is 22% of the mixture"
    assert f"{share}; more than 4 teach little" in text
    assert "(adapt.epochs=4)" in text
    # Two models with two tables of 16 bits; three states of rows and two moments; a training's ids.
    tables, states = 2 * 2 * 2 * head, 3 * 3 * 4 * 2 * 100 * 4_096
    assert estimate.disk_bytes == tables + states + 4 * 18_000_000
    assert "adapt does not fit: lower adapt.micro_batch_tokens" in str(
        forecast(joint("adapt.micro_batch_tokens=600_000"), "rtx3090")
    )


def test_joint_training_for_some_hours(joint, tmp_path) -> None:
    path = tmp_path / "joint.yaml"
    estimate = forecast(path, "h100", hours=0.5, overrides=["adapt.seed=3"])
    assert estimate.hours == pytest.approx(0.5, rel=1e-6)
    assert estimate.command == f"lep run {path} adapt.seed=3 adapt.tokens={estimate.tokens}"


def test_passes_over_new_text_alone_are_counted(joint) -> None:
    """Two passes take more tokens of a mixture of which 22% is that text."""
    estimate = forecast(joint("adapt.epochs=2"), "h100")
    assert estimate.tokens == pytest.approx(2 * estimate.pass_tokens / 0.22, abs=2)
    assert "that is 2.00 passes over" in str(estimate)


def test_a_base_and_joint_training_are_planned_together(joint) -> None:
    plain = joint()
    base = [f"base={plain.instruct}", "pretrain.tokens=9_000_000"]
    both, joint_alone = (forecast(joint(*changes), "h100") for changes in (base, []))
    assert both.hours == pytest.approx(both.training_hours + joint_alone.hours)
    assert f"; {60 * both.hours:.0f} min with joint training" in str(both)
    assert [*both.memory] == ["pretrain", "adapt"]
    twice = forecast(joint(*base, "adapt.after=swap"), "h100")
    assert twice.joint_hours == pytest.approx(2 * joint_alone.hours)
    assert twice.disk_bytes > both.disk_bytes
    with pytest.raises(LepError, match=r"joint training alone takes [\d.]+ of 0.01 hours: give"):
        forecast(joint(*base), "h100", hours=0.01)


def test_a_device_has_the_memory_that_cuda_reports() -> None:
    """79.1 GiB of an H100 "80 GB", whose specification is in units of 2^30 bytes."""
    assert DEVICES["h100"].memory_bytes > 84e9
    assert DEVICES["h200"].memory_bytes > 149e9


def test_this_device_is_planned_too(joint, monkeypatch) -> None:
    """A CPU: float32 rows are 4 bytes wide, and less is kept of a loss that is taken in chunks."""
    told = Device("this CPU", 1e9, "40% of a measured product", 8e9, is_cpu=True)
    monkeypatch.setattr("lep.pipeline.devices.this_device", lambda *_, **__: told)
    changes = ["adapt.precision=float32", "adapt.tokens=100"]
    plan, gpu = (forecast(joint(*changes), name) for name in ("here", "h100"))
    operations = 4 * (6_979_588_096 + 128_256 * 4_096) + 2 * 100 * 4_096
    assert plan.hours == pytest.approx(100 * operations / 1e9 / 3600)
    minutes = f"{100 * operations / 1e9 / 60:.0f} min"
    line = f"{minutes} on this CPU at 40% of a measured product (0.0M tokens"
    assert line in str(plan)
    assert "tokens at 2,500 a second" not in str(plan)
    frozen = [each.memory["adapt"]["frozen weights"] for each in (plan, gpu)]
    assert frozen[0] == frozen[1] == 4 * (6_979_588_096 + 2 * 128_256 * 4_096)
    kept = [each.memory["adapt"]["logits"] for each in (plan, gpu)]
    assert kept[0] < kept[1]
    assert "adapt does not fit" in str(plan)


def test_worth_is_the_published_arithmetic(recipe) -> None:
    """LLaMA-3-8B: 0.765 of the tokens give 1.276 times the speed (2,000 tokens of context)."""
    estimate = forecast(recipe("tokenizer.new_tokens=46560"), "h100")
    assert estimate.savings is None  # some dozen short texts do not yield so many tokens
    assert "too small" in str(estimate)
    assert estimate.shape.speedup(Savings(1, 1, 1_000, 765), 174_816) == pytest.approx(
        1.276, abs=0.005
    )
    small = forecast(recipe(), "h100")
    assert small.savings.before > small.savings.after
    assert "times fewer" in str(small)


def test_what_cannot_be_planned(recipe) -> None:
    known = "h200, h100, a100, l40s, rtx4090, rtx3090, here"
    with pytest.raises(LepError, match=f"--gpu is 'abacus': the known ones are {known}"):
        forecast(recipe(), "abacus")
    with pytest.raises(LepError, match="--hours is -1"):
        forecast(recipe(), "h100", hours=-1)
