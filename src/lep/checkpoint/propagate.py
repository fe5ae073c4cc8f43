"""Carry the adapted embeddings of a base model into its instruct model (section 3.5 of the paper)."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lep.checkpoint.ids import remap_generation_config, remap_ids
from lep.checkpoint.initialise import LOADER_TEXTS, as_table, build_mapping, mix
from lep.checkpoint.reader import MAPPING_FILE, Checkpoint
from lep.checkpoint.stream import DTYPES, Rows
from lep.checkpoint.writer import resized_config, write_checkpoint
from lep.errors import CheckpointError, LepError, TokenizerError
from lep.linear_map import FitReport
from lep.mapping import VocabularyMapping
from lep.propagation import METHODS
from lep.propagation.methods import TableFit, propagate_table
from lep.publish import publishing
from lep.tokenizer.load import check_loaders, write_tokenizer
from lep.tokenizer.parts import renumber


def propagate(
    base: str | Path, instruct: str | Path, adapted: str | Path, output: Path, *, method: str = "conversion"
) -> dict[str, FitReport]:
    """Write the instruct model with the adapted base model's vocabulary and embeddings to `output`.

    Every table is `E_adapted W`; rows of added tokens are the instruct model's, and those that only it has are
    appended. Body, generation settings and chat template are the instruct model's.

    Returns the fit of each table. Raises `CheckpointError` when the three models do not belong together.
    """
    if method not in METHODS:
        raise LepError(f"unknown propagation method '{method}': the methods are {', '.join(METHODS)}")
    family = Family.open(base, instruct, adapted)
    tables, reports = {}, {}
    for kind, (old, chat, new) in family.tables():
        fit = METHODS[method](old, _first_rows(chat, old), family.mapping, family.fit_rows())
        tables[kind], reports[kind] = propagate_table(new, fit, chat, family.instruct_rows()), fit.report
    record = {"method": method, "fit": {kind: asdict(report) for kind, report in reports.items()}}
    _write(family, tables, record, output)
    return reports


def initialise_instruct(base: str | Path, instruct: str | Path, adapted: str | Path, output: Path) -> None:
    """Write the instruct model with the adapted vocabulary and untrained rows, `M E_inst`, to `output`.

    What there is without any training: the control that every propagation has to beat.
    """
    family = Family.open(base, instruct, adapted)
    tables = {
        kind: propagate_table(
            family.mapping(_first_rows(chat, old)), TableFit.identity(old.shape[1]), chat, family.instruct_rows()
        )
        for kind, (old, chat, _) in family.tables()
    }
    _write(family, tables, {"method": "none, mean initialisation", "fit": {}}, output, trained=False)


@dataclass(frozen=True)
class Family:
    """A base model, an instruct model tuned from it, and the base model with adapted embeddings."""

    base: Checkpoint
    instruct: Checkpoint
    adapted: Checkpoint
    mapping: VocabularyMapping
    ids: dict[int, int]  # result id of each added token of the instruct model, by its id there

    @classmethod
    def open(cls, base: str | Path, instruct: str | Path, adapted: str | Path) -> "Family":
        """Raises `CheckpointError` when the three do not belong together."""
        source, chat, target = (Checkpoint(model).check() for model in (base, instruct, adapted))
        check_family(source, chat, target)
        return cls(source, chat, target, adapted_mapping(source, target), result_ids(source, chat, target))

    def tables(self) -> Iterator[tuple[str, tuple[Tensor, Tensor, Tensor]]]:
        """`input` and (when untied) `output` with the tables of base, instruct and adapted model."""
        for kind in ("input", "output"):
            names = [getattr(model.tables, kind) for model in (self.base, self.instruct, self.adapted)]
            if names[0] is not None:
                base, instruct, adapted = names
                yield kind, (self.base.tensor(base), self.instruct.tensor(instruct), self.adapted.tensor(adapted))

    def instruct_rows(self) -> dict[int, int]:
        """`{result row: instruct row}` of the rows that stay the instruct model's."""
        return {row: index for index, row in self.ids.items()}

    def fit_rows(self) -> Tensor:
        """Mask of the target rows that a map may be fitted on: ordinary tokens."""
        rows = torch.zeros(self.mapping.target_size, dtype=torch.bool)
        for index, token in enumerate(self.adapted.vocabulary.tokens):
            rows[index] = token is not None and not token.added
        rows[[row for row in self.ids.values() if row < len(rows)]] = False
        return rows


