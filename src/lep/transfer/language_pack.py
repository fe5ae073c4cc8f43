"""Language packs: what a base model learned, in one file for all models tuned from it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import torch
import zstandard
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lep import __version__
from lep.checkpoint.adapter import ADAPTER, check_body, check_merged
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import read_tensors, sha256, write_tensors
from lep.errors import CheckpointError, TokenizerError, foreign
from lep.files import parse_json, read_json, zstd_content
from lep.limits import JSON_BYTES, VOCABULARY
from lep.mapping import MAPPING_PARTS, VocabularyMapping, row_chunks, rows_at_once
from lep.publish import check_output, created, publishing_file
from lep.result import Result
from lep.tokenizer.load import CARRIED_FILES, load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.transfer.family import check_shapes
from lep.transfer.mappings import adapted_mappings
from lep.transfer.propagate import RECORD, as_json
from lep.transfer.recipient import Recipient, result_ids
from lep.transfer.row_streams import as_table, check_finite, first_rows, mix, recipient_stream
from lep.transfer.write import write_recipient

SAMPLE_ROWS = 256  # of the base's tables, by which models tuned from it are recognised
# Mean cosine of sampled rows: about 0 for unrelated models, above 0.8 for heavily tuned ones.
LEAST_COSINE = 0.5
TOKENIZER_FILES = ("tokenizer.json", *(name for name in CARRIED_FILES if "." in name))
FORMAT = 1
KINDS = {"input", "output"}
SelectedRows = tuple[Tensor, Tensor]  # row numbers (n,) int64, rows (n, h)


@dataclass(frozen=True)
class LanguagePack:
    """The adapted tokenizer, the mapping M, and what rows learned: `E_adapted - M E_base`."""

    about: dict[str, Any]  # the origin of the pack and the properties of its base
    tokenizer: dict[str, bytes]  # {file name: content}
    mappings: dict[str, VocabularyMapping]
    learned: dict[str, SelectedRows]  # {input or output: target rows and differences}
    sample: dict[str, SelectedRows]  # {input or output: source rows and the base's values}

    def write(self, file: IO[bytes]) -> None:
        """Write the pack as safetensors."""
        tensors = {"about": _compressed(json.dumps(self.about).encode())}
        for name, content in self.tokenizer.items():
            tensors[f"tokenizer/{name}"] = _compressed(content)
        for kind, mapping in self.mappings.items():
            if kind == "input" or not mapping.equal(self.mappings["input"]):
                for name in MAPPING_PARTS:
                    tensors[f"mapping/{kind}/{name}"] = getattr(mapping, name)
        for title, groups in (("learned", self.learned), ("sample", self.sample)):
            for kind, (rows, values) in groups.items():
                tensors |= {f"{title}/{kind}/rows": rows, f"{title}/{kind}/values": values}
        write_tensors(file, tensors)

    @classmethod
    def load(cls, path: Path) -> "LanguagePack":
        """Raises `CheckpointError` for a file that is not a complete language pack."""
        advice = "make it again with lep pack"
        tensors = read_tensors(path, advice)
        with foreign(f"{path} is not a language pack", advice, CheckpointError):
            about = _checked(parse_json(_decompressed(tensors["about"]), "its description"))
            VOCABULARY.check(about["source_rows"], f"the base of {path}", CheckpointError)
            names = [name for name in TOKENIZER_FILES if f"tokenizer/{name}" in tensors]
            tokenizer = {name: _decompressed(tensors[f"tokenizer/{name}"]) for name in names}
            mappings = {kind: _mapping(tensors, kind, about) for kind in about["tables"]}
            target_rows = {kind: mapping.target_size for kind, mapping in mappings.items()}
            learned = _selected(tensors, "learned", about, target_rows)
            source_rows = dict.fromkeys(mappings, about["source_rows"])
            sample = _selected(tensors, "sample", about, source_rows)
            return cls(about, tokenizer, mappings, learned, sample)


@dataclass(frozen=True)
class Packed(Result):
    """What `make_pack` wrote."""

    output: Path
    rows: dict[str, int]  # {input or output: rows that learned}

    def __str__(self) -> str:
        rows = ", ".join(f"{count:,} {kind} rows" for kind, count in self.rows.items())
        return f"{rows}; {self.output}, {self.output.stat().st_size / 1e6:.1f} MB"


@dataclass(frozen=True)
class Applied(Result):
    """How close the model is to the base of the pack that it received."""

    output: Path
    cosines: dict[str, float]  # {input or output: mean cosine of sampled rows}

    def __str__(self) -> str:
        close = (f"{k}: mean cosine {c:.3f} with the base's rows" for k, c in self.cosines.items())
        return "\n".join([*close, f"written to {self.output}"])


def make_pack(
    base: str | Path, adapted: str | Path, output: str | Path, *, new_only: bool = False
) -> Packed:
    """Write what `adapted` learned beyond `base` to one file; `new_only`: only rows of new tokens.

    Rows that did not change take no space. Raises `OutputError` where the file exists, and
    `CheckpointError` for models that do not belong together.
    """
    output = Path(output)
    with created(output.parent), publishing_file(output) as file:
        pack = _pack(base, adapted, new_only=new_only)
        pack.write(file)
    return Packed(output, {kind: len(rows) for kind, (rows, _) in pack.learned.items()})


def _pack(base: str | Path, adapted: str | Path, *, new_only: bool) -> LanguagePack:
    source, target = (Checkpoint(model).check() for model in (base, adapted))
    check_shapes(source, target)
    if (target.folder / ADAPTER).exists():
        raise CheckpointError(
            f"{target.folder} was trained with an adapter on its body ({ADAPTER}), and a pack "
            "holds rows of tables only: propagate it instead, or train embeddings or new_rows"
        )
    check_body(check_merged(source), check_merged(target))
    mappings = adapted_mappings(source, target)
    tables, learned = {kind: _finite_table(source, kind) for kind in mappings}, {}
    for kind, mapping in mappings.items():
        trained = _finite_table(target, kind)
        learned[kind] = _learned(mapping, tables[kind], trained, new_only=new_only)
    files = [target.folder / name for name in TOKENIZER_FILES]
    tokenizer = {file.name: file.read_bytes() for file in files if file.is_file()}
    sample = {kind: _sample(source, table) for kind, table in tables.items()}
    about = _about(source, tables, new_only=new_only) | {"history": _history(target.folder)}
    return LanguagePack(about, tokenizer, mappings, learned, sample)


def apply_pack(
    pack: str | Path, model: str | Path, output: str | Path, *, force: bool = False
) -> Applied:
    """Give a model tuned from the pack's base the pack's language: `E' = M E_model + learned`.

    That is task arithmetic: each row is the model's own, moved by what the base learned. Rows of
    added tokens stay the model's.

    Raises `CheckpointError` for a model of another base (unless `force`) or shape, and
    `TokenizerError` for another vocabulary.
    """
    output = Path(output)
    check_output(output)
    language, chat = LanguagePack.load(Path(pack)), check_merged(Checkpoint(model).check())
    cosines = check_kin(language, chat, str(pack), force=force)
    with TemporaryDirectory() as folder:
        for name, content in language.tokenizer.items():
            Path(folder, name).write_bytes(content)
        tokenizer = load_tokenizer(folder)
    target, mappings = Vocabulary.of(tokenizer), language.mappings
    ids = result_ids(language.about["source_ids"], chat, target, mappings["input"])
    recipient, names = Recipient(chat, tokenizer, mappings, ids), chat.tables.by_kind()
    rows = {names[k]: partial(_moved, recipient, k, each) for k, each in language.learned.items()}
    rows |= {name: partial(_mixed, recipient, name) for name in chat.tables.others}
    tensors = {name: recipient_stream(recipient, name, chunks) for name, chunks in rows.items()}
    record = {"method": "pack", "pack": language.about, "cosine": cosines}
    write_recipient(recipient, tensors, {RECORD: as_json(record)}, output)
    return Applied(output, cosines)


def check_kin(pack: LanguagePack, model: Checkpoint, path: str, *, force: bool) -> dict[str, float]:
    """Mean cosine of the sampled rows with the base's, by table.

    Raises `CheckpointError` or `TokenizerError` for a model that the pack does not fit, and for
    rows that are not finite; `force` allows low cosines.
    """
    tables, names, base = pack.about["tables"], model.tables.by_kind(), pack.about["base"]
    if set(tables) != set(names):
        pair = ("the pack", model.folder) if len(tables) == 1 else (model.folder, "the pack")
        raise CheckpointError(
            f"{pair[0]} ties its embeddings and {pair[1]} does not: the pack is of another base"
        )
    for kind, name in names.items():
        if (hidden := model.shape(name)[1]) != tables[kind]["hidden"]:
            raise CheckpointError(
                f"{model.folder} has hidden size {hidden}, {path} was made for "
                f"{tables[kind]['hidden']} ({base}): give a model tuned from that base"
            )
    if model.vocabulary.fingerprint(pack.about["source_ids"]) != pack.about["source_vocabulary"]:
        raise TokenizerError(
            f"the tokens of {model.folder} are not those of {base}, on which {path} was made: give "
            "a model with its base's own vocabulary"
        )
    cosines = {}
    for kind, name in names.items():
        rows, values = pack.sample[kind]
        table = _padded(model.tensor(name), pack.mappings[kind])
        check_finite(table, f"{name} of {model.folder}")
        cosines[kind] = cosine_similarity(table[rows].float(), values.float()).mean().item()
        if not cosines[kind] >= LEAST_COSINE and not force:  # NaN too
            raise CheckpointError(
                f"{model.folder} is not tuned from {base}, on which {path} was made: their {kind} "
                f"rows have a mean cosine of {cosines[kind]:.2f}, related models have "
                f"{LEAST_COSINE} or more; --force applies it"
            )
    return cosines


def _moved(recipient: Recipient, kind: str, learned: SelectedRows) -> Iterator[Tensor]:
    """Chunks of `M E_model` plus what was learned."""
    model, mapping, (rows, values) = recipient.model, recipient.mappings[kind], learned
    index = torch.full((mapping.target_size,), -1)  # of each target row in `values`
    index[rows] = torch.arange(len(rows))
    table = _padded(model.tensor(model.tables.by_kind()[kind]), mapping)
    hidden = table.shape[1]
    indices = index.split(rows_at_once(hidden))
    for part, entries in zip(mapping.chunks(hidden), indices, strict=True):
        chunk, changed = part(table), entries >= 0
        wide = torch.promote_types(chunk.dtype, torch.float32)
        moved = chunk[changed].to(wide) + values[entries[changed]].to(wide)
        chunk[changed] = moved.to(chunk.dtype)
        yield chunk


def _mixed(recipient: Recipient, name: str) -> Iterator[Tensor]:
    """Chunks of `M T_model` for a tensor beside the tables, which training does not change."""
    mapping = recipient.mappings[recipient.model.tables.kind_of(name)]
    table = _padded(as_table(recipient.model.tensor(name)), mapping)
    return (mix(table, part) for part in mapping.chunks(table.shape[1]))


def _padded(table: Tensor, mapping: VocabularyMapping) -> Tensor:
    """The table cut, or filled with zeros that no token uses, to the rows of the pack's base."""
    return first_rows(table, table.new_zeros(mapping.source_size, table.shape[1]))


