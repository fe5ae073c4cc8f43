"""The rows of tables that train; and the proof that everything else stays as it was."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import sha256
from lep.errors import CheckpointError
from lep.progress import progress
from lep.training.processes import whole
from lep.transfer.mappings import saved_mappings

TableRows = Mapping[str, Tensor]  # of the tables "input" and "output" that train, (n,) int64


class SplitTable(nn.Module):
    """A (V, h) table as frozen rows `kept` (V - n, h) and trained rows `new` (n, h) in float32.

    Only `new` and `shared` have gradients. With `features` (n, f) of `rows`, all rows train a map
    in common: `features @ shared` is added to them, with `shared` (f, h) zero at first.
    `position` (V,) is where each row is in `kept` and `new`, `kept` first.
    """

    kept: Tensor
    position: Tensor
    features: Tensor

    def __init__(self, table: Tensor, rows: Tensor, features: Tensor | None = None) -> None:
        super().__init__()
        trains = torch.zeros(len(table), dtype=torch.bool)
        trains[rows] = True
        self.shared = None
        if features is not None:
            self.register_buffer("features", features[rows.argsort()].float(), persistent=False)
            self.shared = nn.Parameter(torch.zeros(features.shape[1], table.shape[1]))
        stay, rows = (~trains).nonzero().flatten(), trains.nonzero().flatten()
        last = len(rows) == 0 or int(rows[0]) == len(stay)  # then nothing needs to be copied
        position = torch.empty(len(table), dtype=torch.int64)
        position[torch.cat([stay, rows])] = torch.arange(len(table))
        self.register_buffer("kept", table[: len(stay)] if last else table[stay], persistent=False)
        self.register_buffer("position", position, persistent=False)
        self.new = nn.Parameter(table[rows].float())

    def trained(self) -> Tensor:
        """The trained rows as they are now, (n, h)."""
        if self.shared is None:
            return self.new
        return self.new + _in_float32(self.features, self.shared)

    def looked_up(self, index: Tensor) -> Tensor:
        """Rows of `trained`, (..., h)."""
        rows = embedding(index, self.new)
        if self.shared is None:
            return rows
        return rows + _in_float32(embedding(index, self.features), self.shared)

    def whole(self) -> Tensor:
        """The table as it is now, (V, h), in the dtype of the frozen rows."""
        rows = whole(self.new)
        if self.shared is not None:
            rows = rows + self.features @ whole(self.shared)
        return torch.cat([self.kept, rows.to(self.kept)])[self.position]


def _in_float32(features: Tensor, shared: Tensor) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        return features @ shared


class SplitEmbedding(nn.Module):
    """An embedding layer on a split table."""

    scale: Tensor | None

    def __init__(self, table: SplitTable, scale: Tensor | None = None) -> None:
        super().__init__()
        self.table = table
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        position, stay = self.table.position[ids], len(self.table.kept)
        kept = embedding(position.clamp(max=max(stay - 1, 0)), self.table.kept)
        new = self.table.looked_up((position - stay).clamp(min=0)).to(kept.dtype)
        rows = torch.where((position >= stay)[..., None], new, kept)
        return rows if self.scale is None else rows * self.scale.to(rows.dtype)


class SplitHead(nn.Module):
    """A linear head on a split table, with logits in the order of the ids."""

    bias: Tensor | None

    def __init__(self, table: SplitTable, bias: Tensor | None = None) -> None:
        super().__init__()
        self.table = table
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        tables = (self.table.kept, self.table.trained())
        parts = [hidden @ part.to(hidden.dtype).T for part in tables]
        logits = torch.cat(parts, dim=-1)[..., self.table.position]
        return logits if self.bias is None else logits + self.bias


def current_table(layer: Any) -> Tensor:
    """The whole (V, h) table of a layer as it is now."""
    split = isinstance(layer, SplitEmbedding | SplitHead)
    return layer.table.whole() if split else whole(layer.weight)


def table_layers(model: Any) -> dict[str, Any]:
    """The layers that hold the tables "input" and "output"."""
    return {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}


def split_tables(
    model: Any, rows: TableRows, features: TableRows | None = None
) -> dict[str, SplitTable]:
    """Put split tables into a model; `rows` (n,) of "input" and, where untied, "output" train.

    With `features` (n, f) of a table's rows, these train a map in common.

    Raises `CheckpointError` where embeddings or head do more than look up and multiply.
    """
    layers = table_layers(model)
    inputs, head = layers["input"], layers["output"]
    features = features or {}
    tables = {
        kind: SplitTable(layers[kind].weight.detach(), rows[kind], features.get(kind))
        for kind in rows
    }
    bias, scale = getattr(head, "bias", None), getattr(inputs, "embed_scale", None)
    split = SplitEmbedding(tables["input"], None if scale is None else torch.as_tensor(scale))
    output_table = tables.get("output", tables["input"])
    split_head = SplitHead(output_table, None if bias is None else bias.detach())
    with torch.no_grad():
        ids = torch.cat([rows["input"][:8], torch.arange(min(8, len(inputs.weight)))])
        hidden = torch.linspace(-1, 1, head.weight.shape[1]).to(head.weight)[None]
        logits, expected = split_head(hidden), head(hidden)
        close = (logits - expected).abs().max() <= 0.02 * expected.abs().max()
        same = close and torch.equal(split(ids), inputs(ids))
    if not same:
        raise CheckpointError(
            f"{type(inputs).__name__} or {type(head).__name__} of this model does more than look "
            "up rows and multiply: its new rows cannot be trained alone, train all embeddings"
        )
    model.set_input_embeddings(split)
    model.set_output_embeddings(split_head)
    return tables


def whole_tables(model: Any, kinds: Iterable[str]) -> None:
    """Let whole tables train, in float32, in which Adam's small steps do not vanish."""
    for kind in kinds:
        weight = table_layers(model)[kind].weight
        weight.data = weight.data.float()
        weight.requires_grad_(True)


