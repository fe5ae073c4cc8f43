"""The vocabulary mappings of a checkpoint: one for each table, built from two tokenizers, saved beside the model."""

import shutil
from pathlib import Path
from random import Random

import regex
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.corpus.language import dominant_script
from lep.embedding import METHODS, calibrated, undertrained
from lep.errors import CheckpointError
from lep.mapping import VocabularyMapping
from lep.settings import InitSettings
from lep.tokenizer.vocabulary import Token, Vocabulary

# In a subfolder: servers load all that lies beside the model. The output table has its own file where it differs.
MAPPING_FILES = {
    "input": Path("lep", "mapping.safetensors"),
    "output": Path("lep", "output_mapping.safetensors"),
}
INIT_FILE = Path("lep", "init.json")  # what filled the mappings
NEVER_IN_UTF8 = [bytes([byte]) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))]
RESERVED = regex.compile(rb"(?i)reserved|unused")


def build_mapping(
    source: Vocabulary, target: Vocabulary, source_rows: int, method: str = "mean", seed: int = 0
) -> VocabularyMapping:
    """The mapping from a table of `source_rows` rows to the target vocabulary.

    Padding rows of the source table stay, unless the vocabulary itself got smaller: then the table has its size.
    """
    pieces = source.pieces(target)
    if len(target) >= len(source):
        pieces += [[row] for row in range(len(target), source_rows)]
    lengths = [0 if token is None or token.added else len(token.content) for token in source.tokens]
    rng = Random(seed)
    mixtures = [
        (row, [1.0]) if len(row) == 1 else METHODS[method](row, lengths, rng) for row in pieces
    ]
    return VocabularyMapping.from_rows(
        [rows for rows, _ in mixtures],
        source_rows,
        [weights for _, weights in mixtures],
        copies=[
            len(row) == 1 and _stands(source, row[0], target, index)
            for index, row in enumerate(pieces)
        ],
    )


def _stands(source: Vocabulary, row: int, target: Vocabulary, index: int) -> bool:
    """Whether a source row is that of the target's token (which may be spelled by an unknown token instead)."""
    token = target.tokens[index] if index < len(target) else None
    known = source.tokens[row] if row < len(source) else None
    return token is None or known is None or known.content == token.content


def build_mappings(
    source: Checkpoint, target: Vocabulary, settings: InitSettings
) -> dict[str, VocabularyMapping]:
    """A mapping for the input table and, in an untied model, one for the output table."""
    mappings = {}
    for kind, name in source.tables.by_kind().items():
        method = settings.method if kind == "input" else settings.output_method or settings.method
        mapping = build_mapping(
            source.vocabulary, target, source.shape(name)[0], method, settings.seed
        )
        if settings.calibrate_norms:
            mapping = calibrated(mapping, source.tensor(name), _alike(source, target, mapping))
        mappings[kind] = mapping
    return mappings


def save_mappings(mappings: dict[str, VocabularyMapping], folder: Path) -> None:
    """Write the mappings of a model folder; an output mapping equal to that of the input is not written twice."""
    (folder / "lep").mkdir(exist_ok=True)
    write_mapping(mappings["input"], folder / MAPPING_FILES["input"])
    if "output" in mappings and not mappings["output"].equal(mappings["input"]):
        write_mapping(mappings["output"], folder / MAPPING_FILES["output"])


def adapted_mappings(base: Checkpoint, adapted: Checkpoint) -> dict[str, VocabularyMapping]:
    """The mappings saved with an adapted model where they fit, else subtoken means from the two tokenizers.

    Raises `CheckpointError` where the adapted model has not the rows that its tokenizer asks for.
    """
    source_rows, target_rows = (model.shape(model.tables.input)[0] for model in (base, adapted))
    if (saved := saved_mappings(adapted)) and all(
        m.source_size == source_rows and _of(base, adapted, m) for m in saved.values()
    ):
        return saved
    mappings = build_mappings(base, adapted.vocabulary, InitSettings())
    if mappings["input"].target_size != target_rows:
        raise CheckpointError(
            f"{adapted.folder} has {target_rows:,} rows, with its tokenizer it should have "
            f"{mappings['input'].target_size:,}: initialise the adapted model from this base with this tokenizer"
        )
    return mappings


