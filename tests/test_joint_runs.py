"""Joint training that is killed, or shared by two processes, ends as one that runs in peace."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SAMPLE, kill_when, weights
from test_processes import launch

from lep.corpus.read import write_records
from lep.settings import JointSettings
from lep.training.pretrain import pretrain
from lep.training.trainer import TablesTrainer
from lep.transfer.initialise import initialise

RU, EN = SAMPLE / "ru", SAMPLE / "en"
STREAMS = {"text", "answers", "practice", "old_text", "old_answers"}
SIZES = {"learning_rate": 5e-3, "block_size": 64, "batch_tokens": 256, "checkpoints": 5}
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def model(pair, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("joint") / "model"
    initialise(pair["instruct"], pair["tokenizer"], folder)
    return folder


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> dict[str, str]:
    """Options of all streams: answers in both languages, and practice of words of the text."""
    folder = tmp_path_factory.mktemp("streams")
    sides = {
        "answers": [
            *((f"Где {word}?", f"Там {word}, у реки.") for word in words(RU, 20)),
            *((f"Where is {word}?", f"There is {word}.") for word in words(EN, 20)),
        ],
        "practice_tasks": [(f"Повтори: {word}", word) for word in words(RU, 60)],
    }
    for name, pairs in sides.items():
        records = [
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
            }
            for question, answer in pairs
        ]
        write_records(folder / f"{name}.jsonl", records)
    return {"old_text": str(EN)} | {name: str(folder / f"{name}.jsonl") for name in sides}


def words(folder: Path, count: int) -> list[str]:
    """The longest words of a sample."""
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.txt")))
    return sorted({word for word in text.split() if word.isalpha()}, key=lambda w: (-len(w), w))[
        :count
    ]


def settings_of(mixture: dict[str, str], **options) -> JointSettings:
    lists = {"old_text": [mixture["old_text"]]}
    return JointSettings(train="new_rows", **SIZES | mixture | lists | options)


def facts(folder: Path) -> dict:
    """The record of a training, without times."""
    record = json.loads((folder / "lep" / "pretrain.json").read_text())
    return {name: value for name, value in record.items() if "seconds" not in name}


class Kill(BaseException):
    """What no code catches."""


def test_the_same_bits_after_a_stop_at_any_step(model, mixture, tmp_path, monkeypatch) -> None:
    settings = settings_of(mixture, tokens=4_500, batch_tokens=128)
    whole = pretrain(model, [RU], tmp_path / "whole", settings)
    assert set(whole.streams) == STREAMS
    assert whole.steps >= 30
    step = TablesTrainer.training_step

    steps = []

    def stopping(trainer, *arguments, **options):
        steps.append(trainer.state.global_step)
        if trainer.state.global_step == stops[0]:
            stops.pop(0)
            raise Kill
        return step(trainer, *arguments, **options)

    monkeypatch.setattr(TablesTrainer, "training_step", stopping)
    stops = [3, 11, whole.steps - 1, -1]  # before a state is saved, between two, before the end
    while len(stops) > 1:
        with pytest.raises(Kill):
            pretrain(model, [RU], tmp_path / "stopped", settings)
        assert not (tmp_path / "stopped").exists()
    pretrain(model, [RU], tmp_path / "stopped", settings)
    assert steps.count(0) == 2  # after the first stop alone there was no state to go on from
    assert facts(tmp_path / "stopped") == facts(tmp_path / "whole")
    one, two = (tmp_path / name / "model.safetensors" for name in ("stopped", "whole"))
    assert one.read_bytes() == two.read_bytes()


def flags(model: Path, output: Path, mixture: dict[str, str], **options) -> list[str]:
    words = [sys.executable, "-m", "lep", "pretrain"]
    given = {"model": model, "corpus": RU, "output": output, "train": "new_rows"}
    for name, value in (given | SIZES | mixture | options).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def saved_step(folder: Path) -> int:
    """The step of the last whole state of a training that is not finished."""
    states = folder.glob("*.partial/work/trainer/checkpoint-*/trainer_state.json")
    return max((int(state.parent.name.rpartition("-")[2]) for state in states), default=0)


@pytest.mark.slow
def test_the_same_bits_after_kills_of_the_process(model, mixture, tmp_path) -> None:
    pretrain(model, [RU], tmp_path / "whole", settings_of(mixture, tokens=20_000))
    command = flags(model, tmp_path / "killed", mixture, tokens=20_000)
    for least in (1, 40):  # steps
        kill_when(command, lambda least=least: saved_step(tmp_path) >= least)
        assert not (tmp_path / "killed").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert facts(tmp_path / "killed") == facts(tmp_path / "whole")
    one, two = (tmp_path / name / "model.safetensors" for name in ("killed", "whole"))
    assert one.read_bytes() == two.read_bytes()


def compare(values: list[float], expected: list[float]) -> None:
    """All but the last, whose step repeats a block where processes cannot share its blocks."""
    assert len(values) == len(expected) > 10
    assert values[:-1] == pytest.approx(expected[:-1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_learns(model, mixture, tmp_path, engine: str) -> None:
    options = {"tokens": 12_000, "batch_tokens": 512, "precision": "float32"}
    one = pretrain(model, [RU], tmp_path / "one", settings_of(mixture, **options))
    options |= SIZES | mixture | {"train": "new_rows"} | options
    ran = launch(model, tmp_path / "two", engine, **options)
    assert ran.returncode == 0, ran.stderr
    first, second = (facts(tmp_path / name) for name in ("one", "two"))
    assert second["processes"] == 2
    for name in ("steps", "blocks", "packed_tokens", "below_practice"):
        assert second[name] == first[name], name
    compare([loss["loss"] for loss in second["losses"]], [loss.loss for loss in one.losses])
    assert first["streams"].keys() == second["streams"].keys() == STREAMS
    for name, stream in first["streams"].items():
        other = second["streams"][name]
        for fact in ("tokens", "share", "learned"):
            assert other[fact] == stream[fact]
        assert [step for step, _ in other["losses"]] == [step for step, _ in stream["losses"]]
        compare(*([loss for _, loss in each["losses"]] for each in (other, stream)))
    compare(*([mass for _, mass in each["new_token_mass"]] for each in (second, first)))
    weights_one, weights_two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in weights_one.items():
        if name in TABLES:
            torch.testing.assert_close(weights_two[name], tensor, rtol=1e-3, atol=1e-4)
        else:
            assert torch.equal(weights_two[name], tensor)
