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
    titles: dict[str, dict[str, list[str]]] = {}
    for column, contrast in compared.items():
        title, language = column.rsplit(" ", 1)
        if contrast.outcome and title != COST:
            of = titles.setdefault(language, {outcome: [] for outcome in OUTCOMES})
            of[contrast.outcome].append(title)
    return [_counted(NAMES.get(code, code), of) for code, of in titles.items()]


def _counted(language: str, titles: dict[str, list[str]]) -> str:
    """One sentence; measures that are not as good as before are named.

    >>> _counted("Russian", {"better": [], "same": ["copies", "tasks"], "worse": ["bits/byte"]})
    'Russian: of 3 measures, 2 as good, 1 worse (bits/byte).'
    """
    parts = [
        f"{len(named)} {OUTCOMES[outcome]}"
        + (f" ({', '.join(named)})" if outcome != "same" else "")
        for outcome, named in titles.items()
        if named
    ]
    whole = sum(map(len, titles.values()))
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
