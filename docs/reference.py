"""The pages of the reference that are written from the code: settings, verbs, functions."""

import inspect
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import click
import typer
from pydantic_core import PydanticUndefined

import lep
from lep.cli import app
from lep.fields import Setting
from lep.pipeline.recipe import Recipe

TYPES = {str: "text", int: "integer", float: "number", bool: "true or false"}


def settings() -> str:
    """Every key of a recipe, by section."""
    head = """# Settings

The keys of a [recipe](recipes.md), with their defaults. A setting of a stage is also an option of
its verb: `pretrain.block_size` is `--block-size` of `lep pretrain`.
"""
    sections: dict[str, list[str]] = {}
    for setting in Setting.all_of(Recipe):
        *section, name = setting.location
        row = [
            f"`{name}`",
            _type(setting.type),
            _setting_default(setting),
            _cell(setting.description),
        ]
        sections.setdefault(".".join(section), []).append(_row(row))
    parts = [head]
    for section, rows in sections.items():
        title = f"\n## {section or 'The recipe itself'}\n"
        parts += [title, _row(["key", "value", "default", "meaning"]), "|---|---|---|---|", *rows]
    return "\n".join(parts) + "\n"


def verbs() -> str:
    """Every verb with its options."""
    parts = ["# Verbs\n\n`lep VERB --help` prints the same.\n"]
    for name, command in _commands(typer.main.get_command(app), "lep"):
        parts.append(f"\n## {name}\n\n{command.help}\n")
        arguments = [
            p
            for p in command.params
            if isinstance(p, click.Argument) or not p.opts[0].startswith("-")
        ]
        usage = " ".join([name, *(str(p.name).upper() for p in arguments), "[OPTIONS]"])
        parts += [
            f"```text\n{usage}\n```\n",
            _row(["option", "default", "meaning"]),
            "|---|---|---|",
        ]
        for parameter in command.params:
            if parameter.name == "help":
                continue
            names = ", ".join(f"`{option}`" for option in parameter.opts)
            default = "required" if parameter.required else _default(parameter.default)
            parts.append(_row([names, default, _cell(getattr(parameter, "help", "") or "")]))
    return "\n".join(parts) + "\n"


def functions() -> str:
    """Every public name; mkdocstrings writes signature and docstring."""
    names = {name: getattr(lep, name) for name in lep.__all__}
    groups = {
        "Verbs and functions": [v for v in names.values() if inspect.isfunction(v)],
        "Objects": [
            v for n, v in names.items() if inspect.isclass(v) and not n.endswith("Settings")
        ],
    }
    head = """# Python

The public names of the package `lep`; they load on first use. Keywords that a function passes on
are the [settings](settings.md) of its stage. [Examples](../how-to/python.md).
"""
    parts = [head]
    for group, values in groups.items():
        parts.append(f"\n## {group}\n")
        parts += [f"::: {value.__module__}.{value.__name__}\n" for value in values]
    return "\n".join(parts)


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    for verb, each in sorted(getattr(command, "commands", {}).items()):
        if getattr(each, "commands", None):
            yield from _commands(each, f"{name} {verb}")
        elif not each.hidden:
            yield f"{name} {verb}", each


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (list, tuple):
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"{_type(inner[1])}, by name"
    return TYPES.get(annotation, "text")


def _setting_default(setting: Setting) -> str:
    field = setting.settings.model_fields[setting.name]
    if field.default_factory_takes_validated_data:
        return "depends on others"
    return _default(setting.default)


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value in (None, "", [], {}, ()):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{', '.join(map(str, value)) if isinstance(value, list | tuple) else value}`"


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text[:1].upper() + text[1:]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


PAGES = {"settings": settings, "verbs": verbs, "python": functions}
