"""A folder for MLX: safetensors, config.json and tokenizer as mlx-lm reads them."""

from typing import Any

from lep.exports.folder import Program
from lep.exports.job import Exported, Job

PROGRAM = Program("mlx", "mlx-lm", "mlx_lm", "mlx-lm", "lep.exports.run_mlx")
check = PROGRAM.check


def write(job: Job) -> Exported:
    """Convert, and prove in MLX itself."""
    return PROGRAM.write(job, lambda folder: None, [], settings=with_earlier_names)


def with_earlier_names(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of rotary positions also under the names that they had before transformers 5.

    Most models of mlx-lm read `rope_theta` and `rope_scaling`, and take a default where
    config.json has `rope_parameters` instead. Gemma 3 has these for each kind of layer.
    """
    config = dict(config)
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = with_earlier_names(config["text_config"])
    parameters = config.get("rope_parameters") or {}
    names: dict[str, Any] = {}
    if isinstance(local := parameters.get("sliding_attention"), dict):
        names["rope_local_base_freq"] = local.get("rope_theta")
    if isinstance(whole := parameters.get("full_attention"), dict):
        parameters = whole
    names |= {name: parameters.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    if parameters.get("rope_type", "default") != "default":
        names["rope_scaling"] = {k: v for k, v in parameters.items() if k != "rope_theta"}
    return {name: value for name, value in names.items() if value is not None} | config
