"""What is wrong with a recipe, in words: where it was written, and the nearest valid key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lep.errors import RecipeError
from lep.settings import Settings, nearest


def joined(section: str, *names: object) -> str:
    """A key as on the command line, `section.name`; entries of a list have their number as name."""
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

    def fault(self, key: str, message: str) -> RecipeError:
        return RecipeError(f"{self.of(key)}: {message}")

    def invalid(
        self, error: ValidationError, settings: type[Settings], section: str
    ) -> RecipeError:
        """The first fault of a section as it was validated; unknown keys come before all others."""
        faults = error.errors()
        fault: Any = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
        *sections, name = fault["loc"] or ("",)
        key = joined(section, *sections, name)
        if (
            isinstance(name, int) and key not in self.by_key
        ):  # a single value where a list may stand
            key = joined(section, *sections)
        if fault["type"] == "extra_forbidden":
            near = nearest(str(name), section_keys(settings, sections))
            return self.fault(key, f"unknown key '{key}'; {near}")
        if fault["type"] == "missing":
            return self.fault(key, f"the key '{key}' is missing")
        if fault["type"] == "value_error":  # of several settings together
            return self.fault(key, f"{key}: {fault['ctx']['error']}")
        message = f"{fault['msg'][0].lower()}{fault['msg'][1:]}"
        return self.fault(key, f"{key} is {fault['input']!r}: {message}")


def section_keys(settings: type[BaseModel], sections: list[Any]) -> list[str]:
    """The valid keys of a section inside others."""
    for name in sections:
        annotation = settings.model_fields[name].annotation
        types = (annotation, *getattr(annotation, "__args__", ()))  # of `Section | None`, too
        settings = next(t for t in types if isinstance(t, type) and issubclass(t, BaseModel))
    return list(settings.model_fields)