def _write(
    family: Family, tables: dict[str, Tensor], record: dict[str, Any], output: Path, *, trained: bool = True
) -> None:
    chat = family.instruct
    replaced = {getattr(chat.tables, kind): table for kind, table in tables.items()}
    for kind, table in tables.items():
        check_finite(f"the {kind} embeddings", table, chat)
    others = {name: _other(family, name, len(tables["input"]), trained) for name in chat.tables.others}
    moved = {old: new for old, new in family.ids.items() if old != new}
    with publishing(output) as partial:
        config = remap_ids(chat.config, moved)
        resized = resized_config(config, len(tables["input"]), chat.tables.size_settings)
        write_checkpoint(chat, {**replaced, **others}, partial, config | resized)
        remap_generation_config(partial, moved)
        write_tokenizer(result_tokenizer(chat, family.adapted, family.ids), chat.folder, partial)
        (partial / "lep").mkdir()
        family.mapping.save(partial / MAPPING_FILE)
        (partial / "lep" / "propagation.json").write_text(json.dumps(record, indent=2) + "\n")
        Checkpoint(partial).check()
        specials = "".join(list(chat.vocabulary.added_ids())[:8])
        check_loaders(partial, [*LOADER_TEXTS, specials])


def _other(family: Family, name: str, rows: int, trained: bool) -> Rows:
    """`M T_inst + (T_adapted - M T_base)` for another tensor with a row per token, the last part when trained."""
    entry = family.instruct.entries[name]
    sources = (family.base, family.adapted)
    known = all(name in model.tables.others for model in sources)
    if known and any(model.entries[name].shape[1:] != entry.shape[1:] for model in sources):
        raise CheckpointError(f"{name} has other columns in {family.instruct.folder} than in {family.base.folder}: "
                              "give models of one family and size")  # fmt: skip

    def chunks() -> Iterator[Tensor]:
        chat, mapping = as_table(family.instruct.tensor(name)), family.mapping
        old = as_table(family.base.tensor(name)) if known else chat[: mapping.source_size]
        if len(old) < mapping.source_size:
            raise CheckpointError(f"{family.base.folder} has no {name}, and that of {family.instruct.folder} has "
                                  f"{len(old):,} rows for {mapping.source_size:,}: save both alike")  # fmt: skip
        table = mix(_first_rows(chat, old), mapping)
        if known and trained and table.is_floating_point():
            wide = torch.promote_types(table.dtype, torch.float32)
            learned = as_table(family.adapted.tensor(name)).to(wide) - mapping(old).to(wide)
            table = (table.to(wide) + learned).to(table.dtype)
        table = torch.cat([table, table.new_zeros(rows - len(table), table.shape[1])])
        targets = torch.tensor(list(family.instruct_rows()), dtype=torch.int64)
        table[targets] = chat[torch.tensor(list(family.instruct_rows().values()), dtype=torch.int64)]
        check_finite(name, table, family.instruct)
        yield table.reshape(-1, *entry.shape[1:])

    return Rows((rows, *entry.shape[1:]), DTYPES[entry.dtype], chunks)


def check_finite(name: str, table: Tensor, model: Checkpoint) -> None:
    """Raise `CheckpointError` for a row with NaN or infinite values, which a source table must have had."""
    broken = (~table.isfinite()).any(1).nonzero().flatten()
    if len(broken):
        raise CheckpointError(
            f"row {int(broken[0])} of {name} would not be finite: a table of {model.folder}, its base or the adapted "
            "model has NaN or infinite rows"
        )


