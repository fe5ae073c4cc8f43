"""What is not there, or not a number, passes no check: no grade, no likelihood, no kinship."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import save_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lep.benchmark.backend import Chat, Completions
from lep.benchmark.scoring import continuation_nats
from lep.checkpoint.adapter import check_body
from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, LepError, TrainingError
from lep.evaluation.records import AnswerRecord, TextRecord
from lep.report.grid import Cell
from lep.report.paired import Original
from lep.selection import auto
from lep.selection.figures import score, veto
from lep.settings import EvaluateSettings, PretrainSettings, SelectSettings
from lep.training import lora
from lep.training.heldout import HeldoutText
from lep.training.pretrain import pretrain
from lep.transfer.inspect import inspect_checkpoint
from lep.transfer.language_pack import apply_pack, make_pack

NAN = math.nan


def test_a_pack_without_usable_samples_knows_no_model(pair, adapted, byte_level, tmp_path) -> None:
    make_pack(pair["base"], adapted, tmp_path / "x.pack")
    whole = load_file(tmp_path / "x.pack")
    rows, values = (f"sample/input/{name}" for name in ("rows", "values"))
    broken = {
        "are not finite": {values: torch.full_like(whole[values], NAN)},
        "has no input rows": {rows: whole[rows][:0], values: whole[values][:0].contiguous()},
        "learned input rows are not finite": {
            "learned/input/values": torch.full_like(whole["learned/input/values"], NAN)
        },
    }
    save_model(tmp_path / "stranger", byte_level, seed=99)
    for number, (message, change) in enumerate(broken.items()):
        save_file(whole | change, tmp_path / f"{number}.pack")
        for model in (tmp_path / "stranger", pair["base"]):
            with pytest.raises(CheckpointError, match=message):
                apply_pack(tmp_path / f"{number}.pack", model, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_models_that_share_no_tensor_do_not_belong_together(pair, tmp_path) -> None:
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    base = SimpleNamespace(
        folder=pair["base"],
        entries=dict.fromkeys([*tables, "model.layers.0.mlp.up_proj.weight"]),
        tables=SimpleNamespace(names=list(tables), aliases=[], others=[]),
    )
    other = SimpleNamespace(folder=tmp_path, entries=dict.fromkeys([*tables, "blocks.0.up.weight"]))
    with pytest.raises(CheckpointError, match=r"has none of the tensors of .* beside its tables"):
        check_body(base, other)


def test_a_merge_that_gives_no_numbers_is_refused(pair) -> None:
    model, checkpoint = AutoModelForCausalLM.from_pretrained(pair["base"]), Checkpoint(pair["base"])
    lora.add_adapter(model, checkpoint, 2, 2.0)
    next(p for name, p in model.named_parameters() if "up_proj.lora_A" in name).data.fill_(NAN)
    with pytest.raises(LepError, match="the merged model's logits differ"):
        lora.merge(model, torch.tensor([[1, 2, 3]]))


def test_choices_of_a_model_without_numbers_are_refused(pair) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair["base"])
    model.lm_head.weight.data[7] = NAN
    with pytest.raises(
        LepError, match="likelihoods of answers are not finite, so none can be chosen"
    ):
        list(continuation_nats(model, [([1, 2], [3]), ([1, 2], [4])], 2))


REPLIES = [
    {},
    {"choices": []},
    {"choices": [{"message": {}}]},
    {"choices": [{"message": {"content": 4}}]},
    {"choices": [{"message": {"content": ["4"]}}]},
    {"choices": "4"},
    {"error": "overloaded, 4 in the queue"},
    [],
    "4",
    None,
]


@pytest.mark.parametrize("reply", REPLIES)
def test_a_malformed_reply_of_a_server_is_no_answer(reply) -> None:
    with pytest.raises(LepError, match="the server's reply holds no answer"):
        Chat.parse_generations(object.__new__(Chat), reply)


@pytest.mark.parametrize(
    ("reply", "text", "tokens"),
    [
        ({"choices": [{"message": {"content": "Да."}}]}, "Да.", None),
        ({"choices": [{"message": {"content": None}}]}, "", None),
        ({"choices": [{"text": "Да."}], "usage": {"completion_tokens": 3}}, "Да.", 3),
        (
            {
                "choices": [{"text": "Да.", "finish_reason": "stop"}],
                "usage": {"completion_tokens": 3},
            },
            "Да.",
            2,
        ),
        ({"choices": [{"text": "Да."}], "usage": {"completion_tokens": "3"}}, "Да.", None),
        ({"choices": [{"text": "Да."}], "usage": "none"}, "Да.", None),
    ],
)
def test_a_reply_of_a_server_and_its_tokens(reply, text, tokens) -> None:
    chat = object.__new__(Chat)
    assert chat.parse_generations(reply) == [text]
    assert chat.written(text) == tokens


def logprobs(values: list[float | None]) -> dict:
    tops = [None if value is None else {"x": value} for value in values]
    inside = {"token_logprobs": values, "top_logprobs": tops}
    return {"choices": [{"index": 0, "logprobs": inside}]}


def test_log_probabilities_that_are_missing_are_not_certainty() -> None:
    parse, tokens = Completions.parse_logprobs, [[1, 2, 3, 4]]
    whole = logprobs([None, -1.0, -2.0, -3.0, -0.5])  # it adds a token
    assert parse(whole, tokens, [2]) == [(-5.0, True)]
    for values in ([-0.5], [], [None, -1.0, -2.0, -3.0]):  # of what it writes alone; cut
        with pytest.raises(LepError, match=r"the server gives \d log-probabilities for 4 tokens"):
            parse(logprobs(values), tokens, [2])
    with pytest.raises(LepError, match="log-probabilities that are not finite"):
        parse(logprobs([None, -1.0, NAN, -3.0, -0.5]), tokens, [2])


def answer_record(nats: float, question: str = "q") -> AnswerRecord:
    return AnswerRecord(
        question=question,
        answer="a",
        nats=nats,
        end_nats=0.1,
        bytes=1,
        divergence_nats=0.0,
        borders=1,
        same_cuts=True,
    )


def test_a_candidate_without_numbers_is_not_chosen(monkeypatch) -> None:
    half = auto.record_half(answer_record(1.0))
    good, bad = [answer_record(3.0)], [answer_record(NAN)]
    assert score(bad, half) == math.inf
    assert score(good, half) == pytest.approx(3.0 / math.log(2))
    settings = SelectSettings(bootstrap=10)
    assert veto(bad, good, half, settings) == "likelihoods that are not finite"
    text = {"language": "ru", "id": "d", "tokens": 1, "characters": 1, "bytes": 1}
    nans = [*good, TextRecord(nats=NAN, **text)]
    assert veto(nans, [*good, TextRecord(nats=1.0, **text)], half, settings)
    names = [("swap", "swap"), ("overlap", "overlap")]
    for order in (names, names[::-1]):
        records = {auto.ORIGINAL: good, **dict(zip(order, (bad, good), strict=True))}
        assert auto._best(records, half, settings) == order[1]
        records = {auto.ORIGINAL: good, **dict(zip(order, (bad, bad), strict=True))}
        with pytest.raises(CheckpointError, match=r"no candidate gives .* a finite likelihood"):
            auto._best(records, half, settings)


def test_a_score_that_is_no_number_is_neither_better_nor_worse() -> None:
    def outcome(*nats: float) -> str:
        """Of the second model beside the first, over three texts."""
        size = {"language": "ru", "tokens": 1, "characters": 1, "bytes": 1}
        first, second = ([TextRecord(id=str(i), nats=n, **size) for i in range(3)] for n in nats)
        original = Original(first, [("bits per byte", None)], EvaluateSettings(bootstrap=50))
        return original.contrasts(second)["bits per byte", "ru", None].outcome

    for nats in ((1.0, NAN), (NAN, 1.0), (NAN, NAN)):
        assert outcome(*nats) == ""
    assert outcome(1.0, 0.5) == "better"
    assert outcome(1.0, 1.5) == "worse"
    assert Cell({"a": NAN, "b": 0.5}).sign == 0
    assert Cell({"a": -0.5, "b": -0.51, "c": -0.49}).sign == -1


@pytest.mark.slow
def test_a_training_whose_looks_are_no_numbers_ends(adapted, tmp_path, monkeypatch) -> None:
    look = HeldoutText.look
    monkeypatch.setattr(HeldoutText, "look", lambda self, model: look(self, model) | {"ru": NAN})
    text = tmp_path / "ru.txt"
    text.write_text("Снег пошёл ночью.\n" * 40, encoding="utf-8")
    settings = PretrainSettings(
        tokens=400, block_size=32, batch_tokens=64, eval_text={"ru": [str(text)]}, checkpoints=2
    )
    model = adapted.parent / "initialised"
    with pytest.raises(TrainingError, match="gives held-out text ru no finite likelihood"):
        pretrain(model, [text], tmp_path / "out", settings)
    with pytest.raises(TrainingError, match="every rate of the sweep diverged"):
        pretrain(model, [text], tmp_path / "out", settings.model_copy(update={"sweep": True}))


def test_the_median_of_no_norms_is_a_number(pair, tmp_path: Path) -> None:
    shutil.copytree(pair["base"], tmp_path / "nan")
    stored = load_file(tmp_path / "nan" / "model.safetensors")
    stored["lm_head.weight"].fill_(NAN)
    save_file(stored, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    tables = inspect_checkpoint(tmp_path / "nan").record["tables"]
    medians = {name: table["median_norm"] for name, table in tables.items()}
    assert medians["lm_head.weight"] == 0.0
    assert medians["model.embed_tokens.weight"] > 0.0