def saved_mappings(
    checkpoint: Checkpoint, *, appended: bool = False
) -> dict[str, VocabularyMapping] | None:
    """The mappings saved with a model, by table; None where there are none, or none of its size.

    With `appended` the model may have rows behind those of the mapping: tokens that only an instruct model has.

    Raises `CheckpointError` for a damaged file.
    """
    places = {kind: checkpoint.folder / MAPPING_FILES[kind] for kind in checkpoint.tables.by_kind()}
    if not places["input"].exists():
        return None
    found = {
        kind: read_mapping(place if place.exists() else places["input"])
        for kind, place in places.items()
    }
    rows = checkpoint.shape(checkpoint.tables.input)[0]
    sizes = {mapping.target_size for mapping in found.values()}
    return found if sizes == {rows} or (appended and max(sizes) <= rows) else None


def copy_mappings(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the mappings of a model, where it has some, beside another one that has its vocabulary."""
    for file in (*MAPPING_FILES.values(), INIT_FILE):
        if (checkpoint.folder / file).exists():
            shutil.copyfile(checkpoint.folder / file, folder / file)


def write_mapping(mapping: VocabularyMapping, path: Path) -> None:
    """Write a safetensors file of a few MB. The same mapping always gives the same bytes."""
    save_file(mapping.tensors(), path)


def read_mapping(path: Path) -> VocabularyMapping:
    """Read what `write_mapping` wrote. Raises `CheckpointError` for a damaged file."""
    try:
        return VocabularyMapping.from_tensors(load_file(path))
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): delete it, or initialise the model again"
        ) from error


def _of(base: Checkpoint, adapted: Checkpoint, mapping: VocabularyMapping) -> bool:
    """Whether the tokens that a mapping takes for the same are the same."""
    target, source = (rows.tolist() for rows in mapping.kept())
    ours, theirs = base.vocabulary.tokens, adapted.vocabulary.tokens
    pairs = (
        (ours[s], theirs[t])
        for t, s in zip(target, source, strict=True)
        if s < len(ours) and t < len(theirs)
    )
    return all(one is None or other is None or _same(one, other) for one, other in pairs)


def _same(one: Token, other: Token) -> bool:
    """Whether two tokens spell the same; one of them may be a byte token."""
    return one.content == other.content and one.added == other.added


def unused_rows(checkpoint: Checkpoint, rows: int) -> Tensor:
    """Mask of the rows that no text can use: padding, reserved tokens, bytes that UTF-8 does not have."""
    tokens = [*checkpoint.vocabulary.tokens, *[None] * (rows - len(checkpoint.vocabulary))][:rows]
    return torch.tensor(
        [
            token is None
            or (
                bool(RESERVED.search(token.content))
                if token.added
                else token.content in NEVER_IN_UTF8
            )
            for token in tokens
        ]
    )


def undertrained_rows(checkpoint: Checkpoint, name: str) -> Tensor:
    """Mask of the rows of a table that training never reached (`lep.embedding.undertrained`)."""
    table = checkpoint.tensor(name)
    return undertrained(table, unused_rows(checkpoint, len(table)))


def _alike(source: Checkpoint, target: Vocabulary, mapping: VocabularyMapping) -> Tensor:
    """Mask of the source rows whose tokens have letters of the script that most new tokens have."""
    new = [target.tokens[row] for row in mapping.new_rows().tolist()]
    script = dominant_script(
        " ".join(token.content.decode(errors="ignore") for token in new if token)
    )
    alike = torch.zeros(mapping.source_size, dtype=torch.bool)
    if script:
        pattern = regex.compile(rf"\p{{Script={script}}}")
        for row, token in enumerate(source.vocabulary.tokens):
            alike[row] = token is not None and bool(
                pattern.search(token.content.decode(errors="ignore"))
            )
    return alike
