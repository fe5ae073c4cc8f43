"""Cross-entropy over large vocabularies, with the logits of a few tokens in memory at a time."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer

from lep.mapping import rows_at_once
from lep.training.trainable_rows import SplitHead, current_table

GPU_GRADIENT_ROWS = 1 << 14  # computed in 16 bits at once, before they are added in float32
# Tokens per chunk. On a CPU with a vocabulary of 6,144, 256 is the fastest of 128 to 1,024, and 1.6
# times as fast as one chunk. On a GPU each chunk reads and writes the tables' whole gradient, which
# takes longer than the products of a few hundred tokens.
LOSS_CHUNK, GPU_LOSS_CHUNK = 256, 1_024
LEAST_LOG = -64.0  # lower log-probabilities are near the smallest number of float32
# What some architectures do to logits; capping cannot be seen while logits are small.
LOGIT_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass(frozen=True)
class Details:
    """Weights of the tokens of a mixture, and what a head fills in beside its loss.

    Wrappers of modules leave it alone; they would give the head a copy of a tensor, in another
    dtype.
    """

    streams: Tensor  # (n,) int64, their numbers
    weights: Tensor  # (n,) float32
    values: Tensor  # (n, 2) float32: cross-entropy, and probability of new tokens

    @classmethod
    def of(cls, trainer: Any, streams: Tensor) -> "Details":
        """Of learned tokens, given the number of each one's stream."""
        weights = trainer.stream_weights.to(streams.device)[streams]
        return cls(streams, weights, weights.new_zeros(len(weights), 2))


def chunk_loss(trainer: Trainer) -> bool:
    """Let the model return only the loss where labels are given, by `linear_cross_entropy`.

    Body and head stay modules that are called, as the wrappers for several processes need. Returns
    False where the logits are not plain: nothing is changed then, except that the streams of a
    mixture are told apart, with the logits of the whole batch in memory.
    """
    model: Any = trainer.model
    with trainer.accelerator.autocast():
        is_plain = head_is_plain(model)
    if not is_plain and not getattr(trainer, "stream_sums", None):
        return False
    head = model.get_output_embeddings()
    project, forward = head.forward, model.forward

    def head_forward(
        hidden: Tensor, labels: Tensor | None = None, details: Details | None = None
    ) -> Tensor:
        return project(hidden) if labels is None else head_loss(head, hidden, labels, details)

    def loss_forward(
        *args: Any,
        labels: Any = None,
        num_items_in_batch: Any = None,
        streams: Any = None,
        **others: Any,
    ) -> Any:
        if labels is None:
            return forward(*args, **others)
        targets = labels[:, 1:].flatten()
        learned = targets != -100
        details = (
            None if streams is None else Details.of(trainer, streams[:, 1:].flatten()[learned])
        )
        others["use_cache"] = False
        if is_plain:
            states = model.get_decoder()(*args, **others).last_hidden_state
            total = head(states[:, :-1].flatten(0, 1)[learned], targets[learned], details)
        else:
            logits = forward(*args, **others).logits[:, :-1].flatten(0, 1)[learned].float()
            total = logits_loss(head, logits, targets[learned], details)
        if details is not None:
            trainer.stream_sums.add(details.streams, details.values)
        count = learned.sum() if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / count}

    if is_plain:
        head.forward = head_forward
    model.forward = loss_forward
    trainer.model_accepts_loss_kwargs = True
    return is_plain


def logits_loss(head: Any, logits: Tensor, labels: Tensor, details: Details | None) -> Tensor:
    """Weighted sum in nats of the cross-entropies of (n, V) logits in float32."""
    nats = cross_entropy(logits, labels, reduction="none")
    if details is None:
        return nats.sum()
    details.values[:, 0] = nats.detach()
    if isinstance(head, SplitHead):
        new = head.table.position >= len(head.table.kept)
        details.values[:, 1] = logits.detach().softmax(1)[:, new].sum(1)
    return nats @ details.weights


def head_loss(head: Any, hidden: Tensor, labels: Tensor, details: Details | None = None) -> Tensor:
    """Sum in nats of the cross-entropies of (n, h) hidden states, in the dtype of autocast."""
    bias, device = getattr(head, "bias", None), hidden.device.type
    if isinstance(head, SplitHead):
        tables, position = [head.table.kept, head.table.trained()], head.table.position
        labels = position[labels]
        bias = None if bias is None else torch.empty_like(bias).index_copy_(0, position, bias)
    else:
        tables = [head.weight]
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return linear_cross_entropy(hidden, labels, tables, bias, details)


