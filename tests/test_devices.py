"""GPU code on a pretended device, which computes on the CPU and refuses to mix devices.

PyTorch allows one Python device in a process, for all of its life: hence a separate process.
"""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
MOVING = (aten._to_copy, aten.to, aten.copy_, aten._has_compatible_shallow_copy_type)
INDEXING = (
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
)  # places may be on the CPU
NARROWED = ("linear", "matmul", "mm", "bmm", "addmm")  # by autocast


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="torch has no Python devices",
)
def test_nothing_mixes_devices() -> None:
    ran = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-4_000:]


class Elsewhere(Tensor):
    """A tensor that says it is on the pretended device; `held` is what it has."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("pretend", 0),
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.tolist:  # not for subclasses
                return args[0].held.tolist()
            if func is scaled_dot_product_attention:  # its choice of kernels asks the device
                return attention(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return called(func, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """Sees what makes tensors, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return called(func, args, kwargs or {})


def called(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the CPU. Raises `RuntimeError` for tensors of both devices."""
    leaves = tree_leaves((args, kwargs))
    elsewhere = [leaf for leaf in leaves if isinstance(leaf, Elsewhere)]
    on_cpu = [
        leaf
        for leaf in leaves
        if isinstance(leaf, Tensor) and not isinstance(leaf, Elsewhere) and leaf.dim()
    ]
    packet = func.overloadpacket
    indices = tree_leaves(args[1]) if packet in INDEXING and isinstance(args[0], Elsewhere) else []
    mixed = [tensor for tensor in on_cpu if not any(tensor is index for index in indices)]
    if elsewhere and mixed and packet not in MOVING:
        raise RuntimeError(
            f"{func} of tensors on two devices: {[tuple(t.shape) for t in mixed]} on the CPU"
        )
    devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    there = devices[0].type == "pretend" if devices else bool(elsewhere)
    if packet is aten.copy_:
        there = isinstance(args[0], Elsewhere)

    def bare(leaf: Any) -> Any:
        leaf = leaf.held if isinstance(leaf, Elsewhere) else leaf
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    known = {id(tensor.held): tensor for tensor in elsewhere}  # what was written to is returned
    result = func(*tree_map(bare, args), **tree_map(bare, kwargs))

    def dressed(leaf: Any) -> Any:
        return known[id(leaf)] if id(leaf) in known else Elsewhere(leaf)

    return tree_map(
        lambda leaf: dressed(leaf) if there and isinstance(leaf, Tensor) else leaf, result
    )


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    assert not enable_gqa
    scores = query @ key.transpose(-1, -2) * (scale or 1 / math.sqrt(query.shape[-1]))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(
            ~attn_mask, torch.finfo(scores.dtype).min
        )  # padding sees nothing
    return scores.float().softmax(-1).to(value.dtype) @ value


def pretend() -> torch.device:
    """Make the device, with autocast to bf16."""

    class Backend(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

    backend_registration._setup_privateuseone_for_python_backend("pretend", Backend())
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def narrowing(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def narrow(leaf: Any) -> Any:
            wide = isinstance(leaf, Tensor) and leaf.is_floating_point()
            return leaf.to(torch.get_autocast_dtype("pretend")) if wide else leaf

        def narrowed(*args: Any) -> Tensor:
            with torch._C._ExcludeDispatchKeyGuard(key):
                return operation(*map(narrow, args))

        return narrowed

    LIBRARIES[0].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in NARROWED:
        LIBRARIES[1].impl(name, narrowing(getattr(aten, name).default), "AutocastPrivateUse1")
    torch._C._set_only_lift_cpu_tensors(True)  # else `torch.tensor` moves past the mode
    torch.__future__.set_overwrite_module_params_on_conversion(
        True
    )  # else `Module.to` swaps insides
    return torch.device("pretend", 0)


def inferred(source: Path, device: torch.device) -> list[Any]:
    """What a model says and thinks likely."""
    from conftest import sample_texts

    from lep.benchmark.scoring import continuation_nats
    from lep.inference import models
    from lep.inference.generate import Sampling, answers
    from lep.inference.likelihood import text_nats
    from lep.inference.next_byte import first_bytes, next_byte_nats
    from lep.training.data import isolates
    from lep.training.trainable_rows import frozen_digest

    models.device = lambda: device
    model, checkpoint = models.load_model(source)
    assert model.device == device
    model.bfloat16()  # as a GPU has it
    tokenizer, shared = checkpoint.tokenizer, list(range(10, 50))
    sequences = [([*shared, 60 + i], [7, 8 + i]) for i in range(6)] + [([5, 6], [9])]
    prompts = [[{"role": "user", "content": text}] for text in ("Привет", "Hello there, my friend")]
    classes = first_bytes(checkpoint.vocabulary, checkpoint.shape(checkpoint.tables.names[-1])[0])
    for drawn in (None, Sampling(0.8, 0.9, 1)):
        list(answers(model, tokenizer, prompts, max_new_tokens=5, batch_size=2, sampling=drawn))
    return [
        [
            nats
            for _, nats in text_nats(
                model, tokenizer, [text[:900] for text in sample_texts("ru")[:5]], 2
            )
        ],
        [nats for _, nats, _ in continuation_nats(model, sequences, 4)],
        next_byte_nats(model, classes, [([1, 2, 3, 4, 5], [2, 3])])[0].tolist(),
        [float(isolates(model)), float(len(frozen_digest(model.requires_grad_(False))))],
    ]


def trained(source: Path, train: str, device: torch.device, folder: Path) -> list[Any]:
    """Losses of some steps in bf16, and held-out text after them."""
    from conftest import SAMPLE
    from transformers import AutoModelForCausalLM

    from lep.checkpoint.reader import Checkpoint
    from lep.training.data import collate
    from lep.training.heldout import HeldoutText
    from lep.training.loss import chunk_loss
    from lep.training.optimizer import decay_touched_rows
    from lep.training.trainable_rows import (
        new_token_rows,
        split_tables,
        stored_tables,
        whole_tables,
    )
    from lep.training.trainer import TrainedOnlyTrainer

    checkpoint = Checkpoint(source)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto").requires_grad_(False)
    if train == "new_rows":
        rows = new_token_rows(checkpoint)
        split_tables(model, rows)
    else:
        names = checkpoint.tables.by_kind()
        rows = {kind: torch.arange(checkpoint.shape(name)[0]) for kind, name in names.items()}
        whole_tables(model, rows)
    model.to(device).train()

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16)

    given: Any = SimpleNamespace(model=model, accelerator=SimpleNamespace(autocast=autocast))
    assert chunk_loss(given)
    samples = [
        {"input_ids": list(range(490, 510)), "lengths": [8, 12]},
        {"input_ids": [9, 500], "lengths": [2]},
    ]
    batch = {name: tensor.to(device) for name, tensor in collate(samples).items()}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "decay_of_touched_rows": 0.1}], lr=1e-2, weight_decay=0.0
    )
    optimizer.register_step_pre_hook(decay_touched_rows)
    losses = []
    for _ in range(4):
        with autocast():
            loss = model(**batch, num_items_in_batch=torch.tensor(19, device=device))["loss"]
        with torch.autograd.set_multithreading_enabled(False):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    with autocast():
        look = HeldoutText({"ru": [str(SAMPLE / "ru")]}, 2_000, checkpoint).look(model)
    stored_tables(checkpoint, rows, model)
    saver: Any = SimpleNamespace(
        model=model, args=SimpleNamespace(output_dir=str(folder / train), should_save=True)
    )
    TrainedOnlyTrainer.save_model(saver)
    TrainedOnlyTrainer._load_from_checkpoint(saver, str(folder / train))
    return [losses, [look["ru"], look["ru copied"]]]


def main(folder: Path) -> None:
    from conftest import SAMPLE, SPECIALS, TEMPLATE, byte_level_tokenizer, sample_texts, save_model

    from lep.tokenizer.write import extend_tokenizer
    from lep.transfer.initialise import initialise

    tokenizer = byte_level_tokenizer(sample_texts("en")[:3] + sample_texts("ru")[:2], 450, SPECIALS)
    save_model(folder / "model", tokenizer, template=TEMPLATE, dtype=torch.bfloat16)
    extend_tokenizer(folder / "model", [SAMPLE / "ru"], 60, folder / "tokenizer")
    initialise(folder / "model", folder / "tokenizer", folder / "start")
    runs: list[Callable[[torch.device], list[Any]]] = [
        lambda device: inferred(folder / "start", device),
        lambda device: trained(folder / "start", "embeddings", device, folder),
        lambda device: trained(folder / "start", "new_rows", device, folder),
    ]
    expected = [each(torch.device("cpu")) for each in runs]
    device = pretend()
    with Pretending():
        elsewhere = torch.ones(2, device=device)
        with pytest.raises(RuntimeError, match="two devices"):
            elsewhere + torch.ones(2)
        for each, known in zip(runs, expected, strict=True):
            for here, there in zip(known, each(device), strict=True):
                torch.testing.assert_close(
                    torch.tensor(there), torch.tensor(here), rtol=2e-2, atol=2e-2
                )


if __name__ == "__main__":
    LIBRARIES = (
        torch.library.Library("_", "IMPL"),
        torch.library.Library("aten", "IMPL"),
    )  # as long as they live
    with TemporaryDirectory() as temporary:
        main(Path(temporary))