def check_family(base: Checkpoint, instruct: Checkpoint, adapted: Checkpoint) -> None:
    """Raise `CheckpointError` unless the models share hidden size and tying, and base and instruct their ids."""
    shapes = {model: model.shape(model.tables.input) for model in (base, instruct, adapted)}
    for other in (instruct, adapted):
        if shapes[other][1] != shapes[base][1]:
            raise CheckpointError(
                f"hidden sizes differ: {shapes[base][1]} in {base.folder}, {shapes[other][1]} in {other.folder}; "
                "give models of one family and size"
            )
        if (other.tables.output is None) != (base.tables.output is None):
            tied, untied = (other, base) if other.tables.output is None else (base, other)
            raise CheckpointError(f"{tied.folder} ties its embeddings and {untied.folder} does not: save both alike")
    pairs = zip(base.vocabulary.tokens, instruct.vocabulary.tokens, strict=False)
    for index, (ours, theirs) in enumerate(pairs):
        if ours is not None and theirs is not None and ours.content != theirs.content:
            raise CheckpointError(
                f"id {index} is {ours.content!r} in {base.folder} and {theirs.content!r} in {instruct.folder}: the "
                "instruct model was not tuned from this base model with this tokenizer"
            )
    needed = len(base.vocabulary)
    if shapes[instruct][0] < needed:
        raise CheckpointError(f"{instruct.folder} has {shapes[instruct][0]:,} rows for the {needed:,} ids of its base")


def adapted_mapping(base: Checkpoint, adapted: Checkpoint) -> VocabularyMapping:
    """The mapping saved with the adapted model where it fits, else the subtoken mean from the two tokenizers."""
    source_rows, target_rows = (model.shape(model.tables.input)[0] for model in (base, adapted))
    if (adapted.folder / MAPPING_FILE).exists():
        mapping = VocabularyMapping.load(adapted.folder / MAPPING_FILE)
        if (mapping.source_size, mapping.target_size) == (source_rows, target_rows):
            return mapping
    mapping = build_mapping(base.vocabulary, adapted.vocabulary, source_rows)
    if mapping.target_size != target_rows:
        raise CheckpointError(
            f"{adapted.folder} has {target_rows:,} rows, with its tokenizer it should have {mapping.target_size:,}: "
            "initialise the adapted model from this base with this tokenizer"
        )
    return mapping


def result_ids(base: Checkpoint, instruct: Checkpoint, adapted: Checkpoint) -> dict[int, int]:
    """`{instruct id: result id}` of the instruct model's added tokens; those the adapted one lacks come last.

    Raises `TokenizerError` when the instruct model has ordinary tokens that the adapted tokenizer lacks.
    """
    known, ids, following = adapted.vocabulary.added_ids(), {}, len(adapted.vocabulary)
    for index, token in enumerate(instruct.vocabulary.tokens):
        if token is None:
            continue
        if not token.added:
            if index >= len(base.vocabulary):
                raise TokenizerError(
                    f"id {index} of {instruct.folder}, {token.content!r}, is an ordinary token that the base model "
                    "lacks: only added tokens can be carried along"
                )
            continue
        name = token.content.decode()
        if name in known:
            ids[index] = known[name]
        else:
            ids[index] = following
            following += 1
    return ids


def result_tokenizer(instruct: Checkpoint, adapted: Checkpoint, ids: dict[int, int]) -> dict[str, Any]:
    """Content of tokenizer.json: the adapted vocabulary, the instruct model's added tokens, flags and template ids."""
    spec = json.loads(adapted.tokenizer.backend_tokenizer.to_str())
    chat = json.loads(instruct.tokenizer.backend_tokenizer.to_str())
    ours = {entry["id"]: entry for entry in spec["added_tokens"]}
    ours |= {ids[entry["id"]]: entry | {"id": ids[entry["id"]]} for entry in chat["added_tokens"]}
    spec["added_tokens"] = [ours[index] for index in sorted(ours)]
    # Ids of added tokens are only kept by `tokenizers` when the model's vocabulary has them (`Parts.assemble`).
    vocabulary = spec["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary |= {entry["content"]: entry["id"] for entry in spec["added_tokens"]}
    else:  # Unigram: the position is the id, and a low score keeps the token out of ordinary text
        low = min(score for _, score in vocabulary)
        vocabulary += [[entry["content"], low] for entry in spec["added_tokens"] if entry["id"] >= len(vocabulary)]
        vocabulary = {name: i for i, (name, _) in enumerate(vocabulary)}
    spec["post_processor"] = chat["post_processor"]
    renumber(spec["post_processor"], vocabulary)
    return spec


def _first_rows(instruct: Tensor, base: Tensor) -> Tensor:
    """The instruct model's table cut or filled (with the base model's unused rows) to the base model's rows."""
    return torch.cat([instruct[: len(base)], base[len(instruct) :].to(instruct.dtype)])
