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
    "apply_pack": "lep.transfer.language_pack",
    "build_corpus": "lep.transfer.corpus",
    "calibrate": "lep.calibration.calibrate",
    "compare": "lep.evaluation.side_by_side",
    "compare_checkpoints": "lep.transfer.inspect",
    "compare_tokenizers": "lep.tokenizer.compare",
    "copy_records": "lep.corpus.copies",
    "count_corpus": "lep.tokenizer.write",
    "evaluate": "lep.evaluation.evaluate",
    "extend_tokenizer": "lep.tokenizer.write",
    "initialise": "lep.transfer.initialise",
    "inspect_checkpoint": "lep.transfer.inspect",
    "make_pack": "lep.transfer.language_pack",
    "optimize_tokenizer": "lep.tokenizer.write",
    "plan_propagation": "lep.transfer.dry_run",
    "pretrain": "lep.training.pretrain",
    "propagate": "lep.transfer.propagate",
    "propagate_auto": "lep.selection.auto",
    "prune_tokenizer": "lep.tokenizer.write",
    "train_tokenizer": "lep.tokenizer.write",
    "tune": "lep.training.tune",
    "write_answers": "lep.calibration.answers",
    "write_comparison": "lep.report.tokenizers",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'lep' has no attribute '{name}'")
