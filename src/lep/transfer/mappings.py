"""Vocabulary mappings of a checkpoint: built from two tokenizers, saved beside the model."""

import shutil
from pathlib import Path
from random import Random
from typing import Any

import regex
import torch
from torch import Tensor

from lep.checkpoint.origin import Origin
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import read_tensors, save_tensors
from lep.corpus.language import dominant_script, script_set
from lep.embedding import METHODS, calibrated, undertrained
from lep.errors import CheckpointError, foreign
from lep.limits import VOCABULARY
from lep.mapping import VocabularyMapping
from lep.settings import InitSettings
from lep.tokenizer.carry import RESERVED
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Token, Vocabulary

# In a subfolder, because servers load all files beside the model. The output table has a file of
# its own only where it differs.
LEP = Path("lep")
MAPPING_FILES = {"input": LEP / "mapping.safetensors", "output": LEP / "output_mapping.safetensors"}
INIT_FILE = LEP / "init.json"  # what filled the mappings
NEVER_IN_UTF8 = [bytes([byte]) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))]


def build_mapping(
    source: Vocabulary, target: Vocabulary, source_rows: int, method: str = "mean", seed: int = 0
) -> VocabularyMapping:
    """The mapping from a table of `source_rows` rows to the target vocabulary.

    `method` is one of `lep.embedding.METHODS`; `seed` is that of the random control. Padding rows
    of the source table stay, unless the vocabulary got smaller: then the table gets its size.
    """
    pieces = source.pieces(target)
    if len(target) >= len(source):
        pieces += [[row] for row in range(len(target), source_rows)]
    lengths = [0 if token is None or token.added else len(token.content) for token in source.tokens]
    mixture, rng = METHODS[method], Random(seed)
    mixed = []
    for row in pieces:
        # None of all bytes that stand for an unknown one is its first or longest piece.
        mix_row = METHODS["mean"] if row is source.byte_ids else mixture
        mixed.append((row, [1.0]) if len(row) == 1 else mix_row(row, lengths, rng))
    rows, weights = zip(*mixed, strict=True)
    copies = [len(r) == 1 and _is_copy(source, r[0], target, i) for i, r in enumerate(pieces)]
    return VocabularyMapping.from_rows(rows, source_rows, weights, copies)


def mean_mapping(source: Any, target: Any) -> VocabularyMapping:
    """The mapping of subtoken means between two tokenizers (Tikhomirov & Chernyshev 2024, eq. 1-2).

    `source` and `target` are folders, hub ids, or tokenizers of `tokenizers` or `transformers`. The
    mapping has a source row for each id of the source tokenizer; `build_mapping` also takes tables
    with padding rows.
    """
    before, after = (
        Vocabulary.of(load_tokenizer(each) if isinstance(each, str | Path) else each)
        for each in (source, target)
    )
    return build_mapping(before, after, len(before))


def _is_copy(source: Vocabulary, row: int, target: Vocabulary, index: int) -> bool:
    """Whether the only source row is that of the same token, not of an unknown token."""
    before, after = token_at(source, row), token_at(target, index)
    return before is None or after is None or before.content == after.content


def token_at(vocabulary: Vocabulary, row: int) -> Token | None:
    """The token of a table's row; None for padding."""
    return vocabulary.tokens[row] if row < len(vocabulary) else None


def check_output_method(model: Checkpoint, method: str | None) -> None:
    """Raise `CheckpointError` for a method of the output table where there is no such table."""
    if method and "output" not in model.tables.by_kind():
        raise CheckpointError(
            f"{model.folder} ties its tables, so that --output-method {method} would do nothing: "
            "leave it out"
        )


def build_mappings(
    source: Checkpoint, target: Vocabulary, settings: InitSettings
) -> dict[str, VocabularyMapping]:
    """A mapping for the input table and, in an untied model, one for the output table.

    Raises `CheckpointError` for a method of the output table in a tied model.
    """
    check_output_method(source, settings.output_method)
    mappings = {}
    for kind, name in source.tables.by_kind().items():
        method = settings.method if kind == "input" else settings.output_method or settings.method
        rows = source.shape(name)[0]
        mapping = build_mapping(source.vocabulary, target, rows, method, settings.seed)
        if settings.calibrate_norms:
            alike = _rows_of_script(source.vocabulary, target, mapping)
            mapping = calibrated(mapping, source.tensor(name), alike)
        mappings[kind] = mapping
    return mappings


