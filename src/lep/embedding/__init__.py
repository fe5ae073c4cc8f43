"""Methods that fill `M`: how rows of new tokens are mixed from rows of known ones."""

from lep.embedding.norms import calibrated, undertrained
from lep.embedding.subtoken import METHODS

__all__ = ["METHODS", "calibrated", "undertrained"]
