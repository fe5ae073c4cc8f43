"""Laws of propagation on tensors, both claimed and denied per method by docs/propagation.md."""

from collections.abc import Callable
from itertools import product
from math import inf

import pytest
import torch
from conftest import ROOT
from torch import Tensor

from lep.linear_map import LinearMapFitter
from lep.mapping import VocabularyMapping
from lep.propagation import METHODS, Problem, propagate_rows, with_instruct_rows

ROWS = [[i] for i in range(60)] + [
    [3 + i, 3 + (7 * i + 1) % 57, 3 + (3 * i) % 57] for i in range(20)
]
MAPPING = VocabularyMapping.from_rows(ROWS, source_size=60)
FIT = torch.ones(80, dtype=torch.bool)
FIT[:3] = False  # three special tokens
SPECIAL = {0: 0, 1: 1, 2: 2}
KEPT, NEW = slice(3, 60), slice(60, 80)


def tables(noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """A base table and an adapted one."""
    torch.manual_seed(2)
    base = torch.randn(60, 8, dtype=torch.float64)
    return base, MAPPING(base) + noise * torch.randn(80, 8, dtype=torch.float64)


def rotation() -> Tensor:
    return torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q


def result(method: str, base: Tensor, instruct: Tensor, adapted: Tensor, **options) -> Tensor:
    rows = propagate_rows(base, instruct, adapted, MAPPING, method=method, fit_rows=FIT, **options)
    return torch.cat(list(with_instruct_rows([rows], instruct, SPECIAL, len(rows))))


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-9)


def bits(table: Tensor) -> list:
    return table.contiguous().view(torch.int64).tolist()


def same(method: str) -> bool:
    base, adapted = tables()
    return close(result(method, base, base.clone(), adapted)[3:], adapted[3:])


def rotated(method: str, rows: slice) -> bool:
    base, adapted = tables()
    turn = rotation()
    return close(result(method, base, base @ turn, adapted)[rows], (adapted @ turn)[rows])


def kept(method: str, *, trained: bool = False) -> bool:
    base, adapted = tables()
    if not trained:
        adapted[KEPT] = base[KEPT]
    base[7] = adapted[7] = -0.0
    instruct = base + 0.3 * torch.randn_like(base)
    instruct[7] = -0.0
    return bits(result(method, base, instruct, adapted)[KEPT]) == bits(instruct[KEPT])


def shift(method: str) -> bool:
    base, adapted = tables()
    instruct, added = base + 0.3 * torch.randn_like(base), torch.randn(8, dtype=torch.float64)
    before, after = (
        result(method, base, chat, adapted, centred=True) for chat in (instruct, instruct + added)
    )
    return close(after, before + added)


def special(method: str) -> bool:
    base, adapted = tables()
    instruct = base + 0.3 * torch.randn_like(base)
    instruct[:3] += 100
    without = instruct.clone()
    without[:3] = 0
    rows, other = (result(method, base, chat, adapted) for chat in (instruct, without))
    return bits(rows[:3]) == bits(instruct[:3]) and bits(rows[3:]) == bits(other[3:])


LAWS: dict[str, Callable[[str], bool]] = {
    "same": same,
    "rotation": lambda method: rotated(method, slice(3, 80)),
    "new rotation": lambda method: rotated(method, NEW),
    "kept": kept,
    "always kept": lambda method: kept(method, trained=True),
    "shift": shift,
    "special": special,
}


def claims() -> dict[tuple[str, str], str]:
    """The documentation's table of laws: (method, law) -> yes or no."""
    lines = (ROOT / "docs" / "propagation.md").read_text().split("## Laws")[1].splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| ")
    ]
    return {
        (row[0], law): cell
        for row in rows[1:]
        for law, cell in zip(rows[0][1:], row[1:], strict=True)
    }


def test_the_documentation_names_every_method_and_law() -> None:
    assert set(claims()) == {(method, law) for method in METHODS for law in LAWS}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", METHODS)
def test_a_law_holds_where_it_is_claimed_and_nowhere_else(method: str, law: str) -> None:
    assert ("yes" if LAWS[law](method) else "no") == claims()[method, law]


