"""Make a language cheaper in an open large language model.

The public names load on first use, so that `import lep` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    # verbs: paths and settings in, files and a printable result out
    "lep.transfer.corpus": ("build_corpus", "clean_corpus"),
    "lep.tokenizer.write": (
        "count_corpus",
        "extend_tokenizer",
        "make_tokenizer",
        "optimize_tokenizer",
        "prune_tokenizer",
        "train_tokenizer",
    ),
    "lep.tokenizer.compare": ("compare_tokenizers",),
    "lep.transfer.initialise": ("initialise",),
    "lep.training.pretrain": ("pretrain",),
    "lep.transfer.propagate": ("propagate",),
    "lep.transfer.dry_run": ("dry_run",),
    "lep.selection.auto": ("propagate_auto",),
    "lep.transfer.language_pack": ("LanguagePack", "apply_pack", "make_pack"),
    "lep.transfer.inspect": ("inspect_checkpoint",),
    "lep.transfer.verify": ("compare_checkpoints",),
    "lep.calibration.answers": ("answer",),
    "lep.calibration.practice": ("practise",),
    "lep.calibration.calibrate": ("calibrate",),
    "lep.calibration.prompts": ("write_prompts",),
    "lep.training.tune": ("tune",),
    "lep.exports.export": ("export",),
    "lep.imports.model": ("import_model",),
    "lep.evaluation.evaluate": ("evaluate",),
    "lep.evaluation.score": ("bits_per_byte", "score_model"),
    "lep.pipeline.adapt": ("adapt",),
    "lep.pipeline.cards": ("card",),
    "lep.pipeline.doctor": ("doctor",),
    "lep.release.push": ("push",),
    "lep.pipeline.run": ("run_recipe",),
    "lep.pipeline.forecast": ("forecast",),
    "lep.pipeline.recipe_file": ("load_recipe",),
    # objects: tensors in, tensors out
    "lep.checkpoint.reader": ("Checkpoint",),
    "lep.tokenizer.vocabulary": ("Vocabulary",),
    "lep.mapping": ("VocabularyMapping",),
    "lep.transfer.mappings": ("build_mapping", "mean_mapping"),
    "lep.linear_map": ("FitReport", "LinearMap", "LinearMapFitter"),
    "lep.propagation": ("Problem", "Propagation", "propagate_rows"),
    "lep.statistics": ("Estimate", "estimate"),
    "lep.errors": ("LepError",),
    "lep.result": ("Result",),
    "lep.settings": (
        "AnswerSettings",
        "BuildSettings",
        "CalibrateSettings",
        "CardSettings",
        "EvaluateSettings",
        "ExportSettings",
        "ImportSettings",
        "InitSettings",
        "PretrainSettings",
        "PropagateSettings",
        "SelectSettings",
        "TokenizerSettings",
        "TuneSettings",
    ),
}
_ALIASES = {
    "INITIALISATIONS": ("lep.embedding", "METHODS"),
    "PROPAGATIONS": ("lep.propagation", "METHODS"),
}
_NAMES = {name: (module, name) for module, names in _MODULES.items() for name in names} | _ALIASES

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'lep' has no attribute '{name}'")
    module, attribute = _NAMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
