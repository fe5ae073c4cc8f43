"""Methods that fill `M`: how the rows of new tokens are put together from rows of known ones."""

from lep.embedding.norms import calibrated, undertrained
from lep.embedding.subtoken import METHODS

__all__ = ["METHODS", "calibrated", "undertrained"]
