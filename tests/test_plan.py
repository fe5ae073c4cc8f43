"""The plan of a recipe against arithmetic done by hand."""

import json
from dataclasses import replace

import pytest
from conftest import SAMPLE
from transformers import AutoModelForCausalLM

from lep.errors import LepError
from lep.pipeline.forecast import Savings, Shape, make_plan
from lep.pipeline.recipe import load_recipe

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
        "tokenizer:\n  new_tokens: 100\npretrain:\n  tokens: 180_000_000\n  activation_checkpointing: true\n"
    )
    return lambda *changes: load_recipe(tmp_path / "recipe.yaml", list(changes))


def test_four_hours_of_an_h100_are_some_180_million_tokens(recipe) -> None:
    plain = "pretrain.activation_checkpointing=false"
    plan = make_plan(recipe(plain), "h100", hours=4)
    parameters, body, operations = 8.03e9, 6.98e9, 4 * 3600 * 0.4 * 989e12
    assert plan.tokens == pytest.approx(operations / (4 * parameters), rel=0.05)
    assert plan.hours == pytest.approx(4, rel=1e-6)
    assert make_plan(recipe(plain), "h100").hours == pytest.approx(4, rel=0.05)
    assert make_plan(recipe(plain), "a100").hours == pytest.approx(4 * 989 / 312, rel=0.05)
    again = make_plan(
        recipe(), "h100", hours=4
    )  # what is made again in the backward pass costs a forward pass
    assert again.tokens == pytest.approx(operations / (4 * parameters + 2 * body), rel=0.05)


def test_memory_of_capped_logits_is_that_of_all_of_them(recipe) -> None:
    plan = make_plan(recipe(), "h100")
    capped = replace(plan, shape=replace(plan.shape, plain=False))
    assert capped.memory["logits"] == 8 * plan.memory["logits"] == 3 * 4 * 8192 * (128_256 + 100)


def test_the_memory_of_tuning_is_planned_too(recipe, tmp_path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"messages": [{"role": "user", "content": "?"}]}')
    calibrated = [f"calibrate={{prompts: {tmp_path / 'prompts.jsonl'}}}", "propagate=[swap]"]
    said = str(make_plan(recipe(*calibrated, "calibrate.after=swap"), "h100"))
    assert (
        "calibrate does not fit: lower calibrate.micro_batch_size (16), set calibrate.activation_checkpointing"
        in said
    )
    assert "pretrain does not fit" not in said
    small = [
        "calibrate.micro_batch_size=2",
        "calibrate.activation_checkpointing=true",
        "calibrate.max_length=2048",
    ]
    assert "does not fit" not in str(
        make_plan(recipe(*calibrated, "calibrate.after=swap", *small), "h100")
    )


def test_what_is_held_out_is_not_trained_on(recipe) -> None:
    half = ["pretrain.tokens=null", "pretrain.epochs=1", "corpus.heldout_share=0.5"]
    some = [*half[:2], "corpus.heldout_share=0.01"]
    assert make_plan(recipe(*half), "h100").tokens == pytest.approx(
        make_plan(recipe(*some), "h100").tokens * 0.5 / 0.99, rel=0.01
    )


def test_old_text_is_planned_too(recipe) -> None:
    once = ["pretrain.tokens=null", "pretrain.epochs=1", f"text.en={SAMPLE / 'en'}"]
    alone, both = (
        make_plan(recipe(*once, *more), "h100").tokens for more in ([], ["pretrain.replay={en: 1}"])
    )
    assert 1.3 * alone < both < 2 * alone  # as many characters, in fewer tokens each


def test_parameters_are_those_of_the_model(recipe, pair) -> None:
    shape = Shape.of(pair["base"])
    model = AutoModelForCausalLM.from_pretrained(pair["base"])
    assert shape.body + 2 * shape.rows * shape.hidden == sum(p.numel() for p in model.parameters())
    assert make_plan(recipe(), "h100").shape == Shape(
        6_979_588_096, 128_256, 4_096, 2, 32, 14_336, 65_536, True
    )


def test_memory_counts_what_trains_four_times(recipe) -> None:
    whole, new = (
        make_plan(recipe(f"pretrain.train={what}"), "h100").memory
        for what in ("embeddings", "new_rows")
    )
    trained = "rows that train, their gradients and moments"
    assert whole[trained] == 16 * 2 * (128_256 + 100) * 4_096
    assert new[trained] == 16 * 2 * 100 * 4_096
    assert new["weights that stay"] - whole["weights that stay"] == 2 * 2 * (128_256 + 100) * 4_096
    assert (
        "pretrain does not fit: lower pretrain.micro_batch_tokens (8,192), train new_rows, add fewer tokens"
        in str(make_plan(recipe(), "rtx4090"))
    )


def test_worth_is_the_published_arithmetic(recipe) -> None:
    """LLaMA-3-8B: 0.765 of the tokens give 1.276 times the speed (2,000 tokens of context)."""
    plan = make_plan(recipe("tokenizer.new_tokens=46560"), "h100")
    assert plan.savings is None  # some dozen short texts do not yield so many tokens
    assert "too small" in str(plan)
    assert Savings(1, 1, 1_000, 765).speed(plan.shape, 174_816) == pytest.approx(1.276, abs=0.005)
    small = make_plan(recipe(), "h100")
    assert small.savings.before > small.savings.after
    assert "times fewer" in str(small)


def test_what_cannot_be_planned(recipe) -> None:
    with pytest.raises(LepError, match="--gpu is 'abacus': the known ones are h200, h100"):
        make_plan(recipe(), "abacus")
    with pytest.raises(LepError, match="--hours is -1"):
        make_plan(recipe(), "h100", hours=-1)
