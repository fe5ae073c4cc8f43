"""Types that several settings share."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from lep.fields import ByName, split_names, split_paths, split_weights

TaskName = Literal["copy_sentence", "copy_paragraph", "first_word", "last_word", "word_after"]
InitName = Literal["mean", "length-weighted", "first", "last", "random"]
PropagationName = Literal[
    "swap",
    "overlap",
    "conversion",
    "ridge",
    "procrustes",
    "task-arithmetic",
    "exact",
    "residual",
    "new-rows",
]

BEYOND = 1 << 63  # what neither tensors nor files can count
PositiveInt = Annotated[int, Field(gt=0, lt=BEYOND)]
Resamples = Annotated[int, Field(ge=10, lt=BEYOND)]
Count = Annotated[int, Field(ge=0, lt=BEYOND)]
# Far beyond these, a step overflows float32.
LearningRate = Annotated[float, Field(gt=0, le=1_000)]
WeightDecay = Annotated[float, Field(ge=0, le=1_000)]
Epochs = Annotated[float, Field(gt=0, le=1_000_000)]
Share = Annotated[float, Field(gt=0, le=1)]
ProperShare = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=1 << 31)]
Texts = Annotated[dict[str, list[str]], BeforeValidator(split_paths), ByName]  # paths by language
Weights = Annotated[dict[str, NonNegative], BeforeValidator(split_weights)]
Names = BeforeValidator(split_names)  # of lists: A,B is A and B
