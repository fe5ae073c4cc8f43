"""Where each key of a recipe was written, for messages about its faults."""

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from lep.errors import RecipeError
from lep.fields import Location, Settings, first_fault


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
        """The first fault of a section of the recipe, as its validation found it."""

        def key(location: Location) -> str:
            name = joined(section, *location)
            is_single = name not in self.by_key and isinstance(location[-1], int)
            return key(location[:-1]) if is_single else name  # one value where a list may stand

        fault = first_fault(settings, error, key)
        return self.fault(key(fault.location), fault.text)
