"""Give a model a new tokenizer: every row of the new tables is made from rows of the old ones."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lep.checkpoint.reader import MAPPING_FILE, Checkpoint
from lep.checkpoint.writer import resized_config, write_checkpoint
from lep.embedding import METHODS
from lep.errors import CheckpointError, LepError
from lep.hub import local_folder
from lep.mapping import VocabularyMapping
from lep.publish import publishing
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

    Padding rows of the source table stay (a table never gets shorter than it was). Raises `LepError` for an
    unknown method.
    """
    if method not in METHODS:
        raise LepError(f"unknown initialisation method '{method}': the methods are {', '.join(METHODS)}")
    pieces = source.pieces(target)
    pieces += [[row] for row in range(len(target), source_rows)]
    return METHODS[method](pieces, source_rows)


def initialise(model: str | Path, tokenizer: str | Path, output: Path, *, method: str = "mean") -> Initialised:
    """Write `model` with the vocabulary of the folder `tokenizer` to `output` (`E_new = M E_old`, eq. 1-2).

    The body is untouched; the mapping is saved in `lep/mapping.safetensors`. Copied rows are bit-equal.
    """
    source, folder = Checkpoint(model).check(), local_folder(tokenizer)
    target = Vocabulary.of(load_tokenizer(folder))
    mapping = build_mapping(source.vocabulary, target, source.shape(source.tables.input)[0], method)
    tables = {name: source.tensor(name) for name in source.tables.names}
    replaced = {name: mapping(table) for name, table in tables.items()}
    for name, table in replaced.items():
        _prove(name, tables[name], table, mapping)
    with publishing(output) as partial:
        write_checkpoint(source, replaced, partial, resized_config(source.config, mapping.target_size))
        copy_tokenizer(folder, partial)
        (partial / MAPPING_FILE).parent.mkdir()
        mapping.save(partial / MAPPING_FILE)
        copied = len(mapping.kept()[0])
        result = Initialised(mapping.target_size, copied, mapping.target_size - copied)
        (partial / "lep" / "init.json").write_text(json.dumps({"method": method, **vars(result)}, indent=2) + "\n")
        Checkpoint(partial).check()
        check_loaders(partial, LOADER_TEXTS)
    return result


def _prove(name: str, before: Tensor, after: Tensor, mapping: VocabularyMapping) -> None:
    target, source = mapping.kept()
    if not torch.equal(after[target].view(torch.uint8), before[source].view(torch.uint8)):
        raise AssertionError(f"{name}: a copied row changed")
    broken = (~after.isfinite()).any(1).nonzero().flatten()
    if len(broken):
        raise CheckpointError(
            f"row {int(broken[0])} of the new {name} is not finite: the source table has NaN or infinite rows"
        )
