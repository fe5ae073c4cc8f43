"""What became of each token id when a vocabulary changed."""

import json
from dataclasses import dataclass
from pathlib import Path

from lep.tokenizer.vocabulary import Vocabulary

ID_MAP_FILE = "id_map.json"


@dataclass(frozen=True)
class IdMap:
    """`target[i]` is the new id of source id i, or None where the token was dropped (or never was)."""

    target: tuple[int | None, ...]
    target_size: int

    @classmethod
    def between(cls, source: Vocabulary, target: Vocabulary) -> "IdMap":
        """Match two vocabularies token by token: by their bytes, added tokens by name."""
        found: list[int | None] = []
        for i, token in enumerate(source.tokens):
            if token is None:
                found.append(None)
            elif i < len(target) and target.tokens[i] == token:
                found.append(i)
            else:
                found.append(target.ids.get(token))
        return cls(tuple(found), len(target))

    @property
    def kept(self) -> list[int]:
        """Ids that mean what they meant."""
        return [i for i, new in enumerate(self.target) if i == new]

    @property
    def moved(self) -> dict[int, int]:
        """New id of each token that has another one."""
        return {i: new for i, new in enumerate(self.target) if new is not None and new != i}

    @property
    def dropped(self) -> list[int]:
        """Ids without a place in the new vocabulary."""
        return [i for i, new in enumerate(self.target) if new is None]

    @property
    def new(self) -> list[int]:
        """Ids of the new vocabulary that no old token has."""
        return sorted(
            set(range(self.target_size)) - {new for new in self.target if new is not None}
        )

    def save(self, path: Path) -> None:
        """Write as JSON: sizes, then moved, dropped and new ids; every other id is kept."""
        content = {
            "source_size": len(self.target),
            "target_size": self.target_size,
            "kept": len(self.kept),
            "moved": list(self.moved.items()),
            "dropped": self.dropped,
            "new": self.new,
        }
        path.write_text(json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: Path) -> "IdMap":
        """Read what `save` wrote."""
        content = json.loads(path.read_text())
        moved, dropped = dict(content["moved"]), set(content["dropped"])
        target = [None if i in dropped else moved.get(i, i) for i in range(content["source_size"])]
        return cls(tuple(target), content["target_size"])
