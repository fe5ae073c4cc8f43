"""The recipe: one typed YAML file that says everything a run depends on."""

import copy
import difflib
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field, PositiveFloat, ValidationError

from lep.errors import RecipeError
from lep.settings import (
    CalibrateSettings,
    CorpusSettings,
    EvaluateSettings,
    InitSettings,
    PretrainSettings,
    PropagationName,
    SelectSettings,
    Settings,
    TokenizerSettings,
    TuneSettings,
)

MethodName = Literal[PropagationName, "auto"]
TunedName = Literal[MethodName, "direct"]
LABEL = r"[\w-]+"


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[TunedName], BeforeValidator(_listed)]
Tuned = Annotated[Names, Field(min_length=1)]


class PretrainStage(PretrainSettings):
    """Continued pre-training on the new language, and on what shall not be lost."""

    replay: dict[str, PositiveFloat] = Field(
        {},
        description="old text among the new: characters of a language for each one of the new language",
    )


class CalibrateStage(CalibrateSettings):
    """Self-calibration of one of the propagated models."""

    after: Tuned = Field(
        ["conversion"], description="the propagated models to calibrate; direct: what it made"
    )
    new_rows: Names = Field(
        [], description="models of which new rows alone are calibrated, beside those of after"
    )
    prompts: str | None = Field(
        None, description="messages jsonl (default: tasks made from the training text)"
    )
    prompt_tasks: int = Field(100, gt=0, description="made prompts of each task and language")


class TuneStage(TuneSettings):
    """Instruction tuning of one of the propagated models."""

    after: Tuned = Field(
        ["conversion"], description="the propagated models to tune; direct: what it made"
    )
    data: str | None = Field(
        None, description="messages jsonl (default: tasks made from the training text)"
    )
    data_tasks: int = Field(300, gt=0, description="made samples of each task and language")


class Recipe(Settings):
    """All of a run. Relative paths start at the recipe's folder; `${NAME:-default}` reads the environment."""

    name: str = Field(description="names the run folder, runs/NAME")
    title: str = Field("", description="heading of the report")
    note: str = Field("", description="a sentence at the top of the report")
    base: str = Field(description="base model: folder or hub id")
    instruct: str = Field(description="instruct model tuned from it")
    language: str = Field(description="the new language, one of those under text")
    text: dict[str, str | list[str]] = Field(
        description="corpus paths by language code", min_length=1
    )
    heldout: dict[str, str | list[str]] = Field(
        {}, description="held-out text by language, where there is some"
    )
    corpus: CorpusSettings = CorpusSettings()
    tokenizer: TokenizerSettings
    init: InitSettings = InitSettings()
    pretrain: PretrainStage
    propagate: list[MethodName] = Field(["swap", "overlap", "conversion"], min_length=1)
    direct: bool = Field(
        False,
        description="the baseline, too: train new rows of the instruct model on the same text",
    )
    select: SelectSettings = Field(
        SelectSettings(), description="what auto chooses on, where propagate lists it"
    )
    calibrate: CalibrateStage | None = None
    tune: TuneStage | None = None
    evaluate: EvaluateSettings = EvaluateSettings()


class GridSettings(Settings):
    """Many runs in one recipe: every combination of the axes' values, for every seed; common stages run once."""

    axes: dict[str, dict[str, dict[str, Any]]] = Field(
        {}, description="axis, value, and what it changes in the recipe"
    )
    cells: list[dict[str, str | list[str]]] = Field(
        [], description="which combinations: those that one of these describes (default: all)"
    )
    seeds: list[int] = Field([0], min_length=1, description="of pretrain, calibrate and tune")


@dataclass(frozen=True)
class Cell:
    """One combination: the value of each axis, the seed (None in a recipe without a grid), and its whole recipe."""

    labels: dict[str, str]
    seed: int | None
    recipe: Recipe


