"""Tables of which some rows train and the others stay: what trains is a table of its own, and takes the only memory."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError
from lep.training.processes import whole
from lep.transfer.mappings import saved_mappings


class SplitTable(nn.Module):
    """A (V, h) table as the rows that stay, `kept` (V - n, h), and those that train, `new` (n, h) in float32.

    `place` (V,) is where each row is in the two, one after the other.
    """

    def __init__(self, table: Tensor, rows: Tensor) -> None:
        super().__init__()
        trains = torch.zeros(len(table), dtype=torch.bool)
        trains[rows] = True
        stay, rows = (~trains).nonzero().flatten(), trains.nonzero().flatten()
        last = len(rows) == 0 or int(rows[0]) == len(stay)  # then nothing needs to be copied
        place = torch.empty(len(table), dtype=torch.int64)
        place[torch.cat([stay, rows])] = torch.arange(len(table))
        self.kept: Tensor
        self.place: Tensor
        self.register_buffer("kept", table[: len(stay)] if last else table[stay], persistent=False)
        self.register_buffer("place", place, persistent=False)
        self.new = nn.Parameter(table[rows].float())

    def whole(self) -> Tensor:
        """The table as it is now, (V, h), in the dtype of the rows that stay."""
        return torch.cat([self.kept, whole(self.new).to(self.kept)])[self.place]


class SplitEmbedding(nn.Module):
    """What `embedding` does, on a split table."""

    def __init__(self, table: SplitTable, scale: Tensor | None = None) -> None:
        super().__init__()
        self.table = table
        self.scale: Tensor | None
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        place, stay = self.table.place[ids], len(self.table.kept)
        kept = embedding(place.clamp(max=max(stay - 1, 0)), self.table.kept)
        new = embedding((place - stay).clamp(min=0), self.table.new).to(kept.dtype)
        found = torch.where((place >= stay)[..., None], new, kept)
        return found if self.scale is None else found * self.scale.to(found.dtype)


class SplitHead(nn.Module):
    """A linear head on a split table. Its logits are in the order of the ids."""

    def __init__(self, table: SplitTable, bias: Tensor | None = None) -> None:
        super().__init__()
        self.table = table
        self.bias: Tensor | None
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        parts = [hidden @ part.to(hidden.dtype).T for part in (self.table.kept, self.table.new)]
        logits = torch.cat(parts, dim=-1)[..., self.table.place]
        return logits if self.bias is None else logits + self.bias


def split_tables(model: Any, rows: dict[str, Tensor]) -> dict[str, SplitTable]:
    """Put split tables into a model, `rows` (n,) of each training: `input` and, where untied, `output`.

    Raises `CheckpointError` for an architecture whose embeddings or head do more than look up and multiply.
    """
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = {"input": SplitTable(inputs.weight.detach(), rows["input"])}
    if "output" in rows:
        tables["output"] = SplitTable(head.weight.detach(), rows["output"])
    bias = getattr(head, "bias", None)
    scale = getattr(inputs, "embed_scale", None)
    split = SplitEmbedding(tables["input"], None if scale is None else torch.as_tensor(scale))
    split_head = SplitHead(
        tables.get("output", tables["input"]), None if bias is None else bias.detach()
    )
    with torch.no_grad():
        ids = torch.cat([rows["input"][:8], torch.arange(min(8, len(inputs.weight)))])
        hidden = torch.linspace(-1, 1, head.weight.shape[1]).to(head.weight)[None]
        ours, theirs = split_head(hidden), head(hidden)
        same = (
            torch.equal(split(ids), inputs(ids))
            and (ours - theirs).abs().max() <= 0.02 * theirs.abs().max()
        )
    if not same:
        raise CheckpointError(
            f"{type(inputs).__name__} or {type(head).__name__} of this model does more than look up rows and multiply: "
            "its new rows cannot be trained alone, train all embeddings"
        )
    model.set_input_embeddings(split)
    model.set_output_embeddings(split_head)
    return tables


def new_rows(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Which rows of each table are new tokens', (n,) int64, as `lep init` left it beside the model.

    Raises `CheckpointError` where that is not known, or nothing is new.
    """
    mappings = saved_mappings(checkpoint, appended=True) or {}
    rows = {kind: mapping.new_rows() for kind, mapping in mappings.items()}
    if not rows or not all(map(len, rows.values())):
        raise CheckpointError(
            f"{checkpoint.folder} does not say which of its rows are new (lep/mapping.safetensors): initialise it with "
            "lep init, or train more than new rows"
        )
    return rows


def stored_tables(
    checkpoint: Checkpoint, rows: dict[str, Tensor], trained: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Trained tables by their names, in the checkpoint's dtype; all but their `rows` are proven to be its own."""
    tables = {}
    for kind, name in checkpoint.tables.by_kind().items():
        old = checkpoint.tensor(name)
        tables[name] = trained[kind].cpu().to(old.dtype)
        stay = torch.ones(len(old), dtype=torch.bool).index_fill_(0, rows[kind], False)
        if not torch.equal(tables[name][stay], old[stay]):
            raise AssertionError(f"a row of {name} that stays changed during training")
    return tables


def whole_tables(model: Any, kinds: Iterable[str]) -> dict[str, Callable[[], Tensor]]:
    """Let tables train as they are, in float32, in which Adam's small steps do not vanish; how to read each."""
    layers = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    for kind in kinds:
        layers[kind].weight.data = layers[kind].weight.data.float()
        layers[kind].weight.requires_grad_(True)
    return {kind: lambda layer=layers[kind]: whole(layer.weight) for kind in kinds}  # type: ignore[misc]


def head_tables(head: Any) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """The tables that a head multiplies by, its bias in their order, and where each id is among their rows."""
    bias = getattr(head, "bias", None)
    if not isinstance(head, SplitHead):
        return [head.weight], bias, None
    place = head.table.place
    ordered = None if bias is None else torch.empty_like(bias).index_copy_(0, place, bias)
    return [head.table.kept, head.table.new], ordered, place
