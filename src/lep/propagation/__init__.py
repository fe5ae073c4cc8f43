"""Methods that fit `W`: how adapted rows are carried from base to instruct model."""

from lep.propagation.apply import Propagation, RowMap, with_instruct_rows
from lep.propagation.methods import METHODS, UNFITTED, UNPENALISED, Problem, propagate_rows

__all__ = [
    "METHODS",
    "UNFITTED",
    "UNPENALISED",
    "Problem",
    "Propagation",
    "RowMap",
    "propagate_rows",
    "with_instruct_rows",
]
