"""Make the configuration of any architecture tiny: small numbers by the names of the settings, few exceptions."""

import re
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

HIDDEN, HEADS, HEAD_DIM, LAYERS, EXPERTS = 32, 4, 8, 2, 4

# The first pattern that matches a setting's whole name gives its value; only numbers are set.
RULES: list[tuple[str, Any]] = [
    (
        r"num_(kv|key_value)_heads|num_key_value_heads|num_kv_heads|.*_num_key_value_heads|n_kv_heads|attn_kv_heads",
        2,
    ),
    (
        r"(num_|n_)?(attention_|attn_|decoder_attention_|encoder_attention_)?heads?|n_head|num_heads",
        HEADS,
    ),
    (r".*num_attention_heads|.*_attention_heads", HEADS),
    (r"linear_num_(key|value)_heads", HEADS),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),
    (
        r"(n_layers?|num_layers|num_hidden_layers|n_layer|encoder_layers|decoder_layers|depth)",
        LAYERS,
    ),
    (r"num_(encoder|decoder)_layers", LAYERS),
    (
        r"(hidden_size|d_model|n_embd|embedding_size|emb_dim|model_dim|dim|word_embed_proj_dim|dim_model)",
        HIDDEN,
    ),
    (r"(input|output)_embedding_size|embed_dim|width|n_embed|lru_width", HIDDEN),
    (r"hidden_size_per_layer_input", 8),
    (
        r".*intermediate_size.*|.*ffn_dim|.*ffn_hidden_size|d_inner|feed_forward_size|dim_ff|n_inner|dff",
        2 * HIDDEN,
    ),
    (r"moe_.*ffn.*", 2 * HIDDEN),
    (r"qk_(nope|rope)_head_dim|rotary_dim", HEAD_DIM // 2),
    (r"qk_head_dim", HEAD_DIM),
    (r"global_head_dim|.*head_dim|d_kv|v_head_dim|attention_head_size", HEAD_DIM),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", HEAD_DIM),
    (r"mamba_d_ssm", 64),
    (r"(q|kv|o)_lora_rank|o_lora_rank", 16),
    (r".*mamba_d_state|state_size|ssm_state_size|mamba_d_state", 8),
    (r".*chunk_size", 8),
    (r"(num|n)_(local_|routed_)?experts|moe_num_experts|num_experts", EXPERTS),
    (r".*(experts_per_tok|moe_topk|moe_k|topk|top_k_experts|num_selected_experts|moe_top_k)", 2),
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
    """A small configuration of a model type; raises what its class raises when that cannot be."""
    kind = CONFIG_MAPPING[model_type]
    config = kind(**_small(kind, vocab_size, EXCEPTIONS.get(model_type, {}), ids))
    if hasattr(config, "is_decoder") and not config.is_decoder:
        config.is_decoder = True
    config.is_encoder_decoder = False
    return config


def _small(
    kind: type[PreTrainedConfig], vocab_size: int, exceptions: dict[str, Any], ids: dict[str, int]
) -> dict:
    """Arguments for a configuration class, nested ones too."""
    default = kind()
    settings: dict[str, Any] = {}
    for name, value in vars(default).items():
        if (
            name not in kind.__dataclass_fields__ and name not in kind.attribute_map.values()
        ):  # computed from others
            continue
        part = value
        if isinstance(part, PreTrainedConfig):
            settings[name] = _small(type(part), vocab_size, exceptions.get(name, {}), ids)
            settings[name]["model_type"] = part.model_type
        elif name in ids:
            settings[name] = ids[name]
        elif name == type(default).attribute_map.get("vocab_size", "vocab_size") or (
            name.startswith(("vocab_size", "unpadded_vocab")) and value
        ):
            settings[name] = vocab_size
        elif name == "head_dim" and value is None:
            settings[name] = HEAD_DIM
        elif isinstance(value, int) and not isinstance(value, bool):
            for pattern, small in RULES:
                if re.fullmatch(pattern, name) and value > small:
                    settings[name] = small
                    break
    return settings | {
        k: v for k, v in exceptions.items() if not isinstance(v, dict) or k not in settings
    }
