"""Laws of propagation on tensors."""

import pytest
import torch

from lep.mapping import VocabularyMapping
from lep.propagation import METHODS
from lep.propagation.methods import propagate_table

ROWS = [[i] for i in range(60)] + [[3 + i, 3 + (7 * i + 1) % 57, 3 + (3 * i) % 57] for i in range(20)]
FIT = torch.ones(80, dtype=torch.bool)
FIT[:3] = False  # three special tokens


def tables() -> tuple[torch.Tensor, VocabularyMapping, torch.Tensor]:
    torch.manual_seed(2)
    base = torch.randn(60, 8, dtype=torch.float64)
    mapping = VocabularyMapping.from_rows(ROWS, source_size=60)
    return base, mapping, mapping(base) + 0.1 * torch.randn(80, 8, dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_equal_base_and_instruct_give_the_adapted_rows(method: str) -> None:
    base, mapping, adapted = tables()
    fit = METHODS[method](base, base, mapping, FIT)
    result = propagate_table(adapted, fit, base, {0: 0, 1: 1, 2: 2})
    assert torch.equal(result[3:], adapted[3:])
    assert torch.equal(result[:3], base[:3])


@pytest.mark.parametrize("method", ["overlap", "conversion"])
def test_a_rotated_instruct_model_is_recovered(method: str) -> None:
    base, mapping, adapted = tables()
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    fit = METHODS[method](base, base @ rotation, mapping, FIT)
    torch.testing.assert_close(fit.linear_map(adapted), adapted @ rotation, rtol=0, atol=1e-10)
    assert fit.report.heldout < 1e-6 < fit.report.identity


def test_each_method_solves_its_own_problem() -> None:
    base, mapping, _ = tables()
    instruct = base + 0.3 * torch.randn_like(base)
    target, source = mapping.kept()
    kept = source[FIT[target]]
    expected = {
        "overlap": torch.linalg.lstsq(base[kept], instruct[kept]).solution,
        "conversion": torch.linalg.lstsq(mapping(base)[FIT], mapping(instruct)[FIT]).solution,
        "swap": torch.eye(8, dtype=torch.float64),
    }
    for method, solution in expected.items():
        delta = METHODS[method](base, instruct, mapping, FIT).linear_map.delta
        torch.testing.assert_close(delta + torch.eye(8), solution, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(expected["overlap"], expected["conversion"])


def test_special_rows_stay_out_of_the_fit() -> None:
    base, mapping, _ = tables()
    instruct = base.clone()
    instruct[:3] += 100
    for method in METHODS:
        assert METHODS[method](base, instruct, mapping, FIT).report.identity == 0


def test_tokens_of_the_instruct_model_are_appended() -> None:
    base, mapping, adapted = tables()
    instruct = torch.cat([base, torch.full((2, 8), 9.0, dtype=torch.float64)])
    fit = METHODS["swap"](base, instruct[:60], mapping, FIT)
    result = propagate_table(adapted, fit, instruct, {0: 0, 80: 60, 81: 61})
    assert result.shape == (82, 8)
    assert torch.equal(result[80:], instruct[60:])
    assert torch.equal(result[1:80], adapted[1:])


def test_result_has_the_instruct_models_dtype() -> None:
    base, mapping, adapted = tables()
    fit = METHODS["conversion"](base.bfloat16(), base.bfloat16(), mapping, FIT)
    assert propagate_table(adapted.float(), fit, base.bfloat16(), {}).dtype == torch.bfloat16
