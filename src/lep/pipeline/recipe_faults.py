"""What is wrong with a recipe, in words: where it was written, and the nearest valid key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lep.errors import RecipeError
from lep.settings import Settings, nearest

Key = tuple[str | int, ...]  # sections, then the key or the number of a list's entry


@dataclass
class Origins:
    """Where each key of a recipe was written: `FILE, line N` or `command line, KEY=VALUE`."""

    path: Path
    by_key: dict[Key, str] = field(default_factory=dict)

    def of(self, key: Key) -> str:
        """The origin of a key, or of the nearest section around it."""
        around = (key[:length] for length in range(len(key), -1, -1))
        return next((self.by_key[k] for k in around if k in self.by_key), str(self.path))

    def fault(self, key: Key, message: str) -> RecipeError:
        return RecipeError(f"{self.of(key)}: {message}")

    def invalid(
        self, error: ValidationError, settings: type[Settings], section: Key
    ) -> RecipeError:
        """The first fault of a validation of a recipe's section; an unknown key comes before others."""
        faults = error.errors()
        fault: Any = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
        key = section + fault["loc"]
        while key and isinstance(key[-1], int) and key not in self.by_key:
            key = key[:-1]  # a single value where a list may stand
        name = ".".join(map(str, key))
        if fault["type"] == "extra_forbidden":
            near = nearest(str(key[-1]), section_keys(settings, fault["loc"][:-1]))
            return self.fault(key, f"unknown key '{name}'; {near}")
        if fault["type"] == "missing":
            return self.fault(key, f"the key '{name}' is missing")
        if fault["type"] == "value_error":  # of several settings together
            return self.fault(key, f"{name}: {fault['ctx']['error']}")
        message = f"{fault['msg'][0].lower()}{fault['msg'][1:]}"
        return self.fault(key, f"{name} is {fault['input']!r}: {message}")


def section_keys(settings: type[BaseModel], section: Key) -> list[str]:
    """The valid keys of a section."""
    for part in section:
        annotation = settings.model_fields[str(part)].annotation
        types = (annotation, *getattr(annotation, "__args__", ()))  # of `Section | None`, too
        settings = next(t for t in types if isinstance(t, type) and issubclass(t, BaseModel))
    return list(settings.model_fields)
