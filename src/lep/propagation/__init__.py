"""Methods that fit `W`: how adapted rows are carried from the base model into the instruct model."""

from lep.propagation.methods import (
    METHODS,
    Problem,
    Propagation,
    propagated_rows,
    propagated_table,
    with_own_rows,
)

__all__ = [
    "METHODS",
    "Problem",
    "Propagation",
    "propagated_rows",
    "propagated_table",
    "with_own_rows",
]
