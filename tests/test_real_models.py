"""A real instruct model, where the variable LEP_MODELS names a folder that holds it."""

import os
from pathlib import Path

import pytest
import torch
from conftest import SAMPLE
from transformers import AutoModelForCausalLM

from lep import extend_tokenizer, initialise, pretrain
from lep.training.data import isolates
from lep.training.loss import head_is_plain

MODELS = Path(os.environ.get("LEP_MODELS", "models"))
SMOL = MODELS / "smollm2-135m-instruct"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SMOL.is_dir(), reason="LEP_MODELS has no smollm2-135m-instruct"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probes_do_not_depend_on_the_arithmetic(dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(SMOL, dtype=dtype)
    assert isolates(model)
    assert head_is_plain(model)


def test_training_in_bf16_keeps_documents_apart(tmp_path) -> None:
    """And the result keeps the instruct model's special tokens, which its base does not have."""
    extend_tokenizer(SMOL, [SAMPLE / "ru"], 200, tmp_path / "tokenizer")
    initialise(SMOL, tmp_path / "tokenizer", tmp_path / "init")
    sizes = {"block_size": 64, "batch_tokens": 64, "tokens": 256, "learning_rate": 1e-3}
    result = pretrain(
        tmp_path / "init", [SAMPLE / "ru"], tmp_path / "out", precision="bf16", **sizes
    )
    assert result.documents_isolated
    assert len(result.losses) == result.steps == 4
    assert "a document saw those before it" not in str(result)
