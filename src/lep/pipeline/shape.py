"""The sizes of a model, from its configuration, and what follows: operations, memory, speed."""

from dataclasses import dataclass
from pathlib import Path

from lep.checkpoint.architecture import Architecture
from lep.checkpoint.config import read_config
from lep.pipeline.sampled_savings import Savings
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.training.loss import GPU_LOSS_CHUNK, LOGIT_SETTINGS, LOSS_CHUNK

CONTEXT_TOKENS = 2_000  # that a served answer looks back on, with the old vocabulary


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, from its configuration."""

    body: int  # parameters outside the tables
    rows: int  # of a table
    hidden: int
    tables: int  # 1 if they are tied
    layers: int
    inner: int
    cache: int  # elements of the KV cache per token
    plain: bool  # logits are just the head's products, so that the loss takes them in chunks
    ids: int  # rows that the tokenizer needs; the others are padding

    @classmethod
    def of(cls, folder: Path) -> "Shape":
        """Raises `CheckpointError` if the folder holds no causal language model."""
        probed = Architecture.probe(folder, read_config(folder))
        model, text = probed.model, probed.model.config.get_text_config()
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        tables = {id(module.weight) for module in ends}
        rows, hidden = ends[0].weight.shape
        unique = {id(tensor): tensor for tensor in probed.tensors.values()}
        body = sum(tensor.numel() for key, tensor in unique.items() if key not in tables)
        layers, heads = text.num_hidden_layers, getattr(text, "num_attention_heads", None) or 0
        inner = getattr(text, "intermediate_size", None) or 4 * hidden
        inner = max(inner) if isinstance(inner, list | tuple) else inner  # one for each layer
        head = getattr(text, "head_dim", None) or hidden // max(1, heads)
        cached = (getattr(text, "num_key_value_heads", None) or heads) if heads else 0
        cache = 2 * layers * cached * head
        plain = not any(getattr(text, name, None) for name in LOGIT_SETTINGS)
        ids = len(Vocabulary.of(load_tokenizer(folder)))
        return cls(body, rows, hidden, len(tables), layers, inner, cache, plain, ids)

    def token_operations(self, rows: int, trained_rows: int, *, recomputes: bool) -> float:
        """Forward and backward through body and head, and the gradient of the head's rows.

        Activation checkpointing (`recomputes`) adds a second forward pass through the body.
        """
        again = 2 * self.body if recomputes else 0
        return 2 * self.forward_operations(rows) + again + 2 * trained_rows * self.hidden

    def forward_operations(self, rows: int) -> float:
        """Of a token that is read or written, through body and head."""
        return 2 * (self.body + rows * self.hidden)

    def rows_with(self, new_tokens: int) -> int:
        """Rows of a table with so many new tokens: padding rows are used first."""
        return max(self.rows, self.ids + new_tokens)

    def speedup(self, savings: Savings, new_rows: int) -> float:
        """How many times as fast text is generated, by the parameters and cache read per token."""
        share = savings.after / savings.before
        old = self.body + self.rows * self.hidden + self.cache * CONTEXT_TOKENS
        new = self.body + new_rows * self.hidden + self.cache * CONTEXT_TOKENS * share
        return old / (share * new)


def training_memory(
    shape: Shape,
    rows: int,
    trained: int,
    tokens: int,
    *,
    width: int,
    on_cpu: bool = False,
    recomputes: bool = False,
    maps: bool = False,
) -> dict[str, float]:
    """Bytes of a training by what they hold: tables of `rows`, of which `trained` train, each step.

    Frozen weights and products have `width` bytes an element; what trains has float32 weights,
    gradients and two moments. With `recomputes`, states between layers are float32, and the rest
    is of one layer. `maps` in common train too, on float32 features of the rows.
    """
    table, copies = rows * shape.hidden, trained * shape.hidden * shape.tables
    features = (2 + 2 * shape.hidden) * shape.tables if maps else 0
    frozen = shape.body + (table * shape.tables if trained < rows else 0)
    layer = width * (8 * shape.hidden + 4 * shape.inner)
    layers = 4 * shape.hidden * shape.layers + layer if recomputes else layer * shape.layers
    chunk = LOSS_CHUNK if on_cpu else GPU_LOSS_CHUNK
    logits = 4 if on_cpu and width == 4 else 3 * 4  # a CPU's float32 softmax is in place
    head = width * table if width < 4 else 0
    return {
        "frozen weights": width * frozen,
        "trained rows with gradients and moments": 16 * copies,
        **({"maps in common": (4 * trained + 16 * shape.hidden) * features} if maps else {}),
        "16-bit head and its gradient": head + 4 * trained * shape.hidden,
        "logits": logits * (chunk if shape.plain else tokens) * rows,
        "activations": tokens * layers,
    }