@torch.no_grad()
def head_is_plain(model: Any) -> bool:
    """Whether the logits are just the head on the decoder's output, without scaling or capping.

    The logits must be those of the head, computed alike, and the head a product with its table up
    to the rounding of the dtype.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    if decoder is None or any(getattr(config, name, None) for name in LOGIT_SETTINGS):
        return False
    ordinary = config.vocab_size // 2 + torch.arange(8, device=model.device)
    ids = ordinary[None] % config.vocab_size  # the first ids are special tokens
    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
    projected = head(hidden).float()
    plain = hidden.float() @ current_table(head).float().T
    if (bias := getattr(head, "bias", None)) is not None:
        plain = plain + bias
    logits = model(input_ids=ids, use_cache=False).logits.float()
    same = (logits - projected).abs().max() <= 1e-3 * projected.abs().max()
    return bool(same and (plain - projected).abs().max() <= 0.02 * projected.abs().max())


def linear_cross_entropy(
    hidden: Tensor,
    labels: Tensor,
    tables: list[Tensor],
    bias: Tensor | None = None,
    details: Details | None = None,
) -> Tensor:
    """Sum in nats of the cross-entropies of the logits `hidden @ [tables]' + bias`, in float32.

    `hidden` is (n, h); `tables` are (V_i, h), treated as one matrix; `labels` (n,) are its rows;
    `bias` is (sum of V_i,). Products use the dtype of `hidden`, sums over the vocabulary float32.
    Gradients are computed chunk by chunk in the forward pass, and only where required: a frozen
    table costs no memory. `details` weigh the rows of `hidden`, and are filled with the
    cross-entropy of each and the probability of all rows after the first table.
    """
    return _LinearCrossEntropy.apply(hidden, labels, bias, details, *tables)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        details: Details | None,
        *tables: Tensor,
    ) -> Tensor:
        sizes, needed = [len(table) for table in tables], ctx.needs_input_grad
        narrow = [table.detach().to(hidden.dtype) for table in tables]
        of_hidden = torch.zeros_like(hidden) if needed[0] else None
        of_bias = torch.zeros(sum(sizes), device=hidden.device) if needed[2] else None
        of_tables = [
            torch.zeros(table.shape, dtype=torch.float32, device=table.device) if need else None
            for table, need in zip(tables, needed[4:], strict=True)
        ]
        on_cpu = hidden.device.type == "cpu"
        size = LOSS_CHUNK if on_cpu else GPU_LOSS_CHUNK
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # All chunks share these: allocating memory of this size costs as much as the arithmetic.
        logits = hidden.new_empty(min(size, len(hidden)), sum(sizes))
        in_place = on_cpu and hidden.dtype == torch.float32
        probabilities = logits if in_place else torch.empty_like(logits, dtype=torch.float32)
        for start in range(0, len(hidden), size):
            states, targets = hidden[start : start + size], labels[start : start + size, None]
            scores, slopes = logits[: len(states)], probabilities[: len(states)]
            _multiply(states, narrow, bias, scores)
            if on_cpu:  # a CPU's softmax would copy the scores to change their type
                torch.softmax(slopes.copy_(scores), 1, out=slopes)
            else:
                torch.softmax(scores, 1, dtype=torch.float32, out=slopes)
            logs = slopes.gather(1, targets).log()
            unlikely = (logs < LEAST_LOG).flatten().nonzero().flatten()  # too small for float32
            if len(unlikely):
                space = logits.new_empty(len(unlikely), sum(sizes))
                exact = _multiply(states[unlikely], narrow, bias, space)
                exact = exact.log_softmax(1, dtype=torch.float32)
                logs[unlikely] = exact.gather(1, targets[unlikely])
            weights = None
            if details is not None:
                part = details.values[start : start + size]
                part[:, 0], part[:, 1] = -logs[:, 0], slopes[:, sizes[0] :].sum(1)
                weights = details.weights[start : start + size, None]
            total -= (logs if weights is None else logs * weights).sum()
            if not any(needed):
                continue
            # The gradient of the logits: probabilities, less one at the target.
            slopes.scatter_add_(1, targets, slopes.new_full((1, 1), -1.0).expand_as(targets))
            if weights is not None:
                slopes *= weights
            if of_bias is not None:
                of_bias += slopes.sum(0)
            parts = scores.copy_(slopes).split(sizes, 1)
            for table, gradient, part in zip(narrow, of_tables, parts, strict=True):
                if of_hidden is not None:
                    of_hidden[start : start + size].addmm_(part, table)
                if gradient is not None:
                    _add_product(gradient, part, states)
        ctx.gradients = (of_hidden, None, of_bias, None, *of_tables)
        ctx.dtypes = [
            t.dtype if t is not None else None for t in (hidden, None, bias, None, *tables)
        ]
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return tuple(
            None if gradient is None else gradient.mul_(outer[0]).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )


def _multiply(states: Tensor, tables: list[Tensor], bias: Tensor | None, logits: Tensor) -> Tensor:
    """Write the logits of some states into `logits`, and return it."""
    for table, part in zip(tables, logits.split([len(table) for table in tables], 1), strict=True):
        torch.mm(states, table.T, out=part)
    if bias is not None:
        logits += bias
    return logits


def _add_product(gradient: Tensor, slopes: Tensor, states: Tensor) -> None:
    """Add `slopes' @ states` to a float32 gradient (V, h), a few rows at a time in 16 bits."""
    if gradient.dtype == slopes.dtype:
        gradient.addmm_(slopes.T, states)
        return
    on_cpu = states.device.type == "cpu"
    count = rows_at_once(states.shape[1]) if on_cpu else GPU_GRADIENT_ROWS
    for rows, part in zip(gradient.split(count), slopes.T.split(count), strict=True):
        rows += part @ states