def adapted_mappings(base: Checkpoint, adapted: Checkpoint) -> dict[str, VocabularyMapping]:
    """The mappings saved with an adapted model if they fit, else subtoken means.

    Raises `CheckpointError` where the adapted model lacks rows that its tokenizer needs.
    """
    source_rows, target_rows = (model.shape(model.tables.input)[0] for model in (base, adapted))
    saved = saved_mappings(adapted) or {}
    if saved and all(
        mapping.source_size == source_rows and _fits(base.vocabulary, adapted.vocabulary, mapping)
        for mapping in saved.values()
    ):
        return saved
    mappings = build_mappings(base, adapted.vocabulary, InitSettings())
    if mappings["input"].target_size != target_rows:
        raise CheckpointError(
            f"{adapted.folder} has {target_rows:,} rows, with its tokenizer it should have "
            f"{mappings['input'].target_size:,}: initialise the adapted model from this base with "
            "this tokenizer"
        )
    return mappings


def _fits(source: Vocabulary, target: Vocabulary, mapping: VocabularyMapping) -> bool:
    """Whether copied rows stand for the same token in both vocabularies.

    Not where the source's row is of no token, and the target's of one: another model between the
    two has given that token its row.
    """
    for row, source_row in zip(*(rows.tolist() for rows in mapping.kept()), strict=True):
        tokens = (token_at(source, source_row), token_at(target, row))
        if tokens[0] is None and tokens[1] is not None:
            return False
        # Not the whole tokens: one of them may be a byte token.
        if None not in tokens and len({(t.content, t.added) for t in tokens if t}) > 1:
            return False
    return True


def saved_mappings(
    checkpoint: Checkpoint, *, appended: bool = False
) -> dict[str, VocabularyMapping] | None:
    """The mappings saved with a model, by table; None if there are none of its size.

    With `appended`, the model may have more rows, of tokens that only an instruct model has.
    Raises `CheckpointError` for a damaged file.
    """
    paths = {kind: checkpoint.folder / MAPPING_FILES[kind] for kind in checkpoint.tables.by_kind()}
    shared = paths["input"]
    if not shared.exists():
        return None
    mappings = {k: read_mapping(p if p.exists() else shared) for k, p in paths.items()}
    rows = checkpoint.shape(checkpoint.tables.input)[0]
    sizes = {mapping.target_size for mapping in mappings.values()}
    return mappings if sizes == {rows} or (appended and max(sizes) <= rows) else None


def save_mappings(mappings: dict[str, VocabularyMapping], folder: Path) -> None:
    """Write the mappings of a model folder. An output mapping equal to the input's has no file."""
    (folder / "lep").mkdir(exist_ok=True)
    write_mapping(mappings["input"], folder / MAPPING_FILES["input"])
    if "output" in mappings and not mappings["output"].equal(mappings["input"]):
        write_mapping(mappings["output"], folder / MAPPING_FILES["output"])


def copy_mappings(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the mappings of a model, if it has any, to a model with the same vocabulary.

    And what both are made from.
    """
    Origin.of(checkpoint.folder).save(folder)
    for file in (*MAPPING_FILES.values(), INIT_FILE):
        if (checkpoint.folder / file).exists():
            shutil.copyfile(checkpoint.folder / file, folder / file)


def write_mapping(mapping: VocabularyMapping, path: Path) -> None:
    """Write a safetensors file of a few MB. The same mapping always gives the same bytes."""
    save_tensors(path, mapping.tensors())


def read_mapping(path: Path) -> VocabularyMapping:
    """Read what `write_mapping` wrote. Raises `CheckpointError` for a damaged file."""
    advice = "delete it, or initialise the model again"
    tensors = read_tensors(path, advice)
    with foreign(f"{path} is damaged", advice, CheckpointError):
        VOCABULARY.check(int(tensors["source_size"]), str(path), CheckpointError)
        return VocabularyMapping.from_tensors(tensors)


def unused_rows(checkpoint: Checkpoint, rows: int) -> Tensor:
    """Mask (rows,) of rows that no text reaches: padding, reserved tokens, bytes not in UTF-8."""
    return torch.tensor([_is_unused(token_at(checkpoint.vocabulary, row)) for row in range(rows)])


def _is_unused(token: Token | None) -> bool:
    if token is None:
        return True
    return bool(RESERVED.search(token.content)) if token.added else token.content in NEVER_IN_UTF8


def undertrained_rows(checkpoint: Checkpoint, name: str) -> Tensor:
    """Mask (V,) of rows that training never reached (`lep.embedding.undertrained`)."""
    table = checkpoint.tensor(name)
    return undertrained(table, unused_rows(checkpoint, len(table)))


def _rows_of_script(source: Vocabulary, target: Vocabulary, mapping: VocabularyMapping) -> Tensor:
    """Mask (V_source,) of the tokens with letters of the script that most new tokens have."""
    new = [target.tokens[row] for row in mapping.new_rows().tolist()]
    script = dominant_script(" ".join(_text(token) for token in new if token))
    rows = torch.zeros(mapping.source_size, dtype=torch.bool)
    if script:
        pattern = regex.compile(f"[{script_set(script)}]")
        for row, token in enumerate(source.tokens):
            rows[row] = token is not None and bool(pattern.search(_text(token)))
    return rows


def _text(token: Token) -> str:
    return token.content.decode(errors="ignore")