@dataclass(frozen=True)
class Grid:
    """What a recipe file asks for; one cell unless it has a grid."""

    cells: list[Cell]

    @property
    def name(self) -> str:
        return self.cells[0].recipe.name

    @property
    def is_single(self) -> bool:
        return self.cells[0].seed is None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `no` is a word, `1e-4` a number, `012` twelve; no key twice."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:null|~|)$"), ["n", "~", ""]
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a file, of a grid its first one; see `load_grid`."""
    return load_grid(path, overrides).cells[0].recipe


def load_grid(path: Path, overrides: list[str] | None = None) -> Grid:
    """Read and check all recipes of a file; `overrides` are `section.key=value` strings.

    Raises `RecipeError` with file, line, and the nearest valid key for whatever is wrong.
    """
    if not path.is_file():
        raise RecipeError(f"there is no recipe {path}: check the path")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{path} must hold 'key: value' lines")
    lines: dict[tuple[str | int, ...], int] = {}
    content = _plain(node, (), lines, path)
    places = {key: f"{path}, line {line}" for key, line in lines.items()}
    for override in overrides or []:
        _override(content, override, places)
    folder = path.resolve().parent
    if "grid" not in content:
        return Grid([Cell({}, None, _recipe(content, places, path, folder))])
    grid = _checked(GridSettings, {"grid": content.pop("grid")}, places, path)
    cells = []
    for seed, labels in itertools.product(grid.seeds, _combinations(grid, places, path)):
        own, own_places = copy.deepcopy(content), dict(places)
        for axis, value in labels.items():
            _merge(own, grid.axes[axis][value], (), ("grid", "axes", axis, value), own_places)
        for override in overrides or []:  # the command line's word is the last
            if not override.startswith("grid."):
                _override(own, override, own_places)
        for section in ("pretrain", "calibrate", "tune"):
            if isinstance(own.get(section), dict):
                if "seed" in own[section]:
                    place = _place(own_places, path, section, "seed")
                    raise RecipeError(
                        f"{place}: {section}.seed is set, but the seeds of a grid are grid.seeds"
                    )
                own[section]["seed"] = str(seed)
        cells.append(Cell(labels, seed, _recipe(own, own_places, path, folder)))
    return Grid(cells)


def _place(places: dict, path: Path | str, *at: str | int) -> str:
    """Where a key was given, or the nearest section around it."""
    return next(
        (places[at[:length]] for length in range(len(at), -1, -1) if at[:length] in places),
        str(path),
    )


def _combinations(grid: GridSettings, places: dict, path: Path) -> list[dict[str, str]]:
    """The values of the axes of each cell; raises `RecipeError` for a name that no axis has."""
    for axis, values in grid.axes.items():
        for name in (axis, *values):
            if not re.fullmatch(LABEL, name):
                place = _place(
                    places, path, "grid", "axes", axis, *([name] if name != axis else [])
                )
                raise RecipeError(
                    f"{place}: '{name}' shall name folders: use letters, digits, - and _"
                )
    for number, cell in enumerate(grid.cells):
        for axis, wanted in cell.items():
            for value in _listed(wanted):
                if value not in grid.axes.get(axis, {}):
                    known = ", ".join(grid.axes.get(axis, grid.axes)) or "none"
                    place = _place(places, path, "grid", "cells", number, axis)
                    raise RecipeError(
                        f"{place}: no axis '{axis}' has a value '{value}' (known: {known})"
                    )
    every = [
        dict(zip(grid.axes, values, strict=True))
        for values in itertools.product(*grid.axes.values())
    ]
    chosen = [
        labels
        for labels in every
        if not grid.cells
        or any(all(labels[a] in _listed(w) for a, w in cell.items()) for cell in grid.cells)
    ]
    if not chosen:
        raise RecipeError(
            f"{_place(places, path, 'grid')}: the grid has no combination: give each axis a value"
        )
    return chosen


def _merge(
    target: dict[str, Any], changes: dict[str, Any], at: tuple, source: tuple, places: dict
) -> None:
    """Put nested changes into the recipe's content; `places` then say where each came from."""
    for key, value in changes.items():
        places[(*at, key)] = _place(places, "the grid", *source, key)
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value, (*at, key), (*source, key), places)
        else:
            target[key] = copy.deepcopy(value)


def _recipe(content: dict[str, Any], places: dict, path: Path, folder: Path) -> Recipe:
    return _located(_checked(Recipe, content, places, path), folder, places)


def _checked(kind: type[Settings], content: dict[str, Any], places: dict, path: Path) -> Any:
    """`content` as settings; `GridSettings` are read from its key `grid`."""
    try:
        return kind.model_validate(content["grid"] if kind is GridSettings else content)
    except ValidationError as error:
        raise RecipeError(_explain(error, places, str(path), kind)) from error


def _plain(node: yaml.Node, at: tuple[str | int, ...], lines: dict, path: Path) -> Any:
    """The node as dicts, lists, strings, bools and None; numbers stay strings for the typed fields to read."""
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in found:
                raise RecipeError(f"{path}, line {line}: the key '{key.value}' is there twice")
            lines[(*at, key.value)] = line
            found[key.value] = _plain(value, (*at, key.value), lines, path)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(value, (*at, i), lines, path) for i, value in enumerate(node.value)]
    if node.tag.endswith(":null"):
        return None
    if node.tag.endswith(":bool"):
        return node.value == "true"
    value = _environment(node.value, f"{path}, line {node.start_mark.line + 1}")
    return value.replace("_", "") if re.fullmatch(r"[-+]?\d[\d_]*", value) else value


