"""Numbers are what their labels say: each is computed here by hand, with numpy or scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lep.linear_map import LinearMapFitter
from lep.mapping import VocabularyMapping
from lep.propagation import METHODS, Problem
from lep.transfer.propagate import Propagated


def noise_problem(**options: object) -> tuple[np.ndarray, np.ndarray, Problem]:
    """Tables that differ by noise alone, each row a token of its own, and the fit of a map."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 8))
    instruct = base + 0.3 * rng.normal(size=base.shape) * rng.uniform(0.5, 2, size=(200, 1)) + 0.2
    mapping = VocabularyMapping.from_rows([[i] for i in range(200)], 200)
    rows = torch.ones(200, dtype=torch.bool)
    tables = (torch.from_numpy(base), torch.from_numpy(instruct))
    return base, instruct, Problem(*tables, mapping, rows, **options)


def residual(base: np.ndarray, instruct: np.ndarray, matrix: np.ndarray) -> float:
    return float(np.linalg.norm(base @ matrix - instruct) / np.linalg.norm(instruct))


def test_the_identity_is_measured_on_the_rows_that_were_held_out() -> None:
    base, instruct, problem = noise_problem(penalty=0.0)
    report = METHODS["overlap"](problem).report
    matrix = np.linalg.lstsq(base[::2], instruct[::2])[0]
    heldout, eye = (base[1::2], instruct[1::2]), np.eye(8)
    assert report.heldout == pytest.approx(residual(*heldout, matrix), rel=1e-9)
    assert report.heldout_identity == pytest.approx(residual(*heldout, eye), rel=1e-9)
    assert report.identity == pytest.approx(residual(base, instruct, eye), rel=1e-9)
    assert (report.rows, report.heldout_rows) == (200, 100)
    figures = f"{residual(*heldout, matrix):.4f} (identity {residual(*heldout, eye):.4f})"
    assert f"input: held-out residual {figures} on 100 rows" in str(
        Propagated(Path("x"), {"input": report})
    )


def test_no_penalty_but_infinity_is_no_better_than_the_identity() -> None:
    torch.manual_seed(1)
    source = torch.randn(40, 16, dtype=torch.float64)
    target = source + 0.3 * torch.randn_like(source)
    _, report = LinearMapFitter(16).update(source, target).fit_ridge((float("inf"),))
    assert report.penalty == float("inf")
    assert report.heldout == report.heldout_identity
    assert report.heldout_rows == 40  # each half once


def test_without_a_second_half_nothing_is_held_out() -> None:
    source = torch.randn(1, 4, dtype=torch.float64)
    for fit in (LinearMapFitter.fit, LinearMapFitter.fit_ridge, LinearMapFitter.fit_procrustes):
        report = fit(LinearMapFitter(4).update(source, 2 * source))[1]
        assert (report.heldout, report.heldout_identity, report.heldout_rows) == (None, None, 0)
        assert "1 rows, none held out" in str(report)


@pytest.mark.parametrize("centred", [False, True])
def test_swap_reports_the_residual_of_weighted_and_centred_rows(centred: bool) -> None:
    weights = np.linspace(0, 3, 200)  # the first row counts nothing
    base, instruct, problem = noise_problem(weights=torch.from_numpy(weights), centred=centred)
    report = METHODS["swap"](problem).report
    shift, target = instruct - base, instruct
    if centred:
        shift, target = (t - np.average(t, axis=0, weights=weights) for t in (shift, target))
    squares = [weights @ (table**2).sum(1) for table in (shift, target)]
    assert report.identity == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=1e-9)
    assert report.identity == pytest.approx(METHODS["conversion"](problem).report.identity)
    assert (report.rows, report.heldout) == (199, None)
