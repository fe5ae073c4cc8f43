"""Methods that fit `W`: how adapted rows are carried from the base model into the instruct model."""

from lep.propagation.methods import METHODS, TableFit, conversion, overlap, swap

__all__ = ["METHODS", "TableFit", "conversion", "overlap", "swap"]