def _environment(value: str, place: str) -> str:
    def look_up(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        found = os.environ.get(name) or default
        if found is None:
            raise RecipeError(
                f"{place}: the environment variable {name} is not set: export it, or write a path"
            )
        return found

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", look_up, value)


def _override(content: dict[str, Any], override: str, places: dict) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise RecipeError(
            f"'{override}' is not of the form key=value, for example pretrain.tokens=100000"
        )
    *sections, last = name.split(".")
    target = content
    for section in sections:
        if not isinstance(target.setdefault(section, {}), dict):
            raise RecipeError(f"'{override}': {section} is not a section of the recipe")
        target = target[section]
    try:
        target[last] = (
            yaml.safe_load(value) if value.startswith(("[", "{")) or value == "null" else value
        )
    except yaml.YAMLError as error:
        raise RecipeError(f"'{override}' cannot be read: close its brackets and quotes") from error
    places[(*sections, last)] = f"command line, {override}"
    other = {"tokens": "epochs", "epochs": "tokens"}.get(
        last
    )  # two ways to say how much: the one given here counts
    if (
        other
        and value != "null"
        and not places.get((*sections, other), "").startswith("command line")
    ):
        target.pop(other, None)


def _explain(error: ValidationError, places: dict, path: str, kind: type[Settings]) -> str:
    faults = error.errors()
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    at = (("grid",) if kind is GridSettings else ()) + first["loc"]
    at = tuple(part for part in at if part not in ("str", "list[str]"))
    while at and isinstance(at[-1], int) and at not in places:  # a single value where a list may be
        at = at[:-1]
    place, name = _place(places, path, *at), ".".join(map(str, at))
    if first["type"] == "extra_forbidden":
        section = _section(at[:-1]) if kind is Recipe else GridSettings.model_fields
        near = difflib.get_close_matches(str(at[-1]), list(section), n=1, cutoff=0.5)
        advice = f"did you mean '{near[0]}'?" if near else f"the keys are {', '.join(section)}"
        return f"{place}: unknown key '{name}'; {advice}"
    if first["type"] == "missing":
        return f"{place}: the key '{name}' is missing"
    if first["type"] == "value_error":  # of several settings together
        return f"{place}: {name}: {first['ctx']['error']}"
    return f"{place}: {name} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _section(at: tuple[str | int, ...]) -> dict[str, Any]:
    """The fields of the recipe's section at a path."""
    model: type[BaseModel] = Recipe
    for part in at:
        annotation = model.model_fields[str(part)].annotation
        kinds = [annotation, *getattr(annotation, "__args__", ())]
        model = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return dict(model.model_fields)


def _located(recipe: Recipe, folder: Path, places: dict) -> Recipe:
    """The recipe with its relative paths made absolute, where they exist beside the recipe."""

    def absolute(value: str) -> str:
        return str((folder / value).resolve()) if (folder / value).exists() else value

    if recipe.language not in recipe.text:
        raise RecipeError(
            f"{places[('language',)]}: language is '{recipe.language}', and text has only {', '.join(recipe.text)}"
        )
    changed: dict[str, Any] = {"base": absolute(recipe.base), "instruct": absolute(recipe.instruct)}
    for name in ("text", "heldout"):
        changed[name] = {
            code: [absolute(p) for p in (paths if isinstance(paths, list) else [paths])]
            for code, paths in getattr(recipe, name).items()
        }
    if unknown := sorted(set(recipe.heldout) - set(recipe.text)):
        raise RecipeError(
            f"{places[('heldout', unknown[0])]}: heldout has '{unknown[0]}', which text has not"
        )
    old = sorted(set(recipe.text) - {recipe.language})
    for code in set(recipe.pretrain.replay) - set(old):
        place = _place(places, "the recipe", "pretrain", "replay", code)
        raise RecipeError(
            f"{place}: replay has '{code}', and the old languages of text are {', '.join(old) or 'none'}"
        )
    looked_at = {
        code: [absolute(p) for p in paths] for code, paths in recipe.pretrain.eval_text.items()
    }
    changed["pretrain"] = recipe.pretrain.model_copy(update={"eval_text": looked_at})
    for name in ("speed", "prompts"):
        if getattr(recipe.evaluate, name):
            place = _place(places, "the recipe", "evaluate", name)
            raise RecipeError(
                f"{place}: evaluate.{name} compares models: give --{name} to lep evaluate after the run"
            )
    benchmark = recipe.evaluate.benchmark
    if benchmark.data:
        found = benchmark.model_copy(update={"data": absolute(benchmark.data)})
        changed["evaluate"] = recipe.evaluate.model_copy(update={"benchmark": found})
    if recipe.calibrate:
        named = {name: getattr(recipe.calibrate, name) for name in ("prompts", "judge")}
        changed["calibrate"] = recipe.calibrate.model_copy(
            update={name: absolute(value) for name, value in named.items() if value}
        )
    if recipe.tune and recipe.tune.data:
        changed["tune"] = recipe.tune.model_copy(update={"data": absolute(recipe.tune.data)})
    for stage in ("calibrate", "tune"):
        settings = getattr(recipe, stage)
        made = [*recipe.propagate, *(["direct"] if recipe.direct else [])]
        wanted = {"after": settings.after if settings else []}
        if stage == "calibrate" and recipe.calibrate:
            wanted["new_rows"] = recipe.calibrate.new_rows
        for key, names in wanted.items():
            missing = [name for name in names if name not in made]
            if not missing:
                continue
            why = (
                "the recipe does not make: set direct: true"
                if missing == ["direct"]
                else "propagate does not list"
            )
            place = _place(places, "the recipe", stage, key)
            raise RecipeError(f"{place}: {stage} comes after '{missing[0]}', which {why}")
    return recipe.model_copy(update=changed)
