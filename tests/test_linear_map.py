"""The fitter against float64 least squares, its optimality, and cases where plain solvers fail."""

import pytest
import torch

from lep.linear_map import LinearMap, LinearMapFitter


def problem(
    rows: int = 300, hidden: int = 16, noise: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    source = torch.randn(rows, hidden, dtype=torch.float64)
    true = torch.eye(hidden, dtype=torch.float64) + 0.2 * torch.randn(
        hidden, hidden, dtype=torch.float64
    )
    return source, source @ true + noise * torch.randn(rows, hidden, dtype=torch.float64)


def test_equals_lstsq_and_is_optimal() -> None:
    source, target = problem()
    linear, report = (
        LinearMapFitter(16)
        .update(source[:100], target[:100])
        .update(source[100:], target[100:])
        .fit()
    )
    expected = torch.linalg.lstsq(source, target).solution
    torch.testing.assert_close(linear.delta + torch.eye(16), expected, rtol=1e-9, atol=1e-10)
    residual = (linear(source) - target).norm() / target.norm()
    assert report.fitted == pytest.approx(residual.item(), rel=1e-9)
    for _ in range(5):  # every step away from the solution is worse
        other = LinearMap(
            linear.delta + 1e-3 * torch.randn(16, 16, dtype=torch.float64), linear.shift
        )
        assert (other(source) - target).norm() > (linear(source) - target).norm()


def test_report_counts_and_orders() -> None:
    source, target = problem()
    _, report = LinearMapFitter(16).update(source, target).fit()
    assert (report.rows, report.rank) == (300, 16)
    assert report.identity == pytest.approx(
        ((target - source).norm() / target.norm()).item(), rel=1e-12
    )
    assert report.fitted < report.heldout < report.identity


def test_heldout_residual_exposes_noise() -> None:
    # With nothing to learn, a fit explains the rows that it saw and spoils the others.
    torch.manual_seed(1)
    source = torch.randn(40, 16, dtype=torch.float64)
    _, report = LinearMapFitter(16).update(source, source + 0.3 * torch.randn_like(source)).fit()
    assert report.fitted < report.identity < report.heldout


def test_equal_tables_give_the_identity_bit_for_bit() -> None:
    source = torch.randn(100, 8)
    linear, report = LinearMapFitter(8).update(source, source).fit()
    assert torch.equal(linear(source.bfloat16()), source.bfloat16())
    assert torch.equal(linear(source), source)
    assert (report.identity, report.change) == (0.0, 0.0)


def test_recovers_a_rotation_in_float64() -> None:
    source, _ = problem()
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    linear, report = LinearMapFitter(16).update(source, source @ rotation).fit()
    torch.testing.assert_close(linear(source), source @ rotation, rtol=0, atol=1e-10)
    assert report.heldout < 1e-7


@pytest.mark.parametrize("defect", ["dead column", "duplicate column", "few rows"])
def test_unseen_directions_are_left_alone(defect: str) -> None:
    source, _ = problem()
    true = torch.eye(16, dtype=torch.float64) + 0.1 * torch.randn(16, 16, dtype=torch.float64)
    if defect == "dead column":
        source[:, 3] = 0
    elif defect == "duplicate column":
        source[:, 3] = source[:, 5]
    else:
        source = source[:10]
    linear, report = LinearMapFitter(16).update(source, source @ true).fit()
    assert report.rank < 16
    torch.testing.assert_close(linear(source), source @ true, rtol=0, atol=1e-8)
    unseen = torch.linalg.svd(source).Vh[report.rank :]
    torch.testing.assert_close(linear(unseen), unseen, rtol=0, atol=1e-8)


def test_without_rows_there_is_no_map() -> None:
    with pytest.raises(ValueError, match="needs rows to be fitted on"):
        LinearMapFitter(4).fit()
