"""The rules that drop answers, and a whole calibration run."""

import importlib
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lep.calibration.calibrate import calibrate
from lep.calibration.filters import reason_to_drop, repeats
from lep.corpus.read import write_records
from lep.errors import CorpusError
from lep.inference.generate import Answer
from lep.settings import CalibrateSettings


@pytest.mark.parametrize(("question", "text", "finished", "reason"), [
    ("Где река?", "Река за лесом.", True, None),
    ("Где река?", "  ", True, "empty"),
    ("Где река?", "Река за", False, "cut off"),
    ("Где река?", "The river is behind the wood.", True, "wrong language"),
    ("Where is it?", "Река за лесом.", True, "wrong language"),
    ("Сколько?", "12", True, None),
    ("Расскажи.", "я не знаю где " * 6, True, "repeating"),
    ("Повтори: да да да да да да да да да да", "да да да да да да да да да да", True, None),
])  # fmt: skip
def test_rules(question, text, finished, reason) -> None:
    assert reason_to_drop(question, Answer(0, text, [1, 2, 3, 4, 5], finished)) == reason


def test_refrains_are_not_repetition() -> None:
    verse = "one two three four " + " ".join(f"word{i}" for i in range(60)) + " one two three four"
    assert not repeats(verse)
    assert not repeats("a short answer")


def prompts(folder: Path) -> Path:
    words = ["Где дом?", "Где река?", "Where is it?"]
    write_records(folder / "prompts.jsonl", [{"messages": [{"role": "user", "content": w}]} for w in words])
    return folder / "prompts.jsonl"


def test_calibration_writes_all_answers_and_a_model(pair, tmp_path, monkeypatch) -> None:
    # A random model's answers would all be dropped: let every second one pass.
    verdicts = iter(["repeating", None, None])
    monkeypatch.setattr("lep.calibration.calibrate.reason_to_drop", lambda question, answer: next(verdicts))
    settings = CalibrateSettings(copy_tasks=0, max_new_tokens=8, batch_size=2, learning_rate=1e-2)
    record = calibrate(pair["instruct"], pair["instruct"], prompts(tmp_path), tmp_path / "out", settings)
    assert record["answers"] == {"repeating": 1, "kept": 2}
    lines = (tmp_path / "out" / "lep" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["dropped"] for line in lines] == ["repeating", None, None]
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys()
        == load_file(pair["instruct"] / "model.safetensors").keys()
    )
    assert not list(tmp_path.glob("*.answers.jsonl"))


def test_answers_of_a_killed_run_are_used_again(pair, tmp_path, monkeypatch) -> None:
    module = importlib.import_module("lep.calibration.calibrate")

    settings = CalibrateSettings(copy_tasks=0, max_new_tokens=8, generation_batch=1)
    conversations = [[{"role": "user", "content": f"Где {n}?"}] for n in ("дом", "большая река", "мир")]
    cache = tmp_path / "cache.jsonl"
    whole = module._answers(pair["instruct"], conversations, cache, settings)
    lines = cache.read_text().splitlines(keepends=True)
    cache.write_text("".join(lines[:3]) + lines[3][:10])  # killed while it wrote the third answer
    asked = []
    original = module.answers

    def counting(*arguments, **options):
        for batch in original(*arguments, **options):
            asked.extend(answer.index for answer in batch)
            yield batch

    monkeypatch.setattr(module, "answers", counting)
    assert module._answers(pair["instruct"], conversations, cache, settings) == whole
    assert len(asked) == 1


def test_nothing_passes(pair, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lep.calibration.calibrate.reason_to_drop", lambda question, answer: "empty")
    with pytest.raises(CorpusError, match="none of 3 answers passes the rules"):
        calibrate(pair["instruct"], pair["instruct"], prompts(tmp_path), tmp_path / "out",
                  CalibrateSettings(max_new_tokens=4))  # fmt: skip
    assert not list(tmp_path.glob("out*"))
