"""What a run comes to: how many measures came out how, and what serving its model takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lep.checkpoint.reader import Checkpoint
from lep.evaluation.records import Score
from lep.report.paired import Contrast
from lep.report.run_record import CellRecord
from lep.report.verdict import NAMES, compared_models, judged_model

COST = "symbols/token"  # the column of the table
OUTCOMES = {"better": "better", "same": "as good", "worse": "worse", "unclear": "undecided"}
EVALUATED = "evaluate-"  # before the name of the stage that made a model


@dataclass(frozen=True)
class Serving:
    """A model beside the original: bytes of weights, and tokens of 1,000 characters by language."""

    model: str  # its folder, seen from the run
    weights: tuple[int, int]
    tokens: dict[str, tuple[float, float]]


def outcomes(compared: Mapping[str, Contrast]) -> list[str]:
    """In how many measures of text and answers a model is better, as good, or worse, by language.

    Tokens do not count: what they cost is said before.
    """
    counts: dict[str, dict[str, int]] = {}
    for column, contrast in compared.items():
        title, language = column.rsplit(" ", 1)
        if contrast.outcome and title != COST:
            of = counts.setdefault(language, dict.fromkeys(OUTCOMES, 0))
            of[contrast.outcome] += 1
    return [_counted(NAMES.get(code, code), of) for code, of in counts.items()]


def _counted(language: str, counts: dict[str, int]) -> str:
    """One sentence.

    >>> _counted("Russian", {"better": 0, "same": 4, "worse": 1, "unclear": 0})
    'Russian: of 5 measures, 4 as good, 1 worse.'
    """
    parts = [f"{count} {OUTCOMES[name]}" for name, count in counts.items() if count]
    whole = sum(counts.values())
    return f"{language}: of {whole} measure{'s' if whole > 1 else ''}, {', '.join(parts)}."


def serving(
    folder: Path, cell: CellRecord, table: Mapping[str, Mapping[str, Score]]
) -> Serving | None:
    """What the model of the verdict takes; None where the run's folder does not hold it."""
    models = compared_models(cell)
    if len(models) < 2:
        return None
    original, judged = next(iter(models)), judged_model(folder, cell)
    model = models[judged].removeprefix(EVALUATED)
    if not (folder / model / "config.json").is_file():
        return None
    is_instruct = models is cell.instruct_models
    source = cell.recipe["instruct" if is_instruct else "base"]
    before, after = (
        sum(entry.nbytes for entry in Checkpoint(each).entries.values())
        for each in (source, folder / model)
    )
    columns = [c for c in table[judged] if c.startswith(COST) and c in table[original]]
    tokens = {
        column.rsplit(" ", 1)[1]: (
            1000 / table[original][column].value,
            1000 / table[judged][column].value,
        )
        for column in columns
    }
    return Serving(model, (before, after), tokens)
