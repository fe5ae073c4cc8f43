"""Learned Embedding Propagation: give an open large language model a new language.

The public names load on first use, so that `import lep` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "Checkpoint": "lep.checkpoint.reader",
    "LinearMap": "lep.linear_map",
    "LinearMapFitter": "lep.linear_map",
    "VocabularyMapping": "lep.mapping",
    "Vocabulary": "lep.tokenizer.vocabulary",
    "calibrate": "lep.calibration.calibrate",
    "evaluate": "lep.evaluation.evaluate",
    "extend_tokenizer": "lep.tokenizer.write",
    "forecast": "lep.pipeline.forecast",
    "initialise": "lep.transfer.initialise",
    "pretrain": "lep.training.pretrain",
    "propagate": "lep.transfer.propagate",
    "run_recipe": "lep.pipeline.run",
    "tune": "lep.training.tune",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'lep' has no attribute '{name}'")
