"""What a model was made from: its name, licence and languages, carried from folder to folder."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import TypeAdapter

from lep.errors import CheckpointError, LepError, foreign
from lep.files import read_json, read_text, write_json

ORIGIN = Path("lep") / "origin.json"
CARD = "README.md"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
LICENSE_KEYS = ("license", "license_name", "license_link")  # of a card
LONGEST_FRONT_MATTER = 100_000  # characters
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# How the text of a licence begins, and what the hub calls it.
_BEGINNINGS = {
    r"apache license\s+version 2\.0": "apache-2.0",
    r"(?<!modified )\bmit license": "mit",
    r"llama (\d(?:\.\d)?)\s+community license": "llama{}",
    r"gemma terms of use": "gemma",
    r"\bqwen license agreement": "qwen",
    r"\bqwen research license": "qwen-research",
}
_NAMED = ("qwen", "qwen-research")  # for which the hub has no identifier
BEGINNING = 1_000  # characters


@dataclass(frozen=True)
class Origin:
    """A model that others are made from."""

    name: str  # hub id, or the name of a folder
    license: dict[str, str] = field(default_factory=dict)  # as in a card; empty if unknown
    languages: list[str] = field(default_factory=list)

    @property
    def hub_id(self) -> str | None:
        return self.name if HUB_ID.fullmatch(self.name) else None

    @classmethod
    def of(cls, folder: Path) -> Self:
        """What a result of the model in `folder` is made from.

        That is the model itself, or of an earlier result what that was made from. The licence is
        that of the card, or of a LICENSE file whose beginning is known. Raises `CheckpointError`
        for a damaged record.
        """
        path = folder / ORIGIN
        if _cached_id(folder) is None and path.is_file():
            values = read_json(path, CheckpointError)
            with foreign(f"{path} is damaged", "delete it", CheckpointError):
                return TypeAdapter(cls).validate_python(values)
        data = front_matter(folder)
        license = {key: str(data[key]) for key in LICENSE_KEYS if isinstance(data.get(key), str)}
        if "license" not in license:
            license = _license_of_text(folder)
        languages = data.get("language")
        languages = [languages] if isinstance(languages, str) else languages
        known = isinstance(languages, list) and all(isinstance(code, str) for code in languages)
        return cls(model_name(folder), license, list(languages or []) if known else [])

    def save(self, folder: Path) -> None:
        (folder / ORIGIN).parent.mkdir(exist_ok=True)
        write_json(folder / ORIGIN, asdict(self), indent=2)


def model_name(folder: Path) -> str:
    """The hub id of a download, or the name of a folder."""
    return _cached_id(folder) or folder.resolve().name


def front_matter(folder: Path) -> dict[str, Any]:
    """The YAML at the head of a model's card; empty where there is none that can be read."""
    if not (path := folder / CARD).is_file():
        return {}
    try:
        front = _FRONT_MATTER.match(read_text(path, CheckpointError))
        if front is None or len(front[1]) > LONGEST_FRONT_MATTER:
            return {}
        with foreign(f"{path} cannot be read", "correct its front matter", CheckpointError):
            data = yaml.load(front[1], Loader=_Plain)
    except LepError:  # a card is no reason to refuse a model
        return {}
    return data if isinstance(data, dict) else {}


class _Plain(yaml.SafeLoader):
    """Without aliases, which let a short text stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        return super().compose_node(parent, index)


def license_files(folder: Path) -> list[Path]:
    """The files of a folder that hold the text of a licence."""
    names = ("license", "licence")
    return [p for p in sorted(folder.iterdir()) if p.is_file() and p.name.lower().startswith(names)]


def _license_of_text(folder: Path) -> dict[str, str]:
    for path in license_files(folder):
        try:
            text = " ".join(read_text(path, CheckpointError)[:BEGINNING].lower().split())
        except LepError:
            continue
        for pattern, name in _BEGINNINGS.items():
            if match := re.search(pattern, text):
                name = name.format(*match.groups())
                if name in _NAMED:
                    return {"license": "other", "license_name": name, "license_link": path.name}
                return {"license": name}
    return {}


def _cached_id(folder: Path) -> str | None:
    """The hub id of a folder in the hub's cache, `models--OWNER--NAME/snapshots/COMMIT`."""
    folder = folder.absolute()
    kind, *parts = folder.parents[1].name.split("--") if len(folder.parents) > 1 else [""]
    if folder.parent.name != "snapshots" or kind != "models":
        return None
    name = "/".join(parts)
    return name if HUB_ID.fullmatch(name) else None
