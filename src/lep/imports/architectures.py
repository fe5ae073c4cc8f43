"""What a GGUF file says of a model, as config.json, and its tensors by transformers' names.

A setting that no entry here knows is refused: transformers' own conversion leaves such settings out
(the scaling of positions, for example), and the model then computes something else.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lep.errors import CheckpointError
from lep.imports.gguf_file import GgufFile

Config = dict[str, Any]
INSTEAD = "take the repository from which the file was made"  # the way out of every refusal
LAYER = re.compile(r"blk\.(\d{1,4})\.(.+)")
FREQUENCIES = "rope_freqs.weight"  # by how much Llama 3.1 slows each frequency of its positions
# What all kinds have: names of settings here and there.
COMMON = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
# Read elsewhere, or without meaning for what the model computes.
READ = (
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
)
TABLES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


@dataclass(frozen=True)
class Kind:
    """One of llama.cpp's architectures in transformers."""

    model_type: str
    model_class: str
    layer: Mapping[str, str]  # names of the tensors of a layer, without .weight
    settings: Callable[[GgufFile, Config], Config] = lambda file, config: {}
    keys: tuple[str, ...] = ()  # further keys, which `settings` reads
    paired: bool = False  # whether the two halves of a rotation are neighbours in queries and keys
    shifted: bool = False  # whether norms have one added
    fixed: Config = field(default_factory=dict)


def _llama(file: GgufFile, config: Config) -> Config:
    """Biases where there are some, and the slowed positions of Llama 3.1."""
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
    return {key: name in file.tensors for key, name in biases.items()}


def _gemma3(file: GgufFile, config: Config) -> Config:
    """Five layers of six look at a window; the scale of attention is llama.cpp's."""
    window = _number(file, "gemma3.attention.sliding_window", int)
    largest = config["num_hidden_layers"] == 62  # its heads are scaled by the width of the model
    scale = config["hidden_size"] // config["num_attention_heads"]
    return {
        "sliding_window": window,
        "query_pre_attn_scalar": scale if largest else config["head_dim"],
        "rope_local_base_freq": _number(file, "gemma3.rope.freq_base_swa", float, 10_000.0),
        "final_logit_softcapping": file.metadata.get("gemma3.final_logit_softcapping"),
    }


