"""A folder for MLX: safetensors, config.json and tokenizer as mlx-lm reads them."""

from lep.exports.folder import Program
from lep.exports.job import Exported, Job

PROGRAM = Program("mlx", "mlx-lm", "mlx_lm", "mlx-lm", "lep.exports.run_mlx")
check = PROGRAM.check


def write(job: Job) -> Exported:
    """Convert, and prove in MLX itself."""
    return PROGRAM.write(job, lambda folder: None, [])
