"""Tiny configurations of any architecture: small numbers by the names of settings."""

import re
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

HIDDEN, HEADS, HEAD_DIM, LAYERS, EXPERTS = 32, 4, 8, 2, 4

# The first pattern that matches a setting's whole name gives its value, if that is smaller.
RULES: list[tuple[str, int]] = [
    (r"num_(kv|key_value)_heads|.*_num_key_value_heads|(n|attn)_kv_heads", 2),
    (r"(num_|n_)?((decoder_|encoder_)?attention_|attn_)?heads?", HEADS),
    (r".*_attention_heads|linear_num_(key|value)_heads", HEADS),
    (r"mamba_(n|num)_heads|n_mamba_heads", 8),
    (r"(n|num|num_hidden|(num_)?(encoder|decoder))_layers|n_layer|depth", LAYERS),
    (
        r"hidden_size|d_model|(model_)?dim|dim_model|n_embe?d|emb(ed)?_dim|word_embed_proj_dim",
        HIDDEN,
    ),
    (r"((input|output)_)?embedding_size|(lru_)?width", HIDDEN),
    (r"hidden_size_per_layer_input", 8),
    (r".*intermediate_size.*|.*ffn_dim|.*ffn_hidden_size|moe_.*ffn.*", 2 * HIDDEN),
    (r"d_inner|feed_forward_size|dim_ff|n_inner|dff", 2 * HIDDEN),
    (r"qk_(nope|rope)_head_dim|rotary_dim", HEAD_DIM // 2),
    (r".*head_dim|mamba_d_head|mamba_headdim|d_kv|attention_head_size", HEAD_DIM),
    (r"mamba_d_ssm", 64),
    (r"(q|kv|o)_lora_rank", 16),
    (r".*mamba_d_state|(ssm_)?state_size", 8),
    (r".*chunk_size", 8),
    (r"(num|n)_(local_|routed_)?experts|moe_num_experts", EXPERTS),
    (r".*(experts_per_tok|topk|top_k_experts|num_selected_experts|moe_top_k|moe_k)", 2),
    (r"n_group|topk_group|num_expert_group|n_groups|mamba_n_groups|mamba_ngroups", 1),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length", 128),
    (r"sliding_window|attention_window_size|window_size|local_attention", 16),
    (r"image_size", 16),
    (r"patch_size", 8),
    (r"decoder_sparse_step|first_k_dense_replace|num_dense_layers", 1),
]

# What the rules cannot know: settings that depend on each other in one architecture.
MIXED = {"num_hidden_layers": 4}  # a hybrid of layer types needs one layer of each
INDEXED = {
    "index_head_dim": HEAD_DIM,
    "index_n_heads": HEADS,
    "index_topk": 64,
    "num_key_value_heads": HEADS,
}
BLOCKS = ["mamba", "hybrid", "mamba", "hybrid"]
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "axk2": INDEXED,
    "bailing_hybrid": {
        "layer_group_size": 2,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
    },
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v32": INDEXED,
    "dots3_note": {
        "text_config": {"num_key_value_heads": HEADS},
        "vision_config": {
            "num_hidden_layers": 42,
            "adapter_in_dim": HIDDEN,
            "adapter_out_dim": HIDDEN,
        },
        "audio_config": {"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
    },
    "dots3_note_text": {"num_key_value_heads": HEADS},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "emu3": {
        "vocabulary_map": {"<image>": 9},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1]},
    },
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": 64},
    "glm_moe_dsa": INDEXED,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": MIXED | {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "kolibri1": {"num_experts": EXPERTS, "num_experts_per_tok": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": MIXED,
    "longcat_flash": {"head_dim": 4, "n_routed_experts": EXPERTS, "moe_topk": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_5_moe_text": MIXED,
    "qwen3_5_text": MIXED,
    "qwen3_next": MIXED,
    "qwen4_exp_text": MIXED
    | {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD_DIM,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16], "is_decoder": True},
    "roc_bert": {
        "shape_vocab_size": 50,
        "pronunciation_vocab_size": 50,
        "shape_embed_dim": 32,
        "pronunciation_embed_dim": 32,
    },
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": MIXED | {"layers_block_type": BLOCKS},
    "zamba2": MIXED | {"layers_block_type": BLOCKS, "num_mem_blocks": 1},
}


def tiny_config(model_type: str, vocab_size: int, ids: dict[str, int]) -> PreTrainedConfig:
    """A small configuration of a model type; raises what its class raises for impossible ones."""
    config_class = CONFIG_MAPPING[model_type]
    exceptions = EXCEPTIONS.get(model_type, {})
    config = config_class(**_small(config_class, vocab_size, exceptions, ids))
    if hasattr(config, "is_decoder") and not config.is_decoder:
        config.is_decoder = True
    config.is_encoder_decoder = False
    return config


def _small(
    config_class: type[PreTrainedConfig],
    vocab_size: int,
    exceptions: dict[str, Any],
    ids: dict[str, int],
) -> dict[str, Any]:
    """Arguments for a configuration class, nested ones too."""
    synonyms, settings = config_class.attribute_map, {}
    sizes = (synonyms.get("vocab_size", "vocab_size"), "vocab_size", "unpadded_vocab")
    for name, value in vars(config_class()).items():
        if name not in config_class.__dataclass_fields__ and name not in synonyms.values():
            continue  # computed from others
        if isinstance(value, PreTrainedConfig):
            settings[name] = _small(type(value), vocab_size, exceptions.get(name, {}), ids)
            settings[name]["model_type"] = value.model_type
        elif name in ids:
            settings[name] = ids[name]
        elif name == sizes[0] or (name.startswith(sizes[1:]) and value):
            settings[name] = vocab_size
        elif name == "head_dim" and value is None:
            settings[name] = HEAD_DIM
        elif type(value) is int and (small := _small_number(name, value)) is not None:
            settings[name] = small
    nested = {name for name, value in exceptions.items() if isinstance(value, dict)}
    return settings | {k: v for k, v in exceptions.items() if k not in nested & settings.keys()}


def _small_number(name: str, value: int) -> int | None:
    smaller = (n for pattern, n in RULES if re.fullmatch(pattern, name) and value > n)
    return next(smaller, None)