KINDS = {
    "llama": Kind(
        "llama",
        "LlamaForCausalLM",
        ATTENTION | {"ffn_norm": "post_attention_layernorm"},
        _llama,
        paired=True,
    ),
    "qwen2": Kind(
        "qwen2", "Qwen2ForCausalLM", ATTENTION | {"ffn_norm": "post_attention_layernorm"}
    ),
    "qwen3": Kind(
        "qwen3", "Qwen3ForCausalLM", ATTENTION | NORMS | {"ffn_norm": "post_attention_layernorm"}
    ),
    "gemma3": Kind(
        "gemma3_text",
        "Gemma3ForCausalLM",
        ATTENTION
        | NORMS
        | {
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        _gemma3,
        ("attention.sliding_window", "rope.freq_base_swa", "final_logit_softcapping"),
        shifted=True,
        fixed={"hidden_activation": "gelu_pytorch_tanh", "sliding_window_pattern": 6},
    ),
}


def kind_of(file: GgufFile) -> Kind:
    """Raises `CheckpointError` for an architecture, or a setting of it, that is not known here."""
    name = str(file.metadata.get("general.architecture"))[:60]
    if file.metadata.get("split.count", 0) not in (0, 1):
        raise CheckpointError(
            f"{file.path} is one of several files of a model: merge them with llama.cpp's "
            "llama-gguf-split --merge"
        )
    if name not in KINDS:
        raise CheckpointError(
            f"{file.path} is a model of the architecture {name}, and lep imports only "
            f"{', '.join(KINDS)}: {INSTEAD}"
        )
    known = {f"{name}.{key}" for key in (*COMMON, *READ, *KINDS[name].keys)}
    for key, value in file.metadata.items():
        if key.startswith(f"{name}.") and key not in known and value not in (0, "", []):
            raise CheckpointError(
                f"{file.path} sets {key} ({str(value)[:40]}), which is not known here: {INSTEAD}"
            )
    return KINDS[name]


def config_of(file: GgufFile, kind: Kind) -> Config:
    """The content of config.json, without the ids of tokens.

    Raises `CheckpointError` for settings that are missing, of another type, or not known here.
    """
    name = file.metadata["general.architecture"]
    heads = f"{name}.attention.head_count"
    config: Config = {"architectures": [kind.model_class], "model_type": kind.model_type}
    for key, setting in COMMON.items():
        default = _number(file, heads, int) if key.endswith("_kv") else None
        of = float if setting == "rms_norm_eps" else int
        config[setting] = _number(file, f"{name}.{key}", of, default)
    width = max(1, config["hidden_size"] // max(1, config["num_attention_heads"]))
    rotated = _number(file, f"{name}.rope.dimension_count", int, 0)
    head = _number(file, f"{name}.attention.key_length", int, rotated or width)
    value = _number(file, f"{name}.attention.value_length", int, head)
    if {head, value, rotated or head} != {head}:
        raise CheckpointError(
            f"heads of {file.path} have {head} numbers in keys, {value} in values, and "
            f"{rotated} that are rotated, which is not known here: {INSTEAD}"
        )
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path} has no embeddings (token_embd.weight): {INSTEAD}")
    config |= {
        "head_dim": head,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_theta": _number(file, f"{name}.rope.freq_base", float, 10_000.0),
        "rope_scaling": _scaling(file, name),
    }
    return config | kind.fixed | kind.settings(file, config)


def target_name(kind: Kind, name: str) -> str | None:
    """The name of a tensor in transformers; None if there is none.

    >>> target_name(KINDS["llama"], "blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        return None
    if stem in TABLES:
        return f"{TABLES[stem]}.{suffix}"
    layer = LAYER.fullmatch(stem)
    if layer is None or layer[2] not in kind.layer:
        return None
    return f"model.layers.{int(layer[1])}.{kind.layer[layer[2]]}.{suffix}"


def restored(kind: Kind, config: Config, name: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """What turns a whole tensor of the file into transformers' one; None where they are equal."""
    part = name.rpartition(".")[0].rpartition(".")[2]
    if kind.paired and part in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
        return lambda rows: _halves(rows, heads)
    if kind.shifted and part.endswith("norm"):
        return lambda rows: rows - 1
    return None


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys with the first halves of all rotations before the second ones.

    >>> _halves(np.arange(8), 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _scaling(file: GgufFile, name: str) -> Config | None:
    """The setting rope_scaling."""
    form = file.metadata.get(f"{name}.rope.scaling.type", "none")
    if FREQUENCIES in file.tensors or form == "none":
        return None  # see `slowed`
    if form not in ("linear", "yarn"):
        raise CheckpointError(
            f"{file.path} scales its positions by {str(form)[:40]}, which is not known here: "
            f"{INSTEAD}"
        )
    scaling = {"rope_type": form, "factor": _number(file, f"{name}.rope.scaling.factor", float)}
    if form == "yarn":
        key = f"{name}.rope.scaling.original_context_length"
        scaling["original_max_position_embeddings"] = _number(file, key, int)
    return scaling


def slowed(factors: np.ndarray, config: Config) -> Config | None:
    """The setting rope_scaling that gives Llama 3.1's factors; None if all are one.

    The wavelengths at which slowing begins and ends are those of all published models (Llama 3.1 to
    3.3). Raises `CheckpointError` for other factors.
    """
    if (factors == 1).all():
        return None
    size, low, high, context = config["head_dim"], 1.0, 4.0, 8192
    lengths = 2 * np.pi * config["rope_theta"] ** (np.arange(0, size, 2) / size)
    most = float(factors.max())
    smooth = ((context / lengths - low) / (high - low)).clip(0, 1)
    expected = 1 / ((1 - smooth) / most + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise CheckpointError(
            f"the file scales the frequencies of its positions ({FREQUENCIES}) in a way that is "
            f"not known here: {INSTEAD}"
        )
    return {
        "rope_type": "llama3",
        "factor": most,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


def _number(file: GgufFile, key: str, of: type, default: Any = None) -> Any:
    """A positive number. A float is the shortest that has the same 32 bits: 1e-06, for example."""
    value = file.metadata.get(key, default)
    allowed = (int, float) if of is float else (int,)
    if type(value) not in allowed or not (value > 0 or value == default == 0) or value == np.inf:
        raise CheckpointError(f"{key} of {file.path} is {str(value)[:40]}: {INSTEAD}")
    return float(str(np.float32(value))) if of is float else value
