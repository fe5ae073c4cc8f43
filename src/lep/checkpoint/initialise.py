"""Give a model a new tokenizer: every row of the new tables is made from rows of the old ones."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lep.checkpoint.ids import named_ids, remap_generation_config, remap_ids
from lep.checkpoint.reader import MAPPING_FILE, Checkpoint
from lep.checkpoint.stream import DTYPES, Rows
from lep.checkpoint.writer import resized_config, write_checkpoint
from lep.embedding import METHODS
from lep.errors import CheckpointError, LepError
from lep.hub import local_folder
from lep.mapping import VocabularyMapping
from lep.publish import publishing
from lep.tokenizer.idmap import IdMap
from lep.tokenizer.load import check_loaders, copy_tokenizer, load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary

LOADER_TEXTS = ["Hello, world! 1234\n\tdef f(x):", "Съешь ещё этих мягких булок.", "ქართული, 中文, हिन्दी 🙂"]


@dataclass(frozen=True)
class Initialised:
    """What `initialise` did: rows that were copied, and rows that are new mixtures."""

    rows: int
    copied: int
    mixed: int


def build_mapping(source: Vocabulary, target: Vocabulary, source_rows: int, method: str = "mean") -> VocabularyMapping:
    """The mapping from a table of `source_rows` rows to the target vocabulary.

    Padding rows of the source table stay, unless the vocabulary itself got smaller: then the table has its size.
    Raises `LepError` for an unknown method.
    """
    if method not in METHODS:
        raise LepError(f"unknown initialisation method '{method}': the methods are {', '.join(METHODS)}")
    pieces = source.pieces(target)
    if len(target) >= len(source):
        pieces += [[row] for row in range(len(target), source_rows)]
    return METHODS[method](pieces, source_rows)


def initialise(model: str | Path, tokenizer: str | Path, output: Path, *, method: str = "mean") -> Initialised:
    """Write `model` with the vocabulary of the folder `tokenizer` to `output` (`E_new = M E_old`, eq. 1-2).

    The body is untouched; the mapping is saved in `lep/mapping.safetensors`. Copied rows are bit-equal. Where the
    new tokenizer gives a token another id, the row moves, and configuration and generation settings follow.

    Raises `CheckpointError` when they name a token that the new tokenizer lacks.
    """
    source, folder = Checkpoint(model).check(), local_folder(tokenizer)
    target = Vocabulary.of(load_tokenizer(folder))
    mapping = build_mapping(source.vocabulary, target, source.shape(source.tables.input)[0], method)
    tables = {name: source.tensor(name) for name in source.tables.names}
    replaced = {name: mapping(table) for name, table in tables.items()}
    for name, table in replaced.items():
        prove(name, tables[name], table, mapping)
    others = {name: other_rows(source, name, mapping) for name in source.tables.others}
    moved = _moved_ids(source, target)
    with publishing(output) as partial:
        config = remap_ids(source.config, moved)
        resized = resized_config(config, mapping.target_size, source.tables.size_settings)
        write_checkpoint(source, {**replaced, **others}, partial, config | resized)
        remap_generation_config(partial, moved)
        copy_tokenizer(folder, partial)
        (partial / MAPPING_FILE).parent.mkdir()
        mapping.save(partial / MAPPING_FILE)
        copied = len(mapping.kept()[0])
        result = Initialised(mapping.target_size, copied, mapping.target_size - copied)
        (partial / "lep" / "init.json").write_text(json.dumps({"method": method, **vars(result)}, indent=2) + "\n")
        Checkpoint(partial).check()
        check_loaders(partial, LOADER_TEXTS)
    return result


def _moved_ids(source: Checkpoint, target: Vocabulary) -> dict[int, int]:
    """New id of each token that got another one."""
    id_map = IdMap.between(source.vocabulary, target)
    dropped = {i for i in id_map.dropped if source.vocabulary.tokens[i] is not None}
    for name, ids in named_ids(source.config).items():
        if lost := ids & dropped:
            raise CheckpointError(
                f"{name} of {source.folder} is {min(lost)}, a token that the new tokenizer lacks: protect a text that "
                "holds it when pruning"
            )
    return id_map.moved


def other_rows(source: Checkpoint, name: str, mapping: VocabularyMapping) -> Rows:
    """`M T` for another tensor with a row per token (head bias, per-layer embeddings), made when it is written."""
    entry = source.entries[name]

    def chunks() -> Iterator[Tensor]:
        table = as_table(source.tensor(name))
        converted = mix(table, mapping)
        prove(name, table, converted, mapping)
        yield converted.reshape(-1, *entry.shape[1:])

    return Rows((mapping.target_size, *entry.shape[1:]), DTYPES[entry.dtype], chunks)


def mix(table: Tensor, mapping: VocabularyMapping) -> Tensor:
    """`M table`; integers, which cannot be mixed, are those of the main source row."""
    return mapping(table) if table.is_floating_point() else table[mapping.main_source()]


def as_table(tensor: Tensor) -> Tensor:
    """A tensor with a row per token as a matrix: (V,) is (V, 1), (V, a, b) is (V, a b)."""
    return tensor.reshape(len(tensor), -1)


def prove(name: str, before: Tensor, after: Tensor, mapping: VocabularyMapping) -> None:
    """Raise `CheckpointError` for a row that is not finite; a copied row must be bit-equal."""
    target, source = mapping.kept()
    if not torch.equal(after[target].view(torch.uint8), before[source].view(torch.uint8)):
        raise AssertionError(f"{name}: a copied row changed")
    broken = (~after.isfinite()).any(1).nonzero().flatten()
    if len(broken):
        raise CheckpointError(
            f"row {int(broken[0])} of the new {name} is not finite: the source table has NaN or infinite rows"
        )
