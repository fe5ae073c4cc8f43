"""Language packs: what one base model learned of a language, in one file, for every model tuned from that base."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import zstandard
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lep import __version__
from lep.checkpoint.adapter import ADAPTER, check_body, check_merged
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import Rows, finite, sha256
from lep.errors import CheckpointError, OutputError, TokenizerError
from lep.mapping import MAPPING_PARTS, VocabularyMapping, row_chunks
from lep.publish import check_output
from lep.tokenizer.load import CARRIED_FILES, load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.transfer.family import Recipient, check_shapes, first_rows, result_ids
from lep.transfer.mappings import adapted_mappings
from lep.transfer.propagate import RECORD, write_result
from lep.transfer.row_streams import as_table, mix, recipient_rows

SAMPLE_ROWS = 256  # of the base's tables, by which its descendants are known
LEAST_COSINE = (
    0.5  # of sampled rows; unrelated models have about 0, heavily tuned ones were seen above 0.8
)
TOKENIZER_FILES = ("tokenizer.json", *(name for name in CARRIED_FILES if "." in name))
FORMAT = 1


@dataclass(frozen=True)
class LanguagePack:
    """The adapted tokenizer, the mapping M, and what each row learned since it was made: `E_adapted - M E_base`."""

    about: dict[str, Any]  # where it comes from, and what its base looks like
    tokenizer: dict[str, bytes]  # file name -> content
    mappings: dict[str, VocabularyMapping]
    learned: dict[str, tuple[Tensor, Tensor]]  # kind -> target rows (n,), differences (n, h)
    sample: dict[str, tuple[Tensor, Tensor]]  # kind -> source rows (m,), the base's rows (m, h)

    def save(self, path: Path) -> None:
        """Write one safetensors file; it takes its name when it is whole."""
        tensors = {"about": _packed(json.dumps(self.about).encode())}
        tensors |= {
            f"tokenizer/{name}": _packed(content) for name, content in self.tokenizer.items()
        }
        for kind, mapping in self.mappings.items():
            if kind != "input" and mapping.equal(self.mappings["input"]):
                continue  # found under the input table
            tensors |= {f"mapping/{kind}/{name}": getattr(mapping, name) for name in MAPPING_PARTS}
        for title, groups in (("learned", self.learned), ("sample", self.sample)):
            for kind, (rows, values) in groups.items():
                tensors |= {f"{title}/{kind}/rows": rows, f"{title}/{kind}/values": values}
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
            partial.chmod(0o644)
            partial.rename(path)
        except SafetensorError as error:  # a full disk
            raise OutputError(f"{path} cannot be written: {error}") from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> "LanguagePack":
        """Raises `CheckpointError` for a file that is not a whole language pack."""
        try:
            tensors = load_file(path)
            about = json.loads(_unpacked(tensors["about"]))
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']}, this lep reads {FORMAT}")
            kinds = list(about["tables"])
            size = about["source_rows"]
            pairs = {
                title: {
                    k: (tensors[f"{title}/{k}/rows"], tensors[f"{title}/{k}/values"]) for k in kinds
                }
                for title in ("learned", "sample")
            }
            owners = {
                kind: kind if f"mapping/{kind}/indices" in tensors else "input" for kind in kinds
            }
            mappings = {
                kind: VocabularyMapping(
                    **{n: tensors[f"mapping/{owner}/{n}"] for n in MAPPING_PARTS}, source_size=size
                )
                for kind, owner in owners.items()
            }
            files = {
                n: _unpacked(tensors[f"tokenizer/{n}"])
                for n in TOKENIZER_FILES
                if f"tokenizer/{n}" in tensors
            }
            for (
                kind,
                mapping,
            ) in mappings.items():  # indices out of range would read and write elsewhere
                hidden = about["tables"][kind]["hidden"]
                for title, end in (
                    ("learned", mapping.check().target_size),
                    ("sample", mapping.source_size),
                ):
                    _check_rows(*pairs[title][kind], end, hidden)
        except (
            SafetensorError,
            KeyError,
            OSError,
            ValueError,
            TypeError,
            zstandard.ZstdError,
        ) as error:
            raise CheckpointError(
                f"{path} is not a language pack ({error}): make it again with lep pack"
            ) from error
        return cls(about, files, mappings, pairs["learned"], pairs["sample"])


def make_pack(
    base: str | Path, adapted: str | Path, output: Path, *, new_only: bool = False
) -> LanguagePack:
    """Write what `adapted` learned beyond `base` to one file; with `new_only`, of the rows of new tokens alone.

    Rows that did not change take no space. Raises `OutputError` where the file exists.
    """
    if output.exists():
        raise OutputError(f"the output {output} exists already: delete it or choose another place")
    source, target = (Checkpoint(model).check() for model in (base, adapted))
    check_shapes(source, target)
    if (target.folder / ADAPTER).exists():
        raise CheckpointError(
            f"{target.folder} was trained with an adapter on its body ({ADAPTER}), and a pack holds rows of tables "
            "only: propagate it instead, or train embeddings or new_rows"
        )
    check_body(check_merged(source), check_merged(target))
    mappings, names = adapted_mappings(source, target), source.tables.by_kind()
    tables = {
        kind: (source.tensor(name), target.tensor(target.tables.by_kind()[kind]))
        for kind, name in names.items()
    }
    for kind, pair in tables.items():
        for model, table in zip((source, target), pair, strict=True):
            all(True for _ in finite(row_chunks(table), f"the {kind} embeddings of {model.folder}"))
    pack = LanguagePack(
        about={
            "format": FORMAT,
            "lep": __version__,
            "base": source.config.get("_name_or_path") or source.folder.name,
            "model_type": source.config.get("model_type"),
            "source_rows": mappings["input"].source_size,
            "source_ids": len(source.vocabulary),
            "source_vocabulary": source.vocabulary.fingerprint(),
            "tables": {
                kind: {"hidden": old.shape[1], "sha256": sha256(old)}
                for kind, (old, _) in tables.items()
            },
            "new_only": new_only,
            "history": _history(target.folder),
        },
        tokenizer={
            f: (target.folder / f).read_bytes()
            for f in TOKENIZER_FILES
            if (target.folder / f).is_file()
        },
        mappings=mappings,
        learned={
            kind: _learned(mappings[kind], *pair, new_only=new_only)
            for kind, pair in tables.items()
        },
        sample={kind: _sample(source, old) for kind, (old, _) in tables.items()},
    )
    pack.save(output)
    return pack


def apply_pack(
    pack: str | Path, model: str | Path, output: Path, *, force: bool = False
) -> dict[str, float]:
    """Give a model that was tuned from the pack's base the pack's language: `E' = M E_model + learned`.

    That is task arithmetic: each row of the result is the model's own, moved by what the base learned. Rows of
    special tokens are the model's. Returns the mean cosine of the sampled rows of each table with the base's.

    Raises `CheckpointError` for a model of another base (unless `force`), shape or vocabulary.
    """
    check_output(output)
    found, chat = LanguagePack.load(Path(pack)), check_merged(Checkpoint(model).check())
    kinship = check_kin(found, chat, str(pack), force=force)
    with TemporaryDirectory() as place:
        for name, content in found.tokenizer.items():
            Path(place, name).write_bytes(content)
        tokenizer = load_tokenizer(place)
    ids = result_ids(
        found.about["source_ids"], chat, Vocabulary.of(tokenizer), found.mappings["input"]
    )
    recipient = Recipient(chat, tokenizer, found.mappings, ids)
    replaced = {
        name: _moved(found, recipient, kind, name) for kind, name in chat.tables.by_kind().items()
    }
    replaced |= {name: _others(recipient, name) for name in chat.tables.others}
    record = {"method": "pack", "pack": found.about, "cosine": kinship}
    write_result(recipient, replaced, {RECORD: json.dumps(record, indent=2) + "\n"}, output)
    return kinship


def check_kin(
    pack: LanguagePack, model: Checkpoint, place: str, *, force: bool
) -> dict[str, float]:
    """Mean cosine of the sampled rows. Raises `CheckpointError` for a model that the pack does not fit."""
    tables, names = pack.about["tables"], model.tables.by_kind()
    if set(tables) != set(names):
        tied, untied = (
            ("the pack", model.folder) if len(tables) == 1 else (model.folder, "the pack")
        )
        raise CheckpointError(
            f"{tied} ties its embeddings and {untied} does not: the pack is of another base"
        )
    for kind, name in names.items():
        if model.shape(name)[1] != tables[kind]["hidden"]:
            raise CheckpointError(
                f"{model.folder} has hidden size {model.shape(name)[1]}, {place} was made for {tables[kind]['hidden']} "
                f"({pack.about['base']}): give a model tuned from that base"
            )
    if model.vocabulary.fingerprint(pack.about["source_ids"]) != pack.about["source_vocabulary"]:
        raise TokenizerError(
            f"the tokens of {model.folder} are not those of {pack.about['base']}, which {place} was made on: give a "
            "model with its base's own vocabulary"
        )
    kinship = {}
    for kind, name in names.items():
        rows, values = pack.sample[kind]
        kinship[kind] = (
            cosine_similarity(model.tensor(name)[rows].float(), values.float()).mean().item()
        )
        if kinship[kind] < LEAST_COSINE and not force:
            raise CheckpointError(
                f"{model.folder} is not tuned from {pack.about['base']}, which {place} was made on: their {kind} rows "
                f"have a mean cosine of {kinship[kind]:.2f}, and kin have {LEAST_COSINE} or more; --force applies it"
            )
    return kinship


def _moved(pack: LanguagePack, recipient: Recipient, kind: str, name: str) -> Rows:
    """`M E_model` plus what was learned, with the model's own rows in their places."""
    mapping, (rows, values) = recipient.mappings[kind], pack.learned[kind]
    place = torch.full((mapping.target_size,), -1)
    place[rows] = torch.arange(len(rows))

    def moved() -> Iterator[Tensor]:
        table, start = recipient.model.tensor(name), 0
        table = (
            table[: mapping.source_size]
            if len(table) >= mapping.source_size
            else _padded(table, mapping)
        )
        for part in mapping.chunks(table.shape[1]):
            chunk, learned = part(table), place[start : start + part.target_size]
            found = learned >= 0
            wide = torch.promote_types(chunk.dtype, torch.float32)
            chunk[found] = (chunk[found].to(wide) + values[learned[found]].to(wide)).to(chunk.dtype)
            start += part.target_size
            yield chunk

    return recipient_rows(recipient, name, moved)


