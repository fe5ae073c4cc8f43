"""What settings are: their fields, flat names for nested ones, text forms, and faults in words."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import Parameter
from types import NoneType
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from lep.errors import LepError

Location = tuple[str | int, ...]  # of a value in nested settings: names, and positions in lists
LONGEST_VALUE = 200  # characters of a refused value that a message repeats
LONGEST_NAME = 100  # bytes of a name that becomes part of a file's name
_NAME = re.compile(r"\w(?:[\w .+@-]*[\w+-])?")
V = TypeVar("V")


class Settings(BaseModel):
    """Base of all settings: unknown names are errors, values cannot be changed afterwards."""

    # Validators are built on first use, so that `lep --help` does not wait for them.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        defer_build=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @classmethod
    def given(cls, settings: Self | None, options: Mapping[str, Any]) -> Self:
        """`settings` unchanged, or new settings with the values of `options`.

        Raises `LepError` if both are given, for an unknown name, and for a value out of range.
        """
        if settings is not None:
            if options:
                raise LepError(f"give {', '.join(options)} in the settings object, or no object")
            return settings
        try:
            return cls(**options)
        except ValidationError as error:
            raise LepError(f"{cls.__name__}: {first_fault(cls, error).text}") from error

    def unhashed(self, settings: "type[Settings] | None" = None) -> dict[str, Any]:
        """The fields on which no result depends, and which no dump has (`exclude`).

        With `settings` only those that this class has too.
        """
        fields = (settings or type(self)).model_fields
        return {name: getattr(self, name) for name, field in fields.items() if field.exclude}


@dataclass(frozen=True)
class Setting:
    """A field of a settings class, or of settings nested in it."""

    location: tuple[str, ...]
    settings: type[BaseModel]  # that has the field

    @classmethod
    def all_of(cls, settings: type[BaseModel], *location: str) -> Iterator["Setting"]:
        """The fields of a class: its own, then those it inherits, then those of nested settings."""
        fields = [cls((*location, name), settings) for name in settings.model_fields]
        fields.sort(key=lambda f: (f.is_section, settings.__mro__.index(f.owner)))
        for field in fields:
            yield from cls.all_of(field.type, *field.location) if field.is_section else [field]

    @property
    def name(self) -> str:
        return self.location[-1]

    @property
    def is_section(self) -> bool:
        return isinstance(self.type, type) and issubclass(self.type, BaseModel)

    @property
    def is_list(self) -> bool:
        """Whether there may be several values: lists, and dictionaries of lists."""
        return not {list, Sequence}.isdisjoint(map(get_origin, (self.type, *get_args(self.type))))

    @property
    def is_required(self) -> bool:
        return self.settings.model_fields[self.name].is_required()

    @property
    def default(self) -> Any:
        return self.settings.model_fields[self.name].get_default(call_default_factory=True)

    @property
    def owner(self) -> type[BaseModel]:
        """The class that declares the field first; derived classes may change its default."""
        return [c for c in self.settings.__mro__ if self.name in getattr(c, "model_fields", ())][-1]

    @property
    def description(self) -> str:
        """The description where the field is declared first, and the names it is limited to."""
        words = (self.owner.model_fields[self.name].description or "").split()
        kind = bare(get_args(self.type)[0]) if get_origin(self.type) is list else self.type
        choices = f"Choices: {', '.join(get_args(kind))}." if get_origin(kind) is Literal else ""
        return " ".join([*words, choices]).rstrip()

    @property
    def heading(self) -> str | None:
        """Of the class that declares the field, for `--help`."""
        return (self.owner.__doc__ or "").removesuffix(".") or None

    @property
    def type(self) -> Any:
        """Without constraints and None."""
        return bare(self.settings.model_fields[self.name].annotation)


@dataclass(frozen=True)
class FlatSettings:
    """A class of settings with flat names: `limit` for `benchmark.limit`."""

    settings: type[Settings]
    names: dict[str, list[Setting]]  # the fields that have a name

    @classmethod
    def of(cls, settings: type[Settings], without: type[Settings] | None = None) -> Self:
        """One name per field, except those that `without` declares.

        Fields of several settings share a name if one class declares them. Otherwise a field
        of `settings` itself replaces one in its section `settings`, and other fields have the name
        of their section in front: `benchmark_tasks`.
        """
        names: dict[str, list[Setting]] = {}
        for setting in Setting.all_of(settings):
            *sections, name = setting.location
            if name in names and names[name][0].owner is not setting.owner:
                if sections == ["settings"]:
                    continue
                name = f"{sections[-1]}_{name}"
            if setting.owner is not without:
                names.setdefault(name, []).append(setting)
        return cls(settings, names)

    def read(self, values: Mapping[str, Any], spelled: Callable[[str], str]) -> Settings:
        """The settings with values by flat name. Raises `LepError` with the name as `spelled`."""
        spellings: dict[Location, str] = {}
        for name, settings in self.names.items():
            spellings |= {setting.location: spelled(name) for setting in settings}
        content: dict[str, Any] = {str(at[0]): {} for at in spellings if at[1:]}
        for name, value in values.items():
            for setting in self.names[name]:
                section = content
                for part in setting.location[:-1]:
                    section = section.setdefault(part, {})
                section[setting.name] = value

        def spelling(location: Location) -> str:
            """Of a value, or of what holds it; a fault of several options together has none."""
            return spellings.get(location) or (spelling(location[:-1]) if location else "")

        try:
            return self.settings.model_validate(content)
        except ValidationError as error:
            raise LepError(first_fault(self.settings, error, spelling).text) from error


class Parameters(Settings):
    """Base of the settings that a function's parameters are."""

    model_config = ConfigDict(use_attribute_docstrings=False)


