"""Cards of models, from what a run or an evaluation has in its folders."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lep.checkpoint.origin import Origin, model_name
from lep.corpus.read import read_records
from lep.errors import CheckpointError, CorpusError, LepError, OutputError, foreign, note
from lep.evaluation.records import Record, Score, decode, load_records
from lep.files import parse_json, read_text, without_paths
from lep.hub import local_folder
from lep.pipeline.recipe import Recipe
from lep.pipeline.recipe_file import as_yaml
from lep.pipeline.stage import read_manifest
from lep.release.card import Facts, Figures, model_title, write_card
from lep.release.licence import Licence
from lep.report.run_record import RUN_RECORD, CellRecord, RunRecord
from lep.report.verdict import verdict
from lep.result import Result
from lep.settings import CardSettings, EvaluateSettings

SCORES, RECORDS = "scores.json", "records.jsonl"


@dataclass(frozen=True)
class Card(Result):
    """A card that was written."""

    path: Path
    name: str
    licence: str | None
    figures: int

    def __str__(self) -> str:
        licence = self.licence or "unknown (give --licence NAME once you know it)"
        return f"{self.name}: licence {licence}, {self.figures:,} figures; {self.path}"


def card(
    model: str | Path,
    settings: CardSettings | None = None,
    *,
    evaluation: str | Path | None = None,
    source: str | Path | None = None,
    **options: Any,
) -> Card:
    """Write the card of a model, README.md, into its folder.

    Figures are those of a folder that `lep evaluate` wrote, or of the run that the model belongs
    to. `source` is the model that it was made from, where the folder does not say so. A card that
    lep wrote is replaced.

    Raises `CheckpointError` for a folder that is no model, `LepError` for an evaluation without
    the model, and `OutputError` for a card that a person wrote.
    """
    settings = CardSettings.given(settings, options)
    folder = Path(model)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder} to write a card in: check the path")
    origin = _origin(folder, source)
    if settings.base_model:
        origin = Origin(settings.base_model, origin.license, origin.languages)
    cell, stage = _run_of(folder) or (None, None)
    languages = settings.languages or ([cell.recipe["language"]] if cell else [])
    if evaluation is not None:
        name = settings.evaluated or model_name(folder)
        figures = _evaluated(Path(evaluation), name, languages)
    else:
        figures = _measured(folder.resolve().parent, cell, stage) if cell and stage else Figures()
    licence = Licence(settings.licence.lower()) if settings.licence else Licence.of(origin.license)
    facts = Facts(
        folder=folder,
        origin=origin,
        name=settings.name or model_title(origin, languages, licence),
        licence=licence,
        license=licence.metadata() if settings.licence else origin.license,
        languages=languages,
        figures=figures,
        recipe=_recipe(cell, origin) if cell else None,
    )
    return Card(write_card(facts), facts.name, licence.name, len(figures.scores))


def write_run_cards(run: Path) -> list[Path]:
    """Write the card of each instruct model that a finished run made.

    A card that a person wrote or changed stays, with a note.
    """
    paths = []
    for folder in _models(run, RunRecord.load(run)):
        try:
            paths.append(card(folder).path)
        except OutputError as error:
            note(str(error))
    return paths


def _models(run: Path, record: RunRecord) -> list[Path]:
    """The folders of the run that its instruct models are in, each once."""
    stages = (stage for cell in record.cells for stage in cell.instruct_models.values())
    names = (name for stage in stages for name in _upstream(run, stage))
    return [run / name for name in dict.fromkeys(names) if (run / name / "config.json").is_file()]


def _upstream(run: Path, stage: str) -> list[str]:
    upstream = read_manifest(run / stage).get("upstream")
    return [name for name in upstream or {} if Path(name).name == name]


def _run_of(folder: Path) -> tuple[CellRecord, str] | None:
    """The recipe by which a run made a model, and the stage that evaluated it."""
    folder = folder.resolve()
    if not (folder.parent / RUN_RECORD).is_file():
        return None
    for cell in RunRecord.load(folder.parent).cells:
        for stage in (*cell.instruct_models.values(), *cell.base_models.values()):
            if folder.name in _upstream(folder.parent, stage):
                return cell, stage
    return None


def _origin(folder: Path, source: str | Path | None) -> Origin:
    """What the model was made from: the folder's record, or the source that is given."""
    if source is None:
        return Origin.of(folder)
    given = Origin.of(local_folder(source, weights=False))
    is_id = not Path(source).exists()
    return Origin(str(source) if is_id else given.name, given.license, given.languages)


def _measured(run: Path, cell: CellRecord, stage: str) -> Figures:
    """The figures of a run: of the model that `stage` evaluated, and of its original."""
    models = cell.instruct_models if stage in cell.instruct_models.values() else cell.base_models
    first = next(iter(models.values()))
    scores, original = (_one_model(run / name / SCORES) for name in (stage, first))
    before, after = (load_records(run / name / RECORDS) for name in (first, stage))
    sentence = verdict(before, after, [cell.recipe["language"]], cell.evaluate_settings)
    return Figures(scores, original if stage != first else [], sentence)


def _one_model(path: Path) -> list[Score]:
    return _scores(path, list[Score])


def _scores(path: Path, kind: Any) -> Any:
    """The content of a `scores.json`. Raises `CorpusError` for another file."""
    advice = "give a folder that lep evaluate wrote"
    with foreign(f"{path} holds no scores", advice, CorpusError):
        if not path.is_file():
            raise CorpusError(f"there is no {path}: {advice}")
        return TypeAdapter(kind).validate_python(parse_json(read_text(path), str(path)))


def _evaluated(folder: Path, name: str, languages: list[str]) -> Figures:
    """The figures of a model in a folder that `lep evaluate` wrote.

    Raises `LepError` for a model that is not in it.
    """
    by_name = _scores(folder / SCORES, dict[str, list[Score]] | list[Score])
    if isinstance(by_name, list):
        return Figures(by_name)
    if name not in by_name:
        raise LepError(
            f"{folder} has figures of {', '.join(by_name)}, and none of '{name}': give --evaluated "
            "NAME, or evaluate the model"
        )
    first = next(iter(by_name))
    original = by_name[first] if name != first else []
    sentence = None
    if original and languages:
        records = _records(folder / RECORDS)
        sentence = verdict(records[first], records[name], languages, EvaluateSettings())
    return Figures(by_name[name], original, sentence)


def _records(path: Path) -> dict[str, list[Record]]:
    """The records of each model of an evaluation."""
    by_name: dict[str, list[Record]] = defaultdict(list)
    with foreign(f"{path} holds no records", "evaluate the models again", CorpusError):
        for _, line in read_records(path):
            by_name[line["model"]].append(decode(line))
    return by_name


def _recipe(cell: CellRecord, origin: Origin) -> str:
    """The recipe without what is usual, and without the paths of this machine."""
    with foreign("run.json holds no recipe", "run the recipe again", CheckpointError):
        recipe = Recipe.model_validate(cell.recipe)
    values = without_paths(recipe.model_dump(exclude_defaults=True))
    values = {name: each for name, each in values.items() if each not in ([], {})}
    return as_yaml(_plain(values | {"instruct": origin.name}))


def _plain(value: Any) -> Any:
    """A value with words in place of numbers, as `as_yaml` takes it."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value).lower() if isinstance(value, bool) else str(value)