def _others(recipient: Recipient, name: str) -> Rows:
    """Tensors beside the tables, which no training changed: `M T_model`."""
    mapping = recipient.mappings[recipient.model.tables.kind_of(name)]

    def mixed() -> Iterator[Tensor]:
        table = _padded(as_table(recipient.model.tensor(name)), mapping)
        return (mix(table, part) for part in mapping.chunks(table.shape[1]))

    return recipient_rows(recipient, name, mixed)


def _padded(table: Tensor, mapping: VocabularyMapping) -> Tensor:
    """The table cut or filled with zeros to the rows of the pack's base; what is filled in, no token has."""
    return first_rows(table, table.new_zeros(mapping.source_size, table.shape[1]))


def _learned(
    mapping: VocabularyMapping, base: Tensor, adapted: Tensor, *, new_only: bool
) -> tuple[Tensor, Tensor]:
    found, values, start = [], [], 0
    for part in mapping.chunks(base.shape[1]):
        chunk = adapted[start : start + part.target_size]
        wide = torch.promote_types(chunk.dtype, torch.float32)
        # A row is compared with what it was initialised to, in the type in which it was written then.
        changed = (chunk != part(base).to(chunk.dtype)).any(1)
        if new_only:
            changed &= ~part.copies
        found.append(start + changed.nonzero().flatten())
        values.append((chunk.to(wide) - part(base, dtype=wide))[changed].to(chunk.dtype))
        start += part.target_size
    return torch.cat(found), torch.cat(values)