def _finite_table(model: Checkpoint, kind: str) -> Tensor:
    name = model.tables.by_kind()[kind]
    return check_finite(model.tensor(name), f"{name} of {model.folder}")


def _about(source: Checkpoint, tables: dict[str, Tensor], *, new_only: bool) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "lep": __version__,
        "base": str(source.config.get("_name_or_path") or source.folder.name),
        "model_type": source.config.get("model_type"),
        "source_rows": len(tables["input"]),
        "source_ids": len(source.vocabulary),
        "source_vocabulary": source.vocabulary.fingerprint(),
        "tables": {k: {"hidden": t.shape[1], "sha256": sha256(t)} for k, t in tables.items()},
        "new_only": new_only,
    }


def _history(folder: Path) -> dict[str, Any]:
    """The adapted model's records of initialisation and training."""
    records = {}
    for name in ("init", "pretrain"):
        if (path := folder / "lep" / f"{name}.json").exists():
            records[name] = read_json(path, CheckpointError)
            records[name].pop("losses", None)
    return records


def _learned(
    mapping: VocabularyMapping, base: Tensor, adapted: Tensor, *, new_only: bool
) -> SelectedRows:
    """The rows that training changed, and by how much."""
    masks, values = [], []
    for part, chunk in zip(mapping.chunks(base.shape[1]), row_chunks(adapted), strict=True):
        wide = torch.promote_types(chunk.dtype, torch.float32)
        # Compared with the initial row in the dtype in which that was written.
        changed = (chunk != part(base).to(chunk.dtype)).any(1)
        if new_only:
            changed &= ~part.copies
        masks.append(changed)
        values.append((chunk.to(wide) - part(base, dtype=wide))[changed].to(chunk.dtype))
    return torch.cat(masks).nonzero().flatten(), torch.cat(values)


