"""The recipe: one typed YAML file that says everything a run depends on."""

import difflib
import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

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


class CalibrateStage(CalibrateSettings):
    """Self-calibration of one of the propagated models."""

    after: MethodName = Field("conversion", description="the propagated model to calibrate")
    prompts: str | None = Field(None, description="messages jsonl (default: tasks made from the training text)")
    prompt_tasks: int = Field(100, gt=0, description="made prompts of each task and language")


class TuneStage(TuneSettings):
    """Instruction tuning of one of the propagated models."""

    after: MethodName = Field("conversion", description="the propagated model to tune")
    data: str | None = Field(None, description="messages jsonl (default: tasks made from the training text)")
    data_tasks: int = Field(300, gt=0, description="made samples of each task and language")


class Recipe(Settings):
    """All of a run. Relative paths start at the recipe's folder; `${NAME:-default}` reads the environment."""

    name: str = Field(description="names the run folder, runs/NAME")
    title: str = Field("", description="heading of the report")
    note: str = Field("", description="a sentence at the top of the report")
    base: str = Field(description="base model: folder or hub id")
    instruct: str = Field(description="instruct model tuned from it")
    language: str = Field(description="the new language, one of those under text")
    text: dict[str, str | list[str]] = Field(description="corpus paths by language code", min_length=1)
    heldout: dict[str, str | list[str]] = Field({}, description="held-out text by language, where there is some")
    corpus: CorpusSettings = CorpusSettings()
    tokenizer: TokenizerSettings
    init: InitSettings = InitSettings()
    pretrain: PretrainSettings
    propagate: list[MethodName] = Field(["swap", "overlap", "conversion"], min_length=1)
    select: SelectSettings = Field(SelectSettings(), description="what auto chooses on, where propagate lists it")
    calibrate: CalibrateStage | None = None
    tune: TuneStage | None = None
    evaluate: EvaluateSettings = EvaluateSettings()


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `no` is a word, `1e-4` a number, `012` twelve; no key twice."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:null|~|)$"), ["n", "~", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read and check a recipe; `overrides` are `section.key=value` strings.

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
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(_explain(error, places, str(path))) from error
    return _located(recipe, path.resolve().parent, places)


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
            raise RecipeError(f"{place}: the environment variable {name} is not set: export it, or write a path")
        return found

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", look_up, value)


def _override(content: dict[str, Any], override: str, places: dict) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise RecipeError(f"'{override}' is not of the form key=value, for example pretrain.tokens=100000")
    *sections, last = name.split(".")
    target = content
    for section in sections:
        if not isinstance(target.setdefault(section, {}), dict):
            raise RecipeError(f"'{override}': {section} is not a section of the recipe")
        target = target[section]
    target[last] = yaml.safe_load(value) if value.startswith(("[", "{")) or value == "null" else value
    places[(*sections, last)] = f"command line, {override}"


def _explain(error: ValidationError, places: dict, path: str) -> str:
    faults = error.errors()
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    at = tuple(part for part in first["loc"] if part not in ("str", "list[str]"))
    known = next((at[:length] for length in range(len(at), -1, -1) if at[:length] in places), ())
    place, name = places.get(known, path), ".".join(map(str, at))
    if first["type"] == "extra_forbidden":
        section = _section(at[:-1])
        near = difflib.get_close_matches(str(at[-1]), list(section), n=1, cutoff=0.5)
        advice = f"did you mean '{near[0]}'?" if near else f"the keys are {', '.join(section)}"
        return f"{place}: unknown key '{name}'; {advice}"
    if first["type"] == "missing":
        return f"{place}: the key '{name}' is missing"
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
    changed: dict[str, Any] = {
        "base": absolute(recipe.base),
        "instruct": absolute(recipe.instruct),
    }
    for name in ("text", "heldout"):
        changed[name] = {
            code: [absolute(p) for p in (paths if isinstance(paths, list) else [paths])]
            for code, paths in getattr(recipe, name).items()
        }
    if unknown := sorted(set(recipe.heldout) - set(recipe.text)):
        raise RecipeError(f"{places[('heldout', unknown[0])]}: heldout has '{unknown[0]}', which text has not")
    looked_at = {code: [absolute(p) for p in paths] for code, paths in recipe.pretrain.eval_text.items()}
    changed["pretrain"] = recipe.pretrain.model_copy(update={"eval_text": looked_at})
    if recipe.calibrate and recipe.calibrate.prompts:
        changed["calibrate"] = recipe.calibrate.model_copy(update={"prompts": absolute(recipe.calibrate.prompts)})
    if recipe.tune and recipe.tune.data:
        changed["tune"] = recipe.tune.model_copy(update={"data": absolute(recipe.tune.data)})
    for stage in ("calibrate", "tune"):
        settings = getattr(recipe, stage)
        if settings and settings.after not in recipe.propagate:
            place = places.get((stage, "after"), places[(stage,)])
            raise RecipeError(f"{place}: {stage} comes after '{settings.after}', which propagate does not list")
    return recipe.model_copy(update=changed)