def settings_of(
    name: str, parameters: Iterable[Parameter], like: type[Settings], texts: Mapping[str, str]
) -> type[Parameters]:
    """A class of settings with a field for each parameter of a function.

    A parameter that is a field of `like` has its default and description; `texts` describe others,
    or describe them better. A dictionary is never required.
    """
    fields: dict[str, Any] = {}
    for parameter in parameters:
        field, default = like.model_fields.get(parameter.name), parameter.default
        if default is parameter.empty:
            default = field.default if field and field.default is not None else ...
            default = {} if get_origin(bare(parameter.annotation)) is dict else default
        text = texts.get(parameter.name) or (field.description if field else None)
        fields[parameter.name] = (parameter.annotation, Field(default, description=text))
    return create_model(name, __base__=Parameters, **fields)


def bare(annotation: Any) -> Any:
    """`int` for `Annotated[int, ...] | None`."""
    if get_origin(annotation) is Annotated or NoneType in get_args(annotation):
        return bare(get_args(annotation)[0])
    return annotation


def split_names(value: Any) -> Any:
    """`A,B` as the list of its names, also as an item of a list."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        return value
    return [name for item in items for name in item.split(",")]


def split_paths(value: Any) -> Any:
    """A list of `LANGUAGE=PATH` as paths by language."""
    if not isinstance(value, list):
        return value
    texts: dict[str, list[str]] = {}
    for pair in value:
        language, _, path = str(pair).partition("=")
        if not language or not path:
            raise ValueError(f"'{pair}' lacks a language or path: write LANGUAGE=PATH")
        texts.setdefault(language, []).append(path)
    return texts


def split_weights(value: Any) -> Any:
    """`NAME=WEIGHT,...` as weights by name."""
    if not isinstance(value, str):
        return value
    pairs = {pair: pair.rpartition("=") for pair in value.split(",") if pair}
    for pair, (name, _, weight) in pairs.items():
        if not name or not weight:
            raise ValueError(f"'{pair}' lacks a name or weight: write NAME=WEIGHT,...")
    return {name: weight for name, _, weight in pairs.values()}


def file_part(name: str) -> str:
    """Return a name that may become part of a file's name. Raises `ValueError` for any other."""
    if not _NAME.fullmatch(name) or len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"{name[:LONGEST_NAME]!r} becomes part of file names: give up to {LONGEST_NAME} bytes "
            "of letters and digits, with ' ', '.', '_', '-', '+' and '@' between them"
        )
    return name


def file_parts(values: dict[str, V]) -> dict[str, V]:
    """Return a dictionary with keys that may be parts of file names; see `file_part`."""
    for name in values:
        file_part(name)
    return values


FileName = Annotated[str, AfterValidator(file_part)]
ByName = AfterValidator(file_parts)


def dotted(location: Location) -> str:
    """`evaluate.tasks.1`, as a recipe names a value."""
    return ".".join(map(str, location))


@dataclass(frozen=True)
class Fault:
    """A refused value: where it is, and why it was refused, in one sentence."""

    location: Location
    text: str


def first_fault(
    settings: type[BaseModel], error: ValidationError, name: Callable[[Location], str] = dotted
) -> Fault:
    """The first fault of a validation; unknown names come before all others.

    `name` says what the user calls the value at a location. The text gives that name, the value,
    what is allowed, and the nearest valid name.
    """
    faults = error.errors()
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    # Where a string or a list is allowed, pydantic adds the type to the location.
    location = tuple(part for part in fault["loc"] if part not in ("str", "list[str]"))
    if fault["type"] == "extra_forbidden":
        advice = nearest(str(location[-1]), section(settings, location[:-1]).model_fields)
        return Fault(location, f"unknown key '{name(location)}'; {advice}")
    if fault["type"] == "missing":
        return Fault(location, f"the key '{name(location)}' is missing")
    if fault["type"] == "value_error":
        label = name(location) if location else ""
        return Fault(location, f"{label}: {fault['ctx']['error']}".removeprefix(": "))
    reason = fault["msg"][0].lower() + fault["msg"][1:].partition(", unable to")[0]
    if fault["type"] == "literal_error":
        choices = re.findall("'(.*?)'", fault["ctx"]["expected"])
        if near := get_close_matches(str(fault["input"]), choices, n=1):
            reason += f"; did you mean '{near[0]}'?"
    value = repr(fault["input"])
    value = value if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]}..."
    return Fault(location, f"{name(location)} is {value}: {reason}")


def nearest(name: str, names: Iterable[str]) -> str:
    """Advice on an unknown name: the nearest valid one, or all of them."""
    near = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"the valid ones are {', '.join(names)}"


def section(settings: type[BaseModel], location: Location) -> type[BaseModel]:
    """The class of the nested settings at a location."""
    for part in location:
        settings = Setting((str(part),), settings).type
    return settings
