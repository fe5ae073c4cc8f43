"""Read a recipe: YAML, changes from the command line, and the cells of a grid."""

import copy
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from lep.errors import RecipeError, foreign
from lep.fields import Location, first_fault
from lep.files import check_depth, read_text
from lep.limits import RECIPE_BYTES, RECIPE_VALUES
from lep.pipeline.recipe import Cell, Grid, GridSettings, Recipe

Checked = TypeVar("Checked", Recipe, GridSettings)
COMMENTS = {
    "language": "The new language, and its text; the model knows the other languages.",
    "corpus": "How much text is used, and how much is held out.",
    "tokenizer": "How many tokens are added.",
    "init": "How rows of new tokens begin.",
    "adapt": "Joint training of the new rows.",
    "evaluate": "What is measured.",
}
SEEDED = ("adapt", "pretrain", "calibrate", "tune")
# Settings that name files or folders; `*` stands for every key of a section.
PATHS = ["base", "instruct", "text.*", "heldout.*", "pretrain.eval_text.*", "tune.data"]
PATHS += ["calibrate.prompts", "calibrate.judge", "evaluate.benchmark.data"]
PATHS += ["adapt.prompts", "adapt.judge", "adapt.from_pack"]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, of a grid its first one. Raises what `load_grid` raises."""
    return load_grid(path, overrides).cells[0].recipe


def load_grid(recipe: str | Path | Recipe | Grid, overrides: Sequence[str] = ()) -> Grid:
    """Read and check all recipes of a file; `overrides` are `section.key=value` strings.

    A recipe that was read before stays as it is. Raises `RecipeError` with file, line and the
    nearest valid key.
    """
    if isinstance(recipe, str | Path):
        return Draft.read(Path(recipe), overrides).grid()
    if overrides:
        message = "when the recipe is read: load_grid(path, overrides)"
        raise RecipeError(f"give {overrides[0]} {message}")
    return recipe if isinstance(recipe, Grid) else Grid([Cell({}, None, recipe)])


def joined(section: str, *names: object) -> str:
    """A key as on the command line, `section.name`; the name of a list's entry is its number."""
    return ".".join(str(part) for part in (section, *names) if part != "")


@dataclass(frozen=True)
class Origins:
    """Where each key of a recipe was written: `FILE, line N` or `command line, KEY=VALUE`."""

    path: Path
    by_key: dict[str, str] = field(default_factory=dict)

    def of(self, key: str) -> str:
        """The origin of a key, or of the nearest section around it."""
        while key and key not in self.by_key:
            key = key.rpartition(".")[0]
        return self.by_key.get(key, str(self.path))

    def key(self, section: str, location: Location) -> str:
        """The key of a refused value; that of a list if the recipe gives its only entry alone."""
        name = joined(section, *location)
        is_alone = name not in self.by_key and location and isinstance(location[-1], int)
        return self.key(section, location[:-1]) if is_alone else name

    def fault(self, key: str, message: str) -> RecipeError:
        return RecipeError(f"{self.of(key)}: {message}")


@dataclass(frozen=True)
class Draft:
    """The plain values of a recipe, not checked yet, and where each was written."""

    values: dict[str, Any]
    origins: Origins
    overrides: Sequence[str]

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str]) -> "Draft":
        if not path.is_file():
            raise RecipeError(f"there is no recipe {path}: check the path")
        RECIPE_BYTES.check(path.stat().st_size, str(path), RecipeError)
        text, origins = read_text(path, RecipeError), Origins(path)
        with foreign(f"{path} cannot be read", "write plain keys, values and lists", RecipeError):
            draft = cls(_values(text, origins), origins, overrides)
        for override in overrides:
            draft.override(override)
        return draft

    def grid(self) -> Grid:
        """Every cell, checked."""
        if "grid" not in self.values:
            return Grid([Cell({}, None, self.recipe())])
        settings = self.check(GridSettings, self.values.pop("grid"), "grid")
        pairs = itertools.product(settings.seeds, settings.combinations())
        return Grid([self.cell(settings, labels, seed) for seed, labels in pairs])

    def cell(self, grid: GridSettings, labels: dict[str, str], seed: int) -> Cell:
        """A combination's recipe: changed by each axis, then by the command line, then seeded."""
        draft = copy.deepcopy(self)
        for axis, value in labels.items():
            draft.merge(draft.values, grid.axes[axis][value], "", f"grid.axes.{axis}.{value}")
        for override in self.overrides:
            if not override.startswith("grid."):
                draft.override(override)
        for name in SEEDED:
            section = draft.values.get(name)
            if isinstance(section, dict):
                if "seed" in section:
                    message = f"{name}.seed is set, but the seeds of a grid are grid.seeds"
                    raise draft.origins.fault(f"{name}.seed", message)
                section["seed"] = str(seed)
        return Cell(labels, seed, draft.recipe())

    def recipe(self) -> Recipe:
        values, folder = self.values, self.origins.path.resolve().parent
        for path in PATHS:
            values = _located(values, path.split("."), folder)
        return self.check(Recipe, values, "")

    def check(self, settings: type[Checked], values: Any, section: str) -> Checked:
        """`values` as settings. Raises `RecipeError` for the first fault."""
        try:
            checked = settings.model_validate(values)
        except ValidationError as error:
            name = partial(self.origins.key, section)
            fault = first_fault(settings, error, name)
            raise self.origins.fault(name(fault.location), fault.text) from error
        for key, message in checked.faults():
            raise self.origins.fault(joined(section, key), message)
        return checked

    def merge(self, values: dict[str, Any], changes: dict[str, Any], at: str, source: str) -> None:
        """Put nested changes, written at the key `source`, into the section `values` at `at`."""
        for name, value in changes.items():
            key, origin = joined(at, name), joined(source, name)
            self.origins.by_key[key] = self.origins.of(origin)
            if isinstance(value, dict) and isinstance(values.get(name), dict):
                self.merge(values[name], value, key, origin)
            else:
                values[name] = copy.deepcopy(value)

    def override(self, override: str) -> None:
        """Apply one `section.key=value`. Raises `RecipeError` if it cannot be read."""
        key, equals, value = override.partition("=")
        if not equals or not key:
            example = "for example pretrain.tokens=100000"
            raise RecipeError(f"'{override}' is not of the form key=value, {example}")
        *sections, name = key.split(".")
        target = self.values
        for depth, section in enumerate(sections, 1):
            if section not in target:
                self.origins.by_key[".".join(sections[:depth])] = f"command line, {override}"
            if not isinstance(target.setdefault(section, {}), dict):
                raise RecipeError(f"'{override}': {section} is not a section of the recipe")
            target = target[section]
        with foreign(f"'{override}' cannot be read", "close its brackets and quotes", RecipeError):
            is_yaml = value.startswith(("[", "{")) or value == "null"
            target[name] = yaml.safe_load(value) if is_yaml else value
            check_depth(target[name])  # an alias may make a list hold itself
        self.origins.by_key[key] = f"command line, {override}"
        other = {"tokens": "epochs", "epochs": "tokens"}.get(name, "")  # the last one given counts
        origin = self.origins.by_key.get(joined("", *sections, other), "")
        if value != "null" and not origin.startswith("command line"):
            target.pop(other, None)


class Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `no` is a word, `1e-4` a number, `012` twelve; no key twice."""


_TAG = "tag:yaml.org,2002:"
NUMBER = re.compile(r"[-+]?\d[\d_]*")
Loader.yaml_implicit_resolvers = {}
Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"^(?:null|~|)$"), ["n", "~", ""])
Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|false)$"), list("tf"))


def _values(text: str, origins: Origins) -> dict[str, Any]:
    """The content of a recipe as `_plain` gives it. Raises `RecipeError` for other content."""
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{origins.path} is not valid YAML: {reason}") from error
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{origins.path} must hold 'key: value' lines")
    return _plain(node, "", origins)


def _plain(node: yaml.Node, key: str, origins: Origins) -> Any:
    """A node as dicts, lists, strings, bools, None; numbers stay strings for the typed fields."""
    line = f"{origins.path}, line {node.start_mark.line + 1}"
    origins.by_key.setdefault(key, line)
    # Aliases repeat what they stand for, and one that stands for itself never ends.
    RECIPE_VALUES.check(len(origins.by_key), str(origins.path), RecipeError)
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for name, value in node.value:
            inner = joined(key, name.value)
            origins.by_key[inner] = f"{origins.path}, line {name.start_mark.line + 1}"
            if name.value in values:
                raise origins.fault(inner, f"the key '{name.value}' is there twice")
            values[name.value] = _plain(value, inner, origins)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [_plain(entry, joined(key, i), origins) for i, entry in enumerate(node.value)]
    if node.tag in (f"{_TAG}null", f"{_TAG}bool"):
        return None if node.tag.endswith("null") else node.value == "true"
    if "\0" in node.value:  # which no path can hold
        raise origins.fault(key, "a value holds a zero byte: leave it out")
    text = re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda match: _variable(match, line), node.value)
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None  # quoted, it is a word
    is_number = is_plain and NUMBER.fullmatch(text)
    return text.replace("_", "") if is_number else text


def _variable(match: re.Match[str], origin: str) -> str:
    value = os.environ.get(match[1]) or match[2]
    if value is None:
        message = f"the environment variable {match[1]} is not set: export it, or write a path"
        raise RecipeError(f"{origin}: {message}")
    return value


def _located(value: Any, path: Sequence[str], folder: Path) -> Any:
    """`value` with the paths at `path` absolute if they exist in `folder`; others may be ids."""
    if path and isinstance(value, dict):
        name, *rest = path
        return {k: _located(v, rest, folder) if name in (k, "*") else v for k, v in value.items()}
    if isinstance(value, list):
        return [_located(entry, (), folder) for entry in value]
    exists = not path and isinstance(value, str) and (folder / value).exists()
    return str((folder / value).resolve()) if exists else value


class _Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads: numbers are plain words to it."""

    yaml_implicit_resolvers = Loader.yaml_implicit_resolvers

    def represent_word(self, word: str) -> yaml.Node:
        """Quoted where its underscores would be left out of a number."""
        is_number = "_" in word and NUMBER.fullmatch(word)
        return self.represent_scalar(f"{_TAG}str", word, style="'" if is_number else None)


_Dumper.add_representer(str, _Dumper.represent_word)


def as_yaml(values: Mapping[str, Any]) -> str:
    """A recipe as text, with a comment of one line before each section."""
    lines = []
    for key, value in values.items():
        if value == {}:
            continue
        if comment := COMMENTS.get(key):
            lines.append(f"# {comment}\n")
        lines.append(
            yaml.dump({key: value}, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=1000)
        )
    return "".join(lines)
