"""Language packs: what one model learned of a language, for its siblings and fine-tunes."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lep import __version__
from lep.checkpoint.adapter import ADAPTER, check_body, check_merged
from lep.checkpoint.origin import model_name
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import sha256
from lep.corpus.files import Paths
from lep.errors import CheckpointError, TokenizerError, note
from lep.files import read_json
from lep.mapping import VocabularyMapping, row_chunks, rows_at_once
from lep.publish import check_output, created, publishing_file
from lep.result import Result
from lep.tokenizer.vocabulary import Vocabulary
from lep.tokenizer.write import TokenizerChange, adopt_tokenizer
from lep.transfer.family import check_shapes
from lep.transfer.mappings import INIT_FILE, adapted_mappings, token_at
from lep.transfer.pack_file import FORMAT, TOKENIZER_FILES, LanguagePack, SelectedRows
from lep.transfer.propagate import as_json
from lep.transfer.recipient import Recipient, result_ids
from lep.transfer.row_streams import as_table, check_finite, first_rows, mix, recipient_stream
from lep.transfer.write import write_recipient

SAMPLE_ROWS = 256  # of the tables on which a pack is made, by which related models are recognised
# Mean cosine of sampled rows: about 0 for unrelated models, above 0.8 for heavily tuned ones.
LEAST_COSINE = 0.5
LOGS = {"losses", "looks", "streams", "new_token_mass"}  # in the record of a training
PATHS = {"eval_text", "old_text", "answers", "practice_tasks"}  # in its settings


@dataclass(frozen=True)
class Packed(Result):
    """What `make_pack` wrote."""

    output: Path
    rows: dict[str, int]  # {input or output: rows that learned}
    new_only: bool  # whether all of them are rows of new tokens

    def __str__(self) -> str:
        rows = ", ".join(f"{count:,} {kind} rows" for kind, count in self.rows.items())
        which = "of new tokens only" if self.new_only else "of known and new tokens"
        return f"{rows}, {which}; {self.output}, {self.output.stat().st_size / 1e6:.1f} MB"


@dataclass(frozen=True)
class Applied(Result):
    """What a model received from a pack, and how close it is to the model that learned."""

    output: Path
    cosines: dict[str, float]  # {input or output: mean cosine of sampled rows}
    made_on: str  # the model on which the pack was made
    new_tokens: int
    new_only: bool  # whether known rows stay the model's own, bit for bit

    def __str__(self) -> str:
        means = self.cosines.items()
        lines = [f"{k}: mean cosine {c:.3f} with the rows of {self.made_on}" for k, c in means]
        known = "stay as they are" if self.new_only else "change as those of that model did"
        lines.append(f"{self.new_tokens:,} new tokens; the rows of known tokens {known}")
        return "\n".join([*lines, f"written to {self.output}"])


def make_pack(
    base: str | Path, adapted: str | Path, output: str | Path, *, new_only: bool = False
) -> Packed:
    """Write what `adapted` learned beyond `base` to one file, for all relatives of `base`.

    `base` is a base or an instruct model, `adapted` the same model after `lep init` and training.
    Rows that did not change take no space: where only new rows trained, the pack holds only them.
    `new_only` leaves out what known rows learned.

    Raises `OutputError` where the file exists, and `CheckpointError` for models that do not belong
    together.
    """
    output = Path(output)
    with created(output.parent), publishing_file(output) as file:
        pack = _pack(base, adapted, new_only=new_only)
        if not any(len(rows) for rows, _ in pack.learned.values()):
            note(f"no row of {adapted} differs from what lep init gives: train it before lep pack")
        pack.write(file)
    rows = {kind: len(rows) for kind, (rows, _) in pack.learned.items()}
    return Packed(output, rows, pack.about["new_only"])


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
    known = (mappings[kind].copies[rows].any() for kind, (rows, _) in learned.items())
    about = _about(source, tables) | {"base": _name(base, source), "new_only": not any(known)}
    about |= {"history": _history(target.folder)}
    return LanguagePack(about, tokenizer, mappings, learned, sample)


def apply_pack(
    pack: str | Path, model: str | Path, output: str | Path, *, force: bool = False
) -> Applied:
    """Give a relative of the pack's model the pack's language: `E' = M E_model + learned`.

    That is task arithmetic: each row is the model's own, moved by what was learned. Body, chat
    template, generation settings and the rows of added tokens stay the model's. As after `lep
    init`, the result says which of its rows are new, so that their training can go on.

    Raises `CheckpointError` for an unrelated model (unless `force`) or another shape, and
    `TokenizerError` for another vocabulary or a model that has the new tokens already.
    """
    output = Path(output)
    check_output(output)
    language, chat = LanguagePack.load(Path(pack)), check_merged(Checkpoint(model).check())
    cosines = check_kin(language, chat, str(pack), force=force)
    language = _fitted(language, chat.vocabulary)
    recipient, names = _recipient(language, chat), chat.tables.by_kind()
    rows = {names[k]: partial(_moved, recipient, k, each) for k, each in language.learned.items()}
    rows |= {name: partial(_mixed, recipient, name) for name in chat.tables.others}
    tensors = {name: recipient_stream(recipient, name, chunks) for name, chunks in rows.items()}
    copies, about = recipient.result_mappings["input"].copies, language.about
    counts = {"rows": len(copies), "copied": int(copies.sum()), "mixed": int((~copies).sum())}
    record = {"method": "pack", "model": _name(model, chat), **counts, "cosine": cosines}
    digest = hashlib.sha256(Path(pack).read_bytes()).hexdigest()
    record["pack"] = {"file": Path(pack).name, "sha256": digest} | about
    write_recipient(recipient, tensors, {INIT_FILE.name: as_json(record)}, output)
    return Applied(output, cosines, about["base"], counts["mixed"], about.get("new_only") is True)


def pack_tokenizer(
    pack: str | Path, model: str | Path, corpus: Paths, output: str | Path
) -> TokenizerChange:
    """Write the tokenizer that `apply_pack` gives to `model`, and what it saves on `corpus`.

    The folder is like that of `extend_tokenizer`. Raises `TokenizerError` for another vocabulary
    and a model that has the new tokens already.
    """
    language, chat = LanguagePack.load(Path(pack)), Checkpoint(model).check()
    check_tokens(language, chat, str(pack))
    recipient = _recipient(_fitted(language, chat.vocabulary), chat)
    tokenizer = Tokenizer.from_str(json.dumps(recipient.tokenizer_spec()))
    origin = {"pack": Path(pack).name, "made_on": language.about["base"]}
    return adopt_tokenizer(chat.folder, tokenizer, corpus, output, verb="pack", **origin)


def check_kin(pack: LanguagePack, model: Checkpoint, path: str, *, force: bool) -> dict[str, float]:
    """Mean cosine of the sampled rows with those of the pack's model, by table.

    Raises `CheckpointError` or `TokenizerError` for a model that the pack does not fit, and for
    rows that are not finite; `force` allows low cosines.
    """
    tables, names, origin = pack.about["tables"], model.tables.by_kind(), pack.about["base"]
    if set(tables) != set(names):
        pair = ("the pack", model.folder) if len(tables) == 1 else (model.folder, "the pack")
        raise CheckpointError(
            f"{pair[0]} ties its embeddings and {pair[1]} does not: {path} was made on {origin}, "
            "give that or another model of its family"
        )
    for kind, name in names.items():
        if (hidden := model.shape(name)[1]) != tables[kind]["hidden"]:
            raise CheckpointError(
                f"{model.folder} has hidden size {hidden}, {path} was made on {origin} with "
                f"{tables[kind]['hidden']}: give that or another model of its family and size"
            )
    check_tokens(pack, model, path)
    cosines = {}
    for kind, name in names.items():
        rows, values = pack.sample[kind]
        table = _padded(model.tensor(name), pack.mappings[kind])
        check_finite(table, f"{name} of {model.folder}")
        cosines[kind] = cosine_similarity(table[rows].float(), values.float()).mean().item()
        if not cosines[kind] >= LEAST_COSINE and not force:  # NaN too
            raise CheckpointError(
                f"{model.folder} is no relative of {origin}, on which {path} was made: their "
                f"{kind} rows have a mean cosine of {cosines[kind]:.2f}, related models have "
                f"{LEAST_COSINE} or more; --force applies it"
            )
    return cosines


def check_tokens(pack: LanguagePack, model: Checkpoint, path: str) -> None:
    """Raise `TokenizerError` unless a model has the tokens of the pack's model, and no new one."""
    origin, ids = pack.about["base"], model.vocabulary.ids
    rows = pack.mappings["input"].new_rows().tolist()
    new = [token for row in rows if (token := token_at(pack.vocabulary, row))]
    known = sum(token in ids for token in new)
    same = model.vocabulary.fingerprint(pack.about["source_ids"]) == pack.about["source_vocabulary"]
    if known and (same or known == len(new)):
        raise TokenizerError(
            f"{model.folder} has {known:,} of the {len(new):,} new tokens of {path} already: give "
            "the model as it was before it got them"
        )
    if not same:
        raise TokenizerError(
            f"the tokens of {model.folder} are not those of {origin}, on which {path} was made: "
            "give a model that still has the vocabulary of its family"
        )


def _recipient(pack: LanguagePack, model: Checkpoint) -> Recipient:
    target, mapping = pack.vocabulary, pack.mappings["input"]
    ids = result_ids(pack.about["source_ids"], model, target, mapping)
    return Recipient(model, target.tokenizer, pack.mappings, ids)


def _fitted(pack: LanguagePack, model: Vocabulary) -> LanguagePack:
    """The pack without added tokens of its model that `model` lacks, beyond its last id.

    It has no rows for them, and a row of zeros would be an answer like any other.
    """
    names, absent = model.added_ids(), set()
    for row, source in zip(*(rows.tolist() for rows in pack.mappings["input"].kept()), strict=True):
        token = token_at(pack.vocabulary, row)
        if source >= len(model) and token and token.added and token.content.decode() not in names:
            absent.add(row)
    return pack.without(absent) if absent else pack


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


def _name(given: str | Path, model: Checkpoint) -> str:
    """A model's hub id, or the name of its folder."""
    return model_name(model.folder) if Path(given).is_dir() else str(given)


def _about(source: Checkpoint, tables: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "lep": __version__,
        "model_type": source.config.get("model_type"),
        "source_rows": len(tables["input"]),
        "source_ids": len(source.vocabulary),
        "source_vocabulary": source.vocabulary.fingerprint(),
        "tables": {k: {"hidden": t.shape[1], "sha256": sha256(t)} for k, t in tables.items()},
    }


def _history(folder: Path) -> dict[str, Any]:
    """The adapted model's records of initialisation and training, without logs and paths."""
    records = {}
    for name in ("init", "pretrain"):
        if (path := folder / "lep" / f"{name}.json").exists():
            record = read_json(path, CheckpointError)
            records[name] = {key: value for key, value in record.items() if key not in LOGS}
            if isinstance(settings := record.get("settings"), dict):
                kept = {key: value for key, value in settings.items() if key not in PATHS}
                records[name]["settings"] = kept
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
