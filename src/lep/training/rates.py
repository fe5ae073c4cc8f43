"""Learning rates of tables: relative to their known rows, and to what a step does to logits."""

import json
import math
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError
from lep.files import parse_json, read_text
from lep.inference.models import device
from lep.publish import publish_text
from lep.settings import JointSettings, PretrainSettings
from lep.training import processes
from lep.training.results import TableRate
from lep.training.trainable_rows import TableRows, known_row_size
from lep.training.trainer import load_to_train

TOKENS = 256  # whose hidden states are measured


def relative_rates(
    checkpoint: Checkpoint,
    rows: TableRows,
    settings: PretrainSettings,
    ids: list[int],
    folder: Path,
) -> dict[str, TableRate] | None:
    """The peak learning rate of each table; None where one rate is given for both.

    They are shares of the size of a table's known rows. The table that makes the logits has a lower
    one where a step would move a logit by more than `logit_step`: a step of Adam moves an element
    of a row by about the rate, so that it moves a logit by the rate times the sum of the magnitudes
    of the hidden state. This is measured on `ids`, and kept in `folder`.

    Raises `CheckpointError` for rows or states of no size.
    """
    if not isinstance(settings, JointSettings) or settings.relative_rate is None:
        return None
    names = checkpoint.tables.by_kind()
    sizes = {
        kind: known_row_size(checkpoint.tensor(name), rows[kind]) for kind, name in names.items()
    }
    for kind, size in sizes.items():
        if not 0 < size < math.inf:  # NaN too
            raise CheckpointError(
                f"the known {kind} rows of {checkpoint.folder} have a size of {size:g}, so no rate "
                "can be relative to it: the model is damaged, copy it again"
            )
    shares = dict.fromkeys(sizes, settings.relative_rate)
    if settings.logit_step is not None:
        last = "output" if "output" in sizes else "input"  # tied
        step = _state_size(checkpoint, settings, ids[:TOKENS], folder) * sizes[last]
        shares[last] = min(shares[last], settings.logit_step / step)
    return {kind: TableRate(share * sizes[kind], share) for kind, share in shares.items()}


def _state_size(
    checkpoint: Checkpoint, settings: PretrainSettings, ids: list[int], folder: Path
) -> float:
    """What `state_size` gives to the first process, in the first run of a training."""
    file = folder / "states.json"
    with processes.main_first():  # the others read what it measured
        if not file.exists():
            publish_text(file, json.dumps(state_size(checkpoint, settings, ids)))
    size = parse_json(read_text(file), str(file))
    if not 0 < size < math.inf:
        raise CheckpointError(
            f"the hidden states of {checkpoint.folder} have a size of {size:g}, so no rate can be "
            "chosen: the model is damaged, copy it again"
        )
    return size


@torch.inference_mode()
def state_size(checkpoint: Checkpoint, settings: PretrainSettings, ids: list[int]) -> float:
    """The mean sum of the magnitudes of the hidden states that logits are made of.

    Where a model scales the logits afterwards, the states are scaled alike.
    """
    seen: dict[str, Tensor] = {}
    model = load_to_train(checkpoint, settings).eval()
    if processes.world_size() == 1:  # of several, each may hold a part of the model alone
        model = model.to(device())
    model.get_output_embeddings().register_forward_hook(
        lambda _, inputs, logits: seen.update(states=inputs[0].float(), logits=logits.float())
    )
    logits = model(input_ids=torch.tensor([ids], device=model.device)).logits
    scale = logits.float().norm() / seen["logits"].norm()
    size = float(seen["states"].abs().sum(-1).mean() * scale)
    del model
    clear_device_cache(garbage_collection=True)
    return size
