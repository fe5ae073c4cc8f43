"""Cross-entropy over large vocabularies: logits exist for a few tokens at a time, and are made once."""

from typing import Any

import torch
from torch import Tensor

from lep.mapping import rows_at_once

ROWS = 1 << 14  # whose gradients a GPU makes in 16 bits at once, before they are added in 32
# Tokens. On a CPU, at a vocabulary of 6,144, the fastest of 128 to 1,024, 1.6 times as fast as all at once. On a GPU
# each chunk reads and writes the whole gradient of the tables, longer than the products of a few hundred tokens take.
LOSS_CHUNK, GPU_LOSS_CHUNK = 256, 1_024
LEAST_LOG = -64.0  # below it probabilities come near the least number of float32


def linear_cross_entropy(
    hidden: Tensor, labels: Tensor, tables: list[Tensor], bias: Tensor | None = None
) -> Tensor:
    """Sum in nats of the cross-entropies of the logits `hidden @ [tables]' + bias`, as a float32 scalar.

    `hidden` is (n, h); `tables` are (V_i, h), stacked in thought; `labels` (n,) are rows of the stack; `bias` is
    (sum of V_i,). Products are made in the dtype of `hidden`, sums over the vocabulary in float32. Gradients are made
    in the forward pass, chunk by chunk, and only for what requires them: a frozen table costs no memory.
    """
    return _LinearCrossEntropy.apply(hidden, labels, bias, *tables)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, labels: Tensor, bias: Tensor | None, *tables: Tensor
    ) -> Tensor:
        sizes = [len(table) for table in tables]
        wanted = ctx.needs_input_grad
        narrow = [table.detach().to(hidden.dtype) for table in tables]
        of_hidden = torch.zeros_like(hidden) if wanted[0] else None
        of_bias = torch.zeros(sum(sizes), device=hidden.device) if wanted[2] else None
        of_tables = [
            torch.zeros(table.shape, dtype=torch.float32, device=table.device) if want else None
            for table, want in zip(tables, wanted[3:], strict=True)
        ]
        on_cpu = hidden.device.type == "cpu"
        size, gradient_rows = (
            LOSS_CHUNK if on_cpu else GPU_LOSS_CHUNK,
            rows_at_once(hidden.shape[1]) if on_cpu else ROWS,
        )
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # Written over by each chunk: fresh memory of this size costs as much as what is done with it.
        logits = hidden.new_empty(min(size, len(hidden)), sum(sizes))
        in_place = on_cpu and hidden.dtype == torch.float32
        probabilities = logits if in_place else torch.empty_like(logits, dtype=torch.float32)
        for start in range(0, len(hidden), size):
            states, targets = hidden[start : start + size], labels[start : start + size, None]
            made, slopes = logits[: len(states)], probabilities[: len(states)]
            _multiply(states, narrow, bias, made)
            if on_cpu:  # which, asked to change the type, makes a copy of its own
                torch.softmax(slopes.copy_(made), 1, out=slopes)
            else:
                torch.softmax(made, 1, dtype=torch.float32, out=slopes)
            found = slopes.gather(1, targets).log()
            lost = (found < LEAST_LOG).flatten().nonzero().flatten()  # too unlikely for float32
            if len(lost):
                again = _multiply(
                    states[lost], narrow, bias, logits.new_empty(len(lost), sum(sizes))
                )
                found[lost] = again.log_softmax(1, dtype=torch.float32).gather(1, targets[lost])
            total -= found.sum()
            if not any(wanted):
                continue
            # The gradient of the logits: probabilities, less one at the target.
            slopes.scatter_add_(1, targets, slopes.new_full((1, 1), -1.0).expand_as(targets))
            if of_bias is not None:
                of_bias += slopes.sum(0)
            for table, gradient, part in zip(
                narrow, of_tables, made.copy_(slopes).split(sizes, 1), strict=True
            ):
                if of_hidden is not None:
                    of_hidden[start : start + size].addmm_(part, table)
                if gradient is not None and gradient.dtype == part.dtype:
                    gradient.addmm_(part.T, states)
                elif gradient is not None:
                    for rows, slope in zip(
                        gradient.split(gradient_rows), part.T.split(gradient_rows), strict=True
                    ):
                        rows += slope @ states
        ctx.gradients = (of_hidden, None, of_bias, *of_tables)
        ctx.dtypes = (
            hidden.dtype,
            None,
            bias.dtype if bias is not None else None,
            *(table.dtype for table in tables),
        )
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return tuple(
            None if gradient is None else gradient.mul_(outer[0]).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )


def _multiply(states: Tensor, tables: list[Tensor], bias: Tensor | None, place: Tensor) -> Tensor:
    """Logits of some states, written into `place`."""
    for table, part in zip(tables, place.split([len(table) for table in tables], 1), strict=True):
        torch.mm(states, table.T, out=part)
    if bias is not None:
        place += bias
    return place