def new_token_rows(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The rows of new tokens in each table, (n,) int64, as `lep init` saved them beside the model.

    Raises `CheckpointError` where they are not known, and where none or all are new.
    """
    mappings = saved_mappings(checkpoint, appended=True) or {}
    rows = {kind: mapping.new_rows() for kind, mapping in mappings.items()}
    if not rows or not all(map(len, rows.values())):
        raise CheckpointError(
            f"{checkpoint.folder} does not say which of its rows are new "
            "(lep/mapping.safetensors): initialise it with lep init, or train more than new rows"
        )
    if any(len(rows[kind]) >= mapping.target_size for kind, mapping in mappings.items()):
        raise CheckpointError(
            f"all rows of {checkpoint.folder} are new (lep/mapping.safetensors): train embeddings"
        )
    return rows


def row_features(checkpoint: Checkpoint, rows: TableRows) -> dict[str, Tensor]:
    """What new tokens have in common, for maps that all rows of a table train: (n, 2 + 2h) float32.

    The first two columns tell whether a token begins with a space: 1 and 0 if not, 0 and 1 if so.
    The others are the rows of its first and last pieces (its own row, for a piece that the model no
    longer has), scaled so that an Adam step of the map moves a token's row by about as much as a
    step of its own.
    """
    mappings, features = saved_mappings(checkpoint, appended=True) or {}, {}
    contents = checkpoint.vocabulary.contents
    names = checkpoint.tables.by_kind()
    for kind, index in rows.items():
        mapping, table = mappings[kind], checkpoint.tensor(names[kind])
        kept, source = mapping.kept()
        there = torch.full((mapping.source_size,), -1).index_copy_(0, source, kept)
        ends = (mapping.offsets[:-1][index], mapping.offsets[1:][index] - 1)
        pieces = [there[mapping.indices[end]] for end in ends]
        read = [table[torch.where(piece < 0, index, piece)].float() for piece in pieces]
        size = torch.cat(read).abs().sum(1).mean()
        begins = [(contents[row] or b"").startswith(b" ") for row in index.tolist()]
        spaces = torch.nn.functional.one_hot(torch.tensor(begins).long(), 2)
        features[kind] = torch.cat([spaces, *(row / size for row in read)], 1)
    return features


def known_row_size(table: Tensor, trained: Tensor) -> float:
    """Root mean square of the elements of a typical row of a (V, h) table that is not trained.

    Of all rows where all are trained. The row is that of median norm.
    """
    known = torch.ones(len(table), dtype=torch.bool).index_fill_(0, trained, False)
    rows = table if not known.any() else table[known]
    norms = rows.float().norm(dim=1)
    return float(norms[norms > 0].median()) / table.shape[1] ** 0.5


def stored_tables(checkpoint: Checkpoint, rows: TableRows, model: Any) -> dict[str, Tensor]:
    """The tables of a trained model by their names, in the checkpoint's dtype.

    Raises `AssertionError` when a row outside `rows` is not the checkpoint's own, bit for bit.
    """
    stored, layers = {}, table_layers(model)
    for kind, name in checkpoint.tables.by_kind().items():
        before = checkpoint.tensor(name)
        stored[name] = current_table(layers[kind]).cpu().to(before.dtype)
        stay = torch.ones(len(before), dtype=torch.bool).index_fill_(0, rows[kind], False)
        if not torch.equal(stored[name][stay], before[stay]):
            raise AssertionError(f"a frozen row of {name} changed during training")
    return stored


def frozen_digest(model: nn.Module) -> dict[str, str]:
    """SHA-256 of the bytes of each parameter that does not train, by name."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    return {name: sha256(whole(p).cpu()) for name, p in progress(frozen.items(), "tensors hashed")}


def check_frozen(before: Mapping[str, str], model: nn.Module) -> None:
    """Raise `AssertionError` with the name of the first frozen parameter whose bytes changed."""
    after = frozen_digest(model)
    for name, digest in before.items():
        if after.get(name) != digest:
            raise AssertionError(f"the frozen tensor {name} changed during training")
