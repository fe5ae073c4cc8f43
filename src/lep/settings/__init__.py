"""Every setting, declared once: recipes, command line and library read it here.

`lep VERB --help` shows the string below a field, and the docstring of its class as the heading.
"""

from lep.fields import Settings
from lep.settings.evaluation import BenchmarkSettings, EvaluateSettings, ScoringSettings
from lep.settings.joint import (
    LOGIT_STEP,
    RELATIVE_RATE,
    STREAMS,
    JointSettings,
    NewRowsSettings,
    OwnPromptSettings,
    PracticeSettings,
)
from lep.settings.kinds import (
    Count,
    InitName,
    Names,
    NonNegative,
    PositiveInt,
    PropagationName,
    ProperShare,
    Seed,
    Share,
    TaskName,
    Texts,
    Weights,
)
from lep.settings.text import (
    TOKENIZER_SIZES,
    BuildSettings,
    ClusterSettings,
    CorpusSettings,
    LanguageSettings,
    TokenizerSettings,
)
from lep.settings.training import (
    AnswerSettings,
    AnswerTuning,
    CalibrateSettings,
    LoraSettings,
    PretrainSettings,
    TrainingSettings,
    TuneSettings,
)
from lep.settings.transfer import (
    CardSettings,
    ExportSettings,
    ImportSettings,
    InitSettings,
    MethodSettings,
    PropagateSettings,
    SelectSettings,
)

__all__ = [
    "LOGIT_STEP",
    "RELATIVE_RATE",
    "STREAMS",
    "TOKENIZER_SIZES",
    "AnswerSettings",
    "AnswerTuning",
    "BenchmarkSettings",
    "BuildSettings",
    "CalibrateSettings",
    "CardSettings",
    "ClusterSettings",
    "CorpusSettings",
    "Count",
    "EvaluateSettings",
    "ExportSettings",
    "ImportSettings",
    "InitName",
    "InitSettings",
    "JointSettings",
    "LanguageSettings",
    "LoraSettings",
    "MethodSettings",
    "Names",
    "NewRowsSettings",
    "NonNegative",
    "OwnPromptSettings",
    "PositiveInt",
    "PracticeSettings",
    "PretrainSettings",
    "PropagateSettings",
    "PropagationName",
    "ProperShare",
    "ScoringSettings",
    "Seed",
    "SelectSettings",
    "Settings",
    "Share",
    "TaskName",
    "Texts",
    "TokenizerSettings",
    "TrainingSettings",
    "TuneSettings",
    "Weights",
]