def _sample(source: Checkpoint, table: Tensor) -> tuple[Tensor, Tensor]:
    ordinary = [
        i
        for i, token in enumerate(source.vocabulary.tokens)
        if token is not None and not token.added
    ]
    rows = torch.tensor(ordinary[:: max(1, len(ordinary) // SAMPLE_ROWS)][:SAMPLE_ROWS])
    return rows, table[rows].clone()


def _check_rows(rows: Tensor, values: Tensor, end: int, hidden: int) -> None:
    if rows.dtype != torch.int64 or values.shape != (len(rows), hidden):
        raise ValueError(
            f"it has {list(values.shape)} values for {list(rows.shape)} rows of {hidden}"
        )
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < end:
        raise ValueError(f"a row lies beyond {end}")


def _history(folder: Path) -> dict[str, Any]:
    """The records of initialisation and training that the adapted model carries."""
    records = {}
    for name in ("init.json", "pretrain.json"):
        if (folder / "lep" / name).exists():
            record = json.loads((folder / "lep" / name).read_text())
            records[name.removesuffix(".json")] = {
                k: v for k, v in record.items() if k not in ("losses",)
            }
    return records


def _packed(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(zstandard.compress(content)), dtype=torch.uint8)


def _unpacked(tensor: Tensor) -> bytes:
    return zstandard.decompress(tensor.numpy().tobytes())
