"""Several processes train what one trains: data parallel, and with sharded weights (FSDP2)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import kill_when
from safetensors.torch import load_file

from lep.settings import PretrainSettings
from lep.training.pretrain import pretrain
from lep.transfer.initialise import initialise

SAMPLE = Path(__file__).parent.parent / "lab" / "text" / "train" / "ru"
ENGINES = {
    "ddp": {},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    },
}
TRAINED = ("model.embed_tokens.weight", "lm_head.weight")


def command(model: Path, output: Path, engine: str, **settings) -> list[str]:
    """`lep pretrain` in two processes on this machine, as `torchrun` starts it."""
    lep = ["-m", "lep"] if engine == "ddp" else [str(Path(__file__).parent / "fsdp_on_cpu.py")]
    starter = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *lep,
    ]
    options = []
    for name, value in settings.items():
        options += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return [
        *starter,
        "pretrain",
        "--model",
        str(model),
        "--corpus",
        str(SAMPLE),
        *options,
        "--output",
        str(output),
    ]


def environment(engine: str) -> dict[str, str]:
    return os.environ | ENGINES[engine] | {"OMP_NUM_THREADS": "1"}


def launch(model: Path, output: Path, engine: str, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(model, output, engine, **settings),
        env=environment(engine),
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def model(pair, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes") / "model"
    initialise(pair["base"], pair["tokenizer"], folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("train", ["embeddings", "new_rows"])
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_reach_the_loss_of_one(
    model, tmp_path, engine: str, train: str, precision: str
) -> None:
    settings = {
        "tokens": 6_000,
        "learning_rate": 5e-3,
        "block_size": 64,
        "batch_tokens": 512,
        "train": train,
    }
    settings |= {"precision": precision}
    expected = pretrain(model, [SAMPLE], tmp_path / "one", PretrainSettings(**settings))
    ran = launch(model, tmp_path / "two", engine, **settings, eval_text=f"ru={SAMPLE}")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("nats a token") == 1  # one of them speaks
    record = json.loads((tmp_path / "two" / "lep" / "pretrain.json").read_text())
    assert (record["processes"], expected.processes) == (2, 1)
    assert record["best_step"] == record["steps"]
    assert record["share_of_weights_held"] == pytest.approx(
        0.5 if engine == "fsdp2" else 1.0, abs=0.05
    )
    assert record["losses"][0]["loss"] == pytest.approx(
        expected.losses[0].loss, rel=1e-4
    )  # not rounded
    for two_processes, one_process in zip(record["losses"], expected.losses, strict=True):
        assert two_processes["loss"] == pytest.approx(
            one_process.loss, rel=1e-4 if precision == "float32" else 5e-3
        )
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        if name not in TRAINED:
            assert torch.equal(two[name], tensor)
        elif (
            precision == "float32"
        ):  # what bf16 rounds away, Adam's first steps make a whole step of
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_go_on_where_they_were_stopped(model, tmp_path, engine: str) -> None:
    settings = {"tokens": 20_000, "learning_rate": 5e-3, "block_size": 64, "batch_tokens": 256}
    kill_when(
        command(model, tmp_path / "killed", engine, **settings),
        lambda: list(tmp_path.glob("killed.partial/work/trainer/checkpoint-*/trainer_state.json")),
        env=environment(engine),
    )
    assert not (tmp_path / "killed").exists()
    for name in ("killed", "whole"):
        ran = launch(model, tmp_path / name, engine, **settings)
        assert ran.returncode == 0, ran.stderr
    killed, whole = (
        load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole")
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(killed[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_sweep_as_one(model, tmp_path) -> None:
    settings = {"tokens": 3_000, "learning_rate": 5e-3, "block_size": 64, "batch_tokens": 256}
    ran = launch(model, tmp_path / "two", "ddp", **settings, eval_text=f"ru={SAMPLE}", sweep=True)
    assert ran.returncode == 0, ran.stderr
    record = json.loads((tmp_path / "two" / "lep" / "pretrain.json").read_text())
    chosen = PretrainSettings(**settings, eval_text={"ru": [str(SAMPLE)]}, sweep=True)
    expected = pretrain(model, [SAMPLE], tmp_path / "one", chosen)
    assert record["sweep"]["best"] == expected.sweep.best
    for rate, bits in expected.sweep.bits_per_byte.items():
        assert record["sweep"]["bits_per_byte"][rate] == pytest.approx(bits, rel=1e-4)
