"""New output rows fitted to the original's states, before the training.

Body and known rows are frozen, so the model that reads text in old tokens is the original. Its
states before each token do not depend on the new rows, and neither do the logits of known tokens.
Of the probability of a token t after a state h, only the logits of the new rows R are open:

    log p(t) = z_t - log(exp(known) + sum of exp(R h)),    known = log sum of exp(known logits)

This is a logistic regression on states that are computed once. Most new tokens are too rare for
rows of their own, so all rows train one map of what they have in common (`row_features`).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import read_tensors, save_tensors
from lep.inference.models import device
from lep.progress import progress
from lep.training import processes
from lep.training.data import collate, tokens_of
from lep.training.loss import head_is_plain
from lep.training.results import OutputFit
from lep.training.trainable_rows import SplitTable, TableRows, known_row_size
from lep.transfer.mappings import saved_mappings

MOST_TOKENS, SHARE = 65_536, 0.25  # tokens that are read for it; of the training at most
EPOCHS, BATCH, HELD_OUT = 12, 2_048, 10  # passes, states of a step; every tenth state is held out
RATE = 0.1  # of the map, as a share of the size of known rows
CHUNK = 256  # states whose known logits are in memory at once


def fit_output(
    model: Any,
    checkpoint: Checkpoint,
    rows: TableRows,
    blocks: Dataset,
    file: Path,
    *,
    stream_weights: Tensor,
    isolated: bool,
    seed: int,
) -> OutputFit | None:
    """Fit the new output rows of a model with split tables to a mixture's first blocks.

    The rows are kept in `file`, and read from it where it exists. Returns None, and changes
    nothing, where the rows have been trained before, the original cannot be had from the model, or
    its logits are not plain products.
    """
    head = model.get_output_embeddings()
    table, segmentation = head.table, OldSegmentation.of(checkpoint, rows)
    if table.shared is None or segmentation is None or head.bias is not None:
        return None
    if not (head_is_plain(model) and as_initialised(checkpoint)):
        return None
    with processes.main_first():
        if not file.exists():
            alone = processes.world_size() == 1
            model.to(device() if alone else "cpu").eval()
            tokens = min(MOST_TOKENS, int(SHARE * tokens_of(blocks)))
            some = first_batches(blocks, tokens, isolated=isolated)
            states = original_states(model, table, segmentation, some, stream_weights)
            size = known_row_size(table.kept, torch.empty(0, dtype=torch.int64))
            fitted, record = fitted_rows(table, states, size, seed)
            numbers = torch.tensor([record.states, record.before, record.after])
            part = file.with_suffix(".part")
            save_tensors(part, {"rows": fitted.cpu(), "record": numbers})
            part.rename(file)
    saved = read_tensors(file, "delete it")
    table.new.data.copy_(saved["rows"])
    count, before, after = saved["record"].tolist()
    return OutputFit(int(count), before, after)


@dataclass(frozen=True)
class OldSegmentation:
    """The old tokens of each token: `pieces[offsets[t]:offsets[t + 1]]` of token t."""

    pieces: Tensor  # (entries,) int64
    offsets: Tensor  # (V + 1,) int64

    @classmethod
    def of(cls, checkpoint: Checkpoint, rows: TableRows) -> "OldSegmentation | None":
        """That of a checkpoint whose `rows` train, as `lep init` saved it.

        None where a new token is not a sequence of tokens that the model still has, or where other
        rows train: then the model without them is not the original.
        """
        mapping = (saved_mappings(checkpoint, appended=True) or {}).get("input")
        if mapping is None or not torch.equal(mapping.new_rows(), rows["input"].sort().values):
            return None
        kept, source = mapping.kept()
        target = torch.full((mapping.source_size,), -1).index_copy_(0, source, kept)
        pieces, contents = target[mapping.indices], checkpoint.vocabulary.contents
        for row in mapping.new_rows().tolist():
            spelled = pieces[mapping.offsets[row] : mapping.offsets[row + 1]].tolist()
            if min(spelled, default=-1) < 0:
                return None
            if b"".join(contents[piece] or b"" for piece in spelled) != contents[row]:
                return None
        pieces[mapping.offsets[:-1][mapping.copies]] = kept
        return cls(pieces, mapping.offsets)

    def expanded(self, ids: Tensor, positions: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """A batch in old tokens, as a model's inputs, and where each token of `ids` (n, t) ends.

        Where position ids restart at each piece of a block, they do so in the old segmentation.
        """
        offsets, pieces = self.offsets.to(ids.device), self.pieces.to(ids.device)
        begins, counts = offsets[ids], offsets[ids + 1] - offsets[ids]
        ends = counts.cumsum(1) - 1
        starts, sizes = ends - counts + 1, counts.sum(1, keepdim=True)
        place = torch.arange(int(sizes.max()), device=ids.device).expand(len(ids), -1)
        there, repeated = place < sizes, counts.flatten()

        def spread(values: Tensor) -> Tensor:
            return values.flatten().repeat_interleave(repeated)

        old = torch.zeros_like(place)
        old[there] = pieces[spread(begins) + place[there] - spread(starts)]
        inputs = {"input_ids": old}
        if positions is not None:
            first = torch.arange(ids.shape[1], device=ids.device) - positions
            restarted = place - sizes  # of the padding
            restarted[there] = place[there] - spread(starts.gather(1, first))
            inputs["position_ids"] = restarted
        return inputs, ends


@dataclass(frozen=True)
class States:
    """What the original says before tokens, and which tokens come."""

    hidden: Tensor  # (n, h) float32
    labels: Tensor  # (n,) int64: the new row, or -1 of a known token
    own: Tensor  # (n,) float32: the logit of a known token
    known: Tensor  # (n,) float32: log sum of exp(logits of known tokens)
    weights: Tensor  # (n,) float32

    def __getitem__(self, chosen: Any) -> "States":
        return States(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def nats(self, rows: Tensor) -> Tensor:
        """Of each token with new `rows` (rows, h), (n,)."""
        logits = self.hidden @ rows.T
        own = logits.gather(1, self.labels.clamp(min=0)[:, None])[:, 0]
        own = torch.where(self.labels < 0, self.own, own)
        return torch.logaddexp(logits.logsumexp(1), self.known) - own


@torch.no_grad()
def original_states(
    model: Any,
    table: SplitTable,
    segmentation: OldSegmentation,
    batches: Iterable[dict[str, Tensor]],
    stream_weights: Tensor,
) -> States:
    """The original's states before the learned tokens of a mixture's batches."""
    decoder, parts = model.get_decoder(), list[States]()
    for batch in batches:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        inputs, ends = segmentation.expanded(batch["input_ids"], batch.get("position_ids"))
        states = decoder(**inputs, use_cache=False).last_hidden_state
        row, column = (batch["labels"][:, 1:] != -100).nonzero(as_tuple=True)
        positions = table.position[batch["labels"][row, column + 1]]
        weights = stream_weights.to(row.device)[batch["streams"][row, column + 1]]
        hidden, frozen = states[row, ends[row, column]], len(table.kept)
        for start in range(0, len(row), CHUNK):
            some = slice(start, start + CHUNK)
            logits = (hidden[some] @ table.kept.to(hidden.dtype).T).float()
            label = positions[some]
            own = logits.gather(1, label.clamp(max=frozen - 1)[:, None])[:, 0]
            new = torch.where(label < frozen, -1, label - frozen)
            known = logits.logsumexp(1)
            parts.append(States(hidden[some].float(), new, own, known, weights[some]))
    return States(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(States)))


def as_initialised(checkpoint: Checkpoint) -> bool:
    """Whether the new output rows are still what `lep init` made of the known ones."""
    kind, name = [*checkpoint.tables.by_kind().items()][-1]  # the input's where they are tied
    mapping = (saved_mappings(checkpoint, appended=True) or {})[kind]
    table = checkpoint.tensor(name)
    kept, source = mapping.kept()
    known = torch.zeros(mapping.source_size, table.shape[1], dtype=table.dtype)
    known[source] = table[kept]
    new = mapping.new_rows()
    size = known_row_size(table, new)
    made = mapping.select(new)(known).float()
    return torch.allclose(table[new].float(), made, rtol=0.02, atol=0.02 * size)


def first_batches(blocks: Dataset, tokens: int, *, isolated: bool) -> Iterator[dict[str, Tensor]]:
    """The first blocks of a training, one a batch, of so many tokens together."""
    for block in blocks:
        if tokens <= 0:
            return
        tokens -= len(block["input_ids"])
        yield collate([block], isolated=isolated)


def fitted_rows(
    table: SplitTable, states: States, size: float, seed: int
) -> tuple[Tensor, OutputFit]:
    """The new rows (n, h) that fit the states best, of those that a map of their features gives.

    `size` is that of known rows. The map of the pass that is best on held-out states is taken; if
    none is better than no map, the rows stay.
    """
    base, features = table.new.detach(), table.features
    shared = torch.zeros(features.shape[1], base.shape[1], device=base.device, requires_grad=True)
    apart = torch.arange(len(states.labels), device=base.device) % HELD_OUT == 0
    learned, heldout = states[~apart], states[apart]
    steps = EPOCHS * math.ceil(len(learned.labels) / BATCH)
    optimizer = torch.optim.Adam([shared], lr=RATE * size, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    first = best = _mean_nats(heldout, base)
    rows = base
    for _ in progress(range(EPOCHS), "passes over the original's states"):
        for chosen in torch.randperm(len(learned.labels), generator=generator).split(BATCH):
            some = learned[chosen.to(base.device)]
            loss = some.nats(base + features @ shared) @ some.weights / some.weights.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        now = base + features @ shared.detach()
        if (nats := _mean_nats(heldout, now)) < best:
            best, rows = nats, now
    return rows, OutputFit(len(states.labels), first, best)


@torch.no_grad()
def _mean_nats(states: States, rows: Tensor) -> float:
    parts = range(0, len(states.labels), BATCH)
    nats = torch.cat([states[start : start + BATCH].nats(rows) for start in parts])
    return float(nats @ states.weights / states.weights.sum())
