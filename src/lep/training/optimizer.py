"""What training tables of rare rows needs beside Adam, as hooks before its steps."""

import math
from typing import Any

import torch

from lep.training.processes import local, whole

EPSILON_SHARE, LEAST_EPSILON = 1.0, 1e-8


@torch.no_grad()
def decay_touched_rows(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Weight decay of the rows with a gradient in this step; unused rows do not shrink."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("decay_of_touched_rows") else ():
            if parameter.grad is not None:
                rows, slopes = local(parameter), local(parameter.grad)
                shrunk = 1 - group["lr"] * group["decay_of_touched_rows"]
                rows.mul_(torch.where((slopes != 0).any(1, keepdim=True), shrunk, 1.0))


@torch.no_grad()
def scale_epsilon(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Set Adam's epsilon for a table to a share of the root mean square of its gradients.

    Every token that does not come next pushes its output row a little, a thousand times less than
    one that does. Adam divides this by itself, so that in a short training rows that no text has
    used go as far as the others, and where tables are tied their input rows go with them.
    """
    for group in optimizer.param_groups:
        table = max(group["params"], key=torch.numel, default=None)
        if table is None or table.grad is None or group.get("keeps_epsilon"):
            continue
        beta, state = group["betas"][1], optimizer.state[table]
        step = 1 + int(state.get("step", 0))
        squares = (1 - beta) * float(whole(table.grad.square().sum()))
        if "exp_avg_sq" in state:
            squares += beta * float(whole(state["exp_avg_sq"].sum()))
        mean = squares / table.numel() / (1 - beta**step)
        group["eps"] = max(EPSILON_SHARE * math.sqrt(mean), LEAST_EPSILON)