def _sample(source: Checkpoint, table: Tensor) -> SelectedRows:
    tokens = enumerate(source.vocabulary.tokens)
    ordinary = [i for i, token in tokens if token is not None and not token.added]
    rows = torch.tensor(ordinary[:: max(1, len(ordinary) // SAMPLE_ROWS)][:SAMPLE_ROWS])
    return rows, table[rows].clone()


def _checked(about: Any) -> dict[str, Any]:
    """The description of a pack. Raises `ValueError` for one that lacks a field."""
    if about["format"] != FORMAT:
        raise ValueError(f"its format is {about['format']}, this lep reads {FORMAT}")
    texts, sizes = ("base", "source_vocabulary"), ("source_rows", "source_ids")
    hidden = [table["hidden"] for table in about["tables"].values()]
    if not all(type(about[name]) is str for name in texts) or not about["tables"].keys() <= KINDS:
        raise ValueError("it does not name its base and tables")
    if not all(type(size) is int and size > 0 for size in (*hidden, *map(about.get, sizes))):
        raise ValueError("it does not give the sizes of its base")
    return about


def _mapping(tensors: dict[str, Tensor], kind: str, about: dict[str, Any]) -> VocabularyMapping:
    owner = kind if f"mapping/{kind}/indices" in tensors else "input"
    parts = {name: tensors[f"mapping/{owner}/{name}"] for name in MAPPING_PARTS}
    return VocabularyMapping(**parts, source_size=about["source_rows"]).check()


def _selected(
    tensors: dict[str, Tensor], title: str, about: dict[str, Any], sizes: dict[str, int]
) -> dict[str, SelectedRows]:
    """Rows of tables of these sizes. Raises `ValueError` for rows that lie elsewhere."""
    groups = {}
    for kind, size in sizes.items():
        rows, values = tensors[f"{title}/{kind}/rows"], tensors[f"{title}/{kind}/values"]
        hidden, shapes = about["tables"][kind]["hidden"], [list(t.shape) for t in (values, rows)]
        if rows.dtype != torch.int64 or values.shape != (len(rows), hidden):
            raise ValueError(f"it has {shapes[0]} values for {shapes[1]} rows of {hidden}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < size:
            raise ValueError(f"a row lies beyond {size}")
        if not values.isfinite().all():
            raise ValueError(f"its {title} {kind} rows are not finite")
        if title == "sample" and not len(rows):
            raise ValueError(f"it has no {kind} rows of its base, by which to know a model")
        groups[kind] = (rows, values)
    return groups


def _compressed(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(zstandard.compress(content)), dtype=torch.uint8)


def _decompressed(tensor: Tensor) -> bytes:
    """The content of a part. Raises `CheckpointError` for one above `JSON_BYTES`."""
    content = bytearray()
    for piece in zstd_content(BytesIO(tensor.numpy().tobytes())):
        content += piece
        JSON_BYTES.check(len(content), "a part of the pack", CheckpointError)
    return bytes(content)
