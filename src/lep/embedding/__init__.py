"""Methods that fill `M`: how the rows of new tokens are put together from rows of known ones."""

from collections.abc import Callable

from lep.embedding.mean import mean
from lep.mapping import VocabularyMapping

METHODS: dict[str, Callable[[list[list[int]], int], VocabularyMapping]] = {"mean": mean}

__all__ = ["METHODS", "mean"]
