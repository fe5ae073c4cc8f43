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
    """Where the tokens of a vocabulary are in another one; ids without a token do not count."""

    target: tuple[int | None, ...]  # the new id of each source id; None if dropped or unused
    dropped: list[int]  # source ids whose token is not in the target vocabulary
    new: list[int]  # target ids whose token the source lacks
    target_size: int

    @classmethod
    def between(cls, source: Vocabulary, target: Vocabulary) -> "IdMap":
        """Match two vocabularies token by token: by their bytes, added tokens by name."""
        ids = tuple(
            None if token is None else i if target.has(token, i) else target.ids.get(token)
            for i, token in enumerate(source.tokens)
        )
        pairs = zip(ids, source.tokens, strict=True)
        dropped = [i for i, (new, token) in enumerate(pairs) if new is None and token is not None]
        known = set(ids)
        new = [i for i, t in enumerate(target.tokens) if t is not None and i not in known]
        return cls(ids, dropped, new, len(target))

    @property
    def kept(self) -> list[int]:
        """Ids that have the same token as before."""
        return [i for i, new in enumerate(self.target) if i == new]

    @property
    def moved(self) -> dict[int, int]:
        """New id of each token whose id changed."""
        return {i: new for i, new in enumerate(self.target) if new is not None and new != i}

    def save(self, path: Path) -> None:
        """Write sizes and moved, dropped, unused and new ids as JSON; all others are kept."""
        gone = set(self.dropped)
        record = {
            "source_size": len(self.target),
            "target_size": self.target_size,
            "kept": len(self.kept),
            "moved": list(self.moved.items()),
            "dropped": self.dropped,
            "unused": [i for i, new in enumerate(self.target) if new is None and i not in gone],
            "new": self.new,
        }
        write_json(path, record)

    @classmethod
    def load(cls, path: Path) -> "IdMap":
        """Read what `save` wrote. Raises `TokenizerError` for anything else."""
        record = read_json(path, TokenizerError)
        with foreign(f"{path} is no map of ids", "make the tokenizer again", TokenizerError):
            moved = dict(record["moved"])
            nowhere = {*record["dropped"], *record.get("unused", ())}
            for name in ("source_size", "target_size"):
                VOCABULARY.check(record[name], f"{name} in {path}", TokenizerError)
            ids = range(record["source_size"])
            target = tuple(None if i in nowhere else moved.get(i, i) for i in ids)
            return cls(target, record["dropped"], record["new"], record["target_size"])