def test_each_method_solves_its_own_problem() -> None:
    base, _ = tables()
    instruct = base + 0.3 * torch.randn_like(base)
    target, source = MAPPING.kept()
    shared = source[FIT[target]]
    expected = {
        "overlap": torch.linalg.lstsq(base[shared], instruct[shared]).solution,
        "conversion": torch.linalg.lstsq(MAPPING(base)[FIT], MAPPING(instruct)[FIT]).solution,
        "swap": torch.eye(8, dtype=torch.float64),
    }
    for method, solution in expected.items():
        delta = METHODS[method](Problem(base, instruct, MAPPING, FIT)).new.linear_map.delta
        torch.testing.assert_close(delta + torch.eye(8), solution, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(expected["overlap"], expected["conversion"])


def test_a_centred_fit_is_least_squares_with_an_intercept() -> None:
    base, _ = tables()
    instruct = base + 0.3 * torch.randn_like(base) + 5
    problem = Problem(base, instruct, MAPPING, FIT, centred=True)
    rows, targets = MAPPING(base)[FIT], MAPPING(instruct)[FIT]
    solution = torch.linalg.lstsq(torch.cat([rows, torch.ones(len(rows), 1)], 1), targets).solution
    linear = METHODS["conversion"](problem).new.linear_map
    torch.testing.assert_close(linear.delta + torch.eye(8), solution[:-1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(linear.shift, solution[-1], rtol=1e-9, atol=1e-9)


def test_weights_count_rows_as_often() -> None:
    base, _ = tables()
    instruct = base + 0.3 * torch.randn_like(base)
    weights = torch.randint(0, 4, (80,)).double()
    repeated = torch.arange(80).repeat_interleave(weights.long())
    part = MAPPING.select(repeated)
    expected = METHODS["conversion"](Problem(base, instruct, part, FIT[repeated]))
    weighted = METHODS["conversion"](Problem(base, instruct, MAPPING, FIT, weights=weights))
    torch.testing.assert_close(weighted.new.linear_map.delta, expected.new.linear_map.delta)
    # Ridge weighs source rows by their shares in the target rows.
    used = MAPPING.source_weights(FIT.nonzero().flatten(), weights[FIT])
    dense = torch.zeros(80, 60, dtype=torch.float64)
    for row, pieces in enumerate(ROWS):
        for piece in pieces:
            dense[row, piece] += 1 / len(pieces)
    torch.testing.assert_close(used, dense[FIT].T @ weights[FIT])


def test_the_penalty_is_the_best_on_heldout_rows() -> None:
    torch.manual_seed(0)
    source = torch.randn(40, 16, dtype=torch.float64)
    noise = 0.3 * torch.randn_like(source)
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    for target, chosen in ((source + noise, inf), (source @ turn, 0.0)):
        fitter = LinearMapFitter(16).update(source, target)
        _, report = fitter.fit_ridge()
        assert report.penalty == chosen
        assert (
            report.heldout
            <= min(fitter.fit(p)[1].heldout for p in (0.0, 1e-3, 1e-1, 1.0, inf)) + 1e-12
        )
    _, report = (
        LinearMapFitter(16).update(source, source + 0.2 * (source @ turn) + 0.2 * noise).fit_ridge()
    )
    assert 0 < report.penalty < inf
    # The closed form.
    gram, penalty = source.T @ source, 0.1
    ridged = gram + penalty * gram.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    expected = torch.linalg.solve(ridged, source.T @ noise)
    delta = LinearMapFitter(16).update(source, source + noise).fit(penalty)[0].delta
    torch.testing.assert_close(delta, expected, rtol=1e-9, atol=1e-10)


def test_procrustes_is_the_best_scaled_rotation() -> None:
    torch.manual_seed(0)
    source = torch.randn(100, 6, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    target = 1.7 * source @ turn + 0.1 * torch.randn_like(source)
    linear, report = LinearMapFitter(6).update(source, target).fit_procrustes()
    whole = linear.delta + torch.eye(6, dtype=torch.float64)
    scale = whole.norm() / 6**0.5
    torch.testing.assert_close(whole @ whole.T, scale**2 * torch.eye(6, dtype=torch.float64))
    best = (source @ whole - target).norm()
    for _ in range(20):  # any other scaled rotation nearby is worse
        skew = 1e-2 * torch.randn(6, 6, dtype=torch.float64)
        other = whole @ torch.linalg.matrix_exp(skew - skew.T) * (1 + 1e-2 * torch.randn(()))
        assert (source @ other - target).norm() > best
    assert report.heldout < report.identity


def degenerate(case: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tables of hidden size 512 on which a plain solver is many times worse than no map."""
    torch.manual_seed(0)
    hidden, rows = 512, 400 if case == "few rows" else 4_000
    source = torch.randn(rows, hidden, dtype=torch.float64)
    if case == "dead and duplicate column":
        source[:, 3], source[:, 7] = 0, source[:, 11]
    elif case == "column scaled by 1e-4":
        source[:, 3] *= 1e-4
    elif case == "a direction spread over all columns":
        source -= source.mean(1, keepdim=True)
    elif case == "rank 400 rounded to bf16":
        source = source[:, :400] @ torch.randn(400, hidden, dtype=torch.float64) / 20
    change = 0.01 / hidden**0.5 * torch.randn(hidden, hidden).double()
    true = torch.eye(hidden, dtype=torch.float64) + change
    source = source.bfloat16()
    target = (source.double() @ true).bfloat16()
    # Adapted rows reach directions that no fitted row spans.
    unseen = torch.randn(1_000, hidden, dtype=torch.float64)
    return source, target, unseen, unseen @ true


LINEAR = ["overlap", "conversion", "ridge", "procrustes", "exact"]
DEGENERATE = [
    "dead and duplicate column",
    "column scaled by 1e-4",
    "a direction spread over all columns",
    "rank 400 rounded to bf16",
    "few rows",
]
# Every case with the usual method, every method with one case, and large hidden sizes once.
SAMPLED = {
    *(("conversion", case, False) for case in DEGENERATE),
    *((method, DEGENERATE[0], False) for method in LINEAR),
    ("conversion", DEGENERATE[2], True),
}


@pytest.mark.parametrize(
    ("method", "case", "large"),
    [
        each if each in SAMPLED else pytest.param(*each, marks=pytest.mark.slow)
        for each in product(LINEAR, DEGENERATE, [False, True])
    ],
)
def test_rank_deficient_tables_do_no_harm(method: str, case: str, large: bool, monkeypatch) -> None:
    if large:  # large hidden sizes use float32 products
        monkeypatch.setattr("lep.propagation.methods.FLOAT32_PRODUCTS_FROM", 512)
    source, target, adapted, expected = degenerate(case)
    mapping = VocabularyMapping.from_rows([[i] for i in range(len(source))], len(source))
    problem = Problem(source, target, mapping, torch.ones(len(source), dtype=torch.bool))
    rows = METHODS[method](problem).new.linear_map(adapted)
    identity = (adapted - expected).norm() / expected.norm()
    assert 0.009 < identity < 0.011
    assert (rows - expected).norm() / expected.norm() <= 1.2 * identity


@pytest.mark.parametrize("method", ["overlap", "conversion", "ridge"])
def test_heldout_residuals_see_no_mixture_of_rows_that_were_fitted(method: str) -> None:
    """If instruct and base differ by noise alone, no map beats the identity on held-out rows."""
    torch.manual_seed(0)
    base = torch.randn(300, 32, dtype=torch.float64)
    instruct = base + 0.3 * torch.randn_like(base)
    pieces = torch.randint(300, (900, 2)).tolist()
    mapping = VocabularyMapping.from_rows([[i] for i in range(300)] + pieces, 300)
    fit_rows = torch.ones(1200, dtype=torch.bool)
    report = METHODS[method](Problem(base, instruct, mapping, fit_rows, penalty=0.0)).report
    assert report.heldout > 1.02 * report.heldout_identity
    assert report.fitted < report.identity


def test_tokens_of_the_instruct_model_are_appended() -> None:
    base, adapted = tables()
    instruct = torch.cat([base, torch.full((2, 8), 9.0, dtype=torch.float64)])
    problem = Problem(base, instruct[:60], MAPPING, FIT)
    chunks = METHODS["swap"](problem).rows(adapted, MAPPING, base, instruct[:60])
    instruct_rows = {0: 0, 80: 60, 81: 61}
    table = torch.cat(list(with_instruct_rows(chunks, instruct, instruct_rows, 82)))
    assert table.shape == (82, 8)
    assert torch.equal(table[80:], instruct[60:])
    assert torch.equal(table[1:80], adapted[1:])


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_tables(method: str) -> None:
    base, adapted = tables()
    instruct = (base + 0.1 * torch.randn_like(base)).bfloat16()
    half = result(method, base.bfloat16(), instruct, adapted.float())
    assert half.dtype == torch.bfloat16
    wide = result(method, base.bfloat16().double(), instruct.double(), adapted.float().double())
    assert (half.double() - wide).norm() < 4e-3 * wide.norm()
