"""Models behind OpenAI-compatible servers: the same scores as in memory; servers that fail."""

import gc
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from benchmark_data import write_data
from openai_server import serving

from lep.benchmark import backend
from lep.errors import LepError
from lep.evaluation.evaluate import evaluate
from lep.evaluation.records import BenchmarkRecord, Record, TextRecord, decode
from lep.inference.models import load_model
from lep.settings import EvaluateSettings

LAB = Path(__file__).parent.parent / "lab" / "pair"
TEXT = Path(__file__).parent.parent / "lab" / "text" / "train" / "ru"
GENERATED = ["daru_copy_sentence_ru", "daru_copy_paragraph_en", "daru_multiq", "daru_use"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "sets")


@pytest.fixture(scope="module")
def instruct():
    return load_model(LAB / "instruct")


def settings(data: Path, tasks: list[str], limit: int = 6) -> EvaluateSettings:
    benchmark = {"tasks": tasks, "data": str(data), "limit": limit}
    return EvaluateSettings(
        tasks=[], bootstrap=20, characters=1500, window_characters=300, benchmark=benchmark
    )


def records(output: Path) -> dict[str, list[Record]]:
    """The records of each model."""
    models: dict[str, list[Record]] = {}
    for line in (output / "records.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        models.setdefault(record["model"], []).append(decode(record))
    return models


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2, 20])
def test_a_server_gives_the_scores_of_the_model_in_memory(instruct, data, tmp_path, limit) -> None:
    model, checkpoint = instruct
    local = str(LAB / "instruct")
    tasks = ["daru_rwsd", "daru_rucola", "rublimp", "arithmetic", *GENERATED]
    with serving(model, checkpoint.tokenizer) as url:
        evaluate(
            [local, f"{local}@{url}"],
            {"ru": [TEXT]},
            tmp_path / "out",
            settings(data, tasks, limit),
        )
    here, there = records(tmp_path / "out").values()
    here = [r for r in here if r.kind != "task"]
    assert len(here) == len(there) > 8 * limit
    for mine, served in zip(here, there, strict=True):
        if isinstance(mine, TextRecord):
            assert served.nats == pytest.approx(mine.nats, rel=1e-5)
            assert served.tokens == mine.tokens
            continue
        assert isinstance(mine, BenchmarkRecord)
        assert served.scores == mine.scores
        if mine.choices is None:
            assert served.output.strip() == mine.output.strip()
            assert served.tokens == mine.tokens
        else:
            assert list(served.choices) == list(mine.choices)
            assert list(served.choices.values()) == pytest.approx(
                list(mine.choices.values()), rel=1e-4, abs=1e-4
            )


@pytest.mark.slow
def test_a_base_model_behind_a_server(data, tmp_path) -> None:
    model, checkpoint = load_model(LAB / "base")
    local = str(LAB / "base")
    with serving(model, checkpoint.tokenizer) as url:
        evaluate(
            [local, f"{local}@{url}"],
            {},
            tmp_path / "out",
            settings(data, ["daru_rcb", "daru_copy_sentence_ru"], 2),
        )
    here, there = records(tmp_path / "out").values()
    assert [r.scores for r in here] == [r.scores for r in there]
    assert {r.shots for r in there} == {5}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def collected():
    """Collect broken requests here: they report themselves, and another test would fail."""
    yield
    gc.collect()


@pytest.mark.slow
def test_a_server_that_dies_loses_nothing(collected, instruct, data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(backend, "TRIES", 1)
    model, checkpoint = instruct
    port, local = free_port(), str(LAB / "instruct")
    tasks = settings(data, ["daru_rwsd", "rublimp"], limit=12)
    with (
        serving(model, checkpoint.tokenizer, dies_after=30, port=port) as url,
        pytest.raises(LepError, match=r"stopped answering after .* give the same command"),
    ):
        evaluate([f"{local}@{url}"], {}, tmp_path / "out", tasks)
    assert not (tmp_path / "out").exists()
    with serving(model, checkpoint.tokenizer, dies_after=19, port=port) as url:
        evaluate([f"{local}@{url}"], {}, tmp_path / "out", tasks)  # few were left
    (kept,) = records(tmp_path / "out").values()
    assert len(kept) == 24
    assert not list(tmp_path.glob("*.partial"))


def test_where_nothing_answers_it_is_said(data, tmp_path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(LepError, match="no OpenAI-compatible server answers at http"):
        evaluate([f"{LAB / 'instruct'}@{url}"], {}, tmp_path / "out", settings(data, ["daru_rwsd"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_transformers_serve_gives_the_same_answers(data, tmp_path) -> None:
    port, local = free_port(), str(LAB / "instruct")
    command = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--dtype",
        "float32",
        local,
    ]
    server = subprocess.Popen(
        command,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}/v1"
        for _ in range(120):
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(1)
        evaluate(
            [local, f"{local}@{url}"], {}, tmp_path / "out", settings(data, GENERATED, limit=20)
        )
    finally:
        server.terminate()
        server.wait()
    here, there = records(tmp_path / "out").values()
    assert [r.scores for r in here] == [r.scores for r in there]
