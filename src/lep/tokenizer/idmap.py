"""Where each token id went when a vocabulary changed."""

from dataclasses import dataclass
from pathlib import Path

from lep.errors import TokenizerError, foreign
from lep.files import read_json, write_json
from lep.limits import VOCABULARY
from lep.tokenizer.vocabulary import Vocabulary

ID_MAP_FILE = "id_map.json"


@dataclass(frozen=True)
class IdMap:
    """`target[i]` is the new id of source id i, or None for a dropped token or an unused id."""

    target: tuple[int | None, ...]
    target_size: int

    @classmethod
    def between(cls, source: Vocabulary, target: Vocabulary) -> "IdMap":
        """Match two vocabularies token by token: by their bytes, added tokens by name."""
        ids = (
            None if token is None else i if target.has(token, i) else target.ids.get(token)
            for i, token in enumerate(source.tokens)
        )
        return cls(tuple(ids), len(target))

    @property
    def kept(self) -> list[int]:
        """Ids that have the same token as before."""
        return [i for i, new in enumerate(self.target) if i == new]

    @property
    def moved(self) -> dict[int, int]:
        """New id of each token whose id changed."""
        return {i: new for i, new in enumerate(self.target) if new is not None and new != i}

    @property
    def dropped(self) -> list[int]:
        """Source ids whose token is not in the target vocabulary."""
        return [i for i, new in enumerate(self.target) if new is None]

    @property
    def new(self) -> list[int]:
        """Target ids that no source token has."""
        return sorted(set(range(self.target_size)) - set(self.target))

    def save(self, path: Path) -> None:
        """Write sizes and moved, dropped and new ids as JSON; all other ids are kept."""
        record = {
            "source_size": len(self.target),
            "target_size": self.target_size,
            "kept": len(self.kept),
            "moved": list(self.moved.items()),
            "dropped": self.dropped,
            "new": self.new,
        }
        write_json(path, record)

    @classmethod
    def load(cls, path: Path) -> "IdMap":
        """Read what `save` wrote. Raises `TokenizerError` for anything else."""
        record = read_json(path, TokenizerError)
        with foreign(f"{path} is no map of ids", "make the tokenizer again", TokenizerError):
            moved, dropped = dict(record["moved"]), set(record["dropped"])
            for name in ("source_size", "target_size"):
                VOCABULARY.check(record[name], f"{name} in {path}", TokenizerError)
            ids = range(record["source_size"])
            target = [None if i in dropped else moved.get(i, i) for i in ids]
            return cls(tuple(target), record["target_size"])
