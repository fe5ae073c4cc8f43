"""What the page marks as better and worse."""

import pytest

from lep.evaluation.records import Score
from lep.report.data import mark


def score(low: float, high: float) -> Score:
    return Score("copied", "ru", None, "share", (low + high) / 2, low, high, 10)


@pytest.mark.parametrize(
    ("column", "low", "high", "says"),
    [
        ("copy ru", 0.6, 0.7, "better"),
        ("copy ru", 0.1, 0.3, "worse"),
        ("copy ru", 0.5, 0.7, ""),
        ("copy ru", 0.4, 0.5, ""),
        ("answer bits/byte ru", 0.6, 0.7, "worse"),
        ("bits/byte ru", 0.1, 0.3, "better"),
        ("symbols/token ru", 2, 3, "better"),
    ],
)
def test_sure_differences_from_the_first_model_are_marked(column, low, high, says) -> None:
    assert mark(score(low, high), column, {"first": {column: score(0.4, 0.5)}}) == says
