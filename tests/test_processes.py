"""Several processes train what one trains: data parallel, and with sharded weights (FSDP2)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SAMPLE, kill_when, weights

from lep.settings import JointSettings, PretrainSettings
from lep.training.pretrain import pretrain
from lep.transfer.initialise import initialise

EN, RU = SAMPLE / "en", SAMPLE / "ru"
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
FSDP |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
ENGINES = {"ddp": {}, "fsdp2": FSDP}
SETTINGS = {"learning_rate": 5e-3, "block_size": 64}
TRAINED = ("model.embed_tokens.weight", "lm_head.weight")


def torchrun(*words: str) -> list[str]:
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*starter, "--nproc-per-node", "2", *words]


def command(model: Path, output: Path, engine: str, **settings) -> list[str]:
    """`lep pretrain` in two processes on this machine, as `torchrun` starts it."""
    lep = ["-m", "lep"] if engine == "ddp" else [str(Path(__file__).parent / "fsdp_on_cpu.py")]
    return torchrun(*lep, *arguments(model, output, **settings))


def arguments(model: Path, output: Path, **settings) -> list[str]:
    words = ["pretrain"]
    settings = {"model": model, "corpus": RU, "output": output} | settings
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def environment(engine: str) -> dict[str, str]:
    return os.environ | ENGINES[engine] | {"OMP_NUM_THREADS": "1"}


def launch(model: Path, output: Path, engine: str, **settings) -> subprocess.CompletedProcess:
    words = command(model, output, engine, **settings)
    return subprocess.run(words, env=environment(engine), capture_output=True, text=True)


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
    settings = SETTINGS | {"tokens": 6_000, "batch_tokens": 512}
    settings |= {"train": train, "precision": precision}
    expected = pretrain(model, [RU], tmp_path / "one", PretrainSettings(**settings))
    ran = launch(model, tmp_path / "two", engine, **settings, eval_text=f"ru={RU}")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("nats a token") == 1  # one of them speaks
    record = json.loads((tmp_path / "two" / "lep" / "pretrain.json").read_text())
    assert (record["processes"], expected.processes) == (2, 1)
    assert record["step_tokens"] == expected.step_tokens == 512
    assert record["best_step"] == record["steps"]
    share = 0.5 if engine == "fsdp2" else 1.0
    assert record["share_of_weights_held"] == pytest.approx(share, abs=0.05)
    losses = [loss["loss"] for loss in record["losses"]]
    assert losses[0] == pytest.approx(expected.losses[0].loss, rel=1e-4)  # not rounded
    tolerance = 1e-4 if precision == "float32" else 5e-3
    assert losses == pytest.approx([loss.loss for loss in expected.losses], rel=tolerance)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one.items():
        if name not in TRAINED:
            assert torch.equal(two[name], tensor)
        elif precision == "float32":  # Adam's first steps magnify what bf16 rounds away
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_a_mixture_as_one(model, tmp_path, engine: str) -> None:
    """Adam's epsilon there follows the gradients of the whole table, not those of a shard."""
    settings = {"tokens": 6_000, "batch_tokens": 512, "block_size": 64, "relative_rate": 0.06}
    settings |= {"train": "new_rows", "precision": "float32"}
    joint = JointSettings(**settings, old_text=[str(EN)])
    expected = pretrain(model, [RU], tmp_path / "one", joint)
    ran = launch(model, tmp_path / "two", engine, **settings, old_text=EN)
    assert ran.returncode == 0, ran.stderr
    record = json.loads((tmp_path / "two" / "lep" / "pretrain.json").read_text())
    # The last step has fewer blocks, which two processes share otherwise; its rate is nearly zero.
    losses = [loss["loss"] for loss in record["losses"][:-1]]
    assert losses == pytest.approx([loss.loss for loss in expected.losses[:-1]], rel=1e-4)
    two = weights(tmp_path / "two")
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_go_on_where_they_were_stopped(model, tmp_path, engine: str) -> None:
    settings = SETTINGS | {"tokens": 20_000, "batch_tokens": 256}
    words = command(model, tmp_path / "killed", engine, **settings)
    states = "killed.*.partial/work/trainer/checkpoint-*/trainer_state.json"
    kill_when(words, lambda: list(tmp_path.glob(states)), env=environment(engine))
    assert not (tmp_path / "killed").exists()
    for name in ("killed", "whole"):
        ran = launch(model, tmp_path / name, engine, **settings)
        assert ran.returncode == 0, ran.stderr
    killed = weights(tmp_path / "killed")
    for name, tensor in weights(tmp_path / "whole").items():
        torch.testing.assert_close(killed[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_are_refused_where_they_would_double_the_steps(model, tmp_path) -> None:
    settings = SETTINGS | {"tokens": 3_000, "batch_tokens": 64}
    ran = launch(model, tmp_path / "out", "ddp", **settings)
    assert "2 processes would train 128 tokens a step" in ran.stderr
    assert "instead of 64: start fewer processes" in ran.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("batch_tokens", "is_refused"), [(256, False), (192, True)])
def test_two_processes_go_on_where_one_was_stopped(
    model, tmp_path, batch_tokens: int, is_refused: bool
) -> None:
    """Unless they cannot share its steps of three sequences, but would take a fourth."""
    settings = SETTINGS | {"tokens": 20_000, "batch_tokens": batch_tokens, "precision": "float32"}
    alone = [sys.executable, "-m", "lep", *arguments(model, tmp_path / "killed", **settings)]
    states = "killed.*.partial/work/trainer/checkpoint-*/trainer_state.json"
    kill_when(alone, lambda: list(tmp_path.glob(states)), env=environment("ddp"))
    ran = launch(model, tmp_path / "killed", "ddp", **settings)
    if is_refused:
        assert "2 processes would take 4: go on with 1 process, or delete" in ran.stderr
        assert list(tmp_path.glob(states))
        subprocess.run(alone, env=environment("ddp"), check=True, capture_output=True)
    else:
        assert ran.returncode == 0, ran.stderr
    record = json.loads((tmp_path / "killed" / "lep" / "pretrain.json").read_text())
    whole = pretrain(model, [RU], tmp_path / "whole", PretrainSettings(**settings))
    assert record["processes"] == (1 if is_refused else 2)
    assert record["steps"] == whole.steps
    losses = [loss["loss"] for loss in record["losses"]]
    assert losses == pytest.approx([loss.loss for loss in whole.losses], rel=1e-4)


@pytest.mark.slow
def test_each_process_may_read_the_model_from_a_disk_of_its_own(model, tmp_path) -> None:
    """Copies of a file have times of their own, which are part of what a training is known by."""
    for rank in range(2):
        shutil.copytree(model, tmp_path / f"disk{rank}" / "model", copy_function=shutil.copy)
    settings = SETTINGS | {"tokens": 1_000, "batch_tokens": 256}
    words = arguments(Path("model"), tmp_path / "out", **settings)
    on_disk = f'cd {tmp_path}/disk$RANK && exec "$@"'
    lep = ["--no-python", "sh", "-c", on_disk, "sh", sys.executable, "-m", "lep", *words]
    ran = subprocess.run(torchrun(*lep), env=environment("ddp"), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk0", "disk1", "out"]


@pytest.mark.slow
def test_two_processes_sweep_as_one(model, tmp_path) -> None:
    settings = SETTINGS | {"tokens": 3_000, "batch_tokens": 256}
    ran = launch(model, tmp_path / "two", "ddp", **settings, eval_text=f"ru={RU}", sweep=True)
    assert ran.returncode == 0, ran.stderr
    record = json.loads((tmp_path / "two" / "lep" / "pretrain.json").read_text())
    chosen = PretrainSettings(**settings, eval_text={"ru": [str(RU)]}, sweep=True)
    expected = pretrain(model, [RU], tmp_path / "one", chosen)
    assert record["sweep"]["best"] == expected.sweep.best
    for rate, bits in expected.sweep.bits_per_byte.items():
        assert record["sweep"]["bits_per_byte"][rate] == pytest.approx(bits, rel=1e-4)


PATIENCE = """
import os, time
from datetime import timedelta
import torch
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import _get_default_group, _set_pg_timeout
from lep.training import processes

processes.join()
usual = _get_default_group()._get_backend(torch.device("cpu")).options._timeout
assert usual == default_pg_timeout
_set_pg_timeout(timedelta(seconds=1))
time.sleep(3 * processes.is_main())
processes.wait()
time.sleep(3 * processes.is_main())
try:
    torch.distributed.all_reduce(torch.ones(1))
except RuntimeError:
    if not processes.is_main():
        print("noticed", flush=True)
os._exit(0)  # without a goodbye to a group that is broken
"""


@pytest.mark.slow
def test_only_waiting_is_patient(tmp_path) -> None:
    """The others wait long for the first process, but training soon misses one that is gone."""
    (tmp_path / "patience.py").write_text(PATIENCE, encoding="utf-8")
    words = torchrun(str(tmp_path / "patience.py"))
    ran = subprocess.run(words, env=environment("ddp"), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "noticed\n"
