"""Linear layers of a model that only writes and reads, in the order in which a CPU multiplies."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import mkldnn

PACKED = (torch.float32, torch.bfloat16)
ROWS = 32  # that a layer usually multiplies at once


class PackedLinear(nn.Module):
    """A linear layer without gradients, its weight in oneDNN's order.

    torch brings a weight into such an order in every call, which takes longer than the product
    where few tokens are written at once.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, *, keep: bool = False) -> None:
        """With `keep`, the weight stays beside the packed one."""
        super().__init__()
        if keep:
            self.weight = layer.weight
        weight = layer.weight.detach()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self.bias = None if layer.bias is None else layer.bias.detach()

    def __getattr__(self, name: str) -> Any:
        """The weight in its own order, for models that read it; it is not kept."""
        if name == "weight" and name not in self._parameters:
            return self.packed.to_dense()
        return super().__getattr__(name)

    def forward(self, states: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        product: Any = torch.ops.mkldnn._linear_pointwise
        return product(states, self.packed, self.bias, "none", [], "")


@torch.no_grad()
def pack(model: Any) -> None:
    """Replace the linear layers of a model on a CPU, in float32 or bf16; no other model changes.

    The head keeps its weight beside the packed one: it may be the embeddings', and others read it.
    """
    if not (mkldnn.is_available() and mkldnn.enabled):
        return
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            weight = getattr(layer, "weight", None)
            if type(layer) is not nn.Linear or weight is None:
                continue
            if weight.dtype in PACKED and weight.device.type == "cpu":
                setattr(module, name, PackedLinear(layer, keep=layer is head))
