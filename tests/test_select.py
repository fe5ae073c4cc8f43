"""Choosing a propagation by function: measures are right, and a known best candidate is chosen."""

import json
import math
import shutil

import pytest
import torch
from conftest import ROOT, SAMPLE
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from lep.checkpoint.reader import Checkpoint
from lep.cli import app
from lep.errors import CorpusError, LepError
from lep.evaluation.spans import AnswerSpan
from lep.inference.next_byte import CONTROL, byte_offsets, divergence, first_bytes, next_byte_nats
from lep.selection import candidates
from lep.selection.auto import label, propagate_auto
from lep.selection.candidates import BodyTooLarge, weight_report
from lep.selection.probe import half_of
from lep.settings import SelectSettings
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.write import extend_tokenizer
from lep.transfer.dry_run import dry_run
from lep.transfer.initialise import initialise

PAIR = ROOT / "lab" / "pair"
FEW = SelectSettings(
    characters=3_000,
    prompts=16,
    copies=2,
    max_new_tokens=48,
    bootstrap=200,
    candidates=["swap", "new-rows"],
)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """The lab pair; a base whose new rows are untrained and whose known rows training spoilt."""
    folder = tmp_path_factory.mktemp("family")
    extend_tokenizer(PAIR / "base", [SAMPLE / "ru"], 40, folder / "tokenizer")
    initialise(PAIR / "base", folder / "tokenizer", folder / "adapted")
    stored = load_file(folder / "adapted" / "model.safetensors")
    torch.manual_seed(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        stored[name][:4096] += (0.3 * torch.randn(4096, stored[name].shape[1])).to(
            stored[name].dtype
        )
    save_file(stored, folder / "adapted" / "model.safetensors", metadata={"format": "pt"})
    prompts = [
        {"messages": [{"role": "user", "content": f"{ask}{text}"}]}
        for ask, texts in (
            (
                "Repeat this sentence: ",
                ["The old man went home.", "She has read the book.", "It was a cold day."],
            ),
            (
                "Повтори это предложение: ",
                ["Он пошёл домой.", "Она читала книгу.", "Это был холодный день."],
            ),
        )
        for i in range(4)
        for text in (f"{t[:-1]}{' again' * i if ask[0] == 'R' else ' опять' * i}." for t in texts)
    ]
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in prompts)
    )
    return folder


def run(family, output, select=FEW):
    text = {"ru": [SAMPLE / "ru"], "en": [SAMPLE / "en"]}
    return propagate_auto(
        PAIR / "base",
        PAIR / "instruct",
        family / "adapted",
        output,
        text,
        family / "prompts.jsonl",
        select=select,
    )


@pytest.mark.slow
def test_the_harmless_candidate_is_chosen(family, tmp_path) -> None:
    selection = run(family, tmp_path / "out")
    assert selection.chosen == "new-rows"
    assert selection.languages == {"ru": "new", "en": "original"}
    assert "swap" in selection.vetoed
    assert "new-rows" not in selection.vetoed
    assert selection.measures["report"]["new-rows"]["score less chosen"].value == 0
    assert selection.measures["report"]["original"]["next-byte KL bits"].value == 0
    assert str(selection).splitlines()[-1].startswith("chosen: new-rows; on the reported half: ")
    record = json.loads((tmp_path / "out" / "lep" / "selection.json").read_text())
    assert record["chosen"] == "new-rows"
    lines = [
        json.loads(line)
        for line in (tmp_path / "out" / "lep" / "selection.jsonl").read_text().splitlines()
    ]
    assert {line["half"] for line in lines} == {"choose", "report"}
    # the figures of the page come from the records
    answers = [
        x
        for x in lines
        if x["candidate"] == "swap" and x["half"] == "report" and x["kind"] == "answer"
    ]
    nats = sum(x["nats"] + x["divergence_nats"] for x in answers) / sum(x["bytes"] for x in answers)
    assert record["measures"]["report"]["swap"]["score"]["value"] == pytest.approx(
        nats / math.log(2)
    )
    assert not list(tmp_path.glob("*.candidate*"))
    # kept rows are the instruct model's own
    result, chat = (
        load_file(p / "model.safetensors") for p in (tmp_path / "out", PAIR / "instruct")
    )
    assert torch.equal(result["lm_head.weight"][:4096], chat["lm_head.weight"])
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_templates_that_change_an_answer_are_left_out(family) -> None:
    folder = family / "thinking"
    shutil.copytree(PAIR / "instruct", folder, dirs_exist_ok=True)
    messages = [{"role": "user", "content": "Кто?"}, {"role": "assistant", "content": "Он."}]
    assert AnswerSpan.of(Checkpoint(folder), messages) is not None
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        if (folder / file).exists() and "content" in (text := (folder / file).read_text()):
            changed = text.replace(
                "m['content']", "('<|system|>' if m['role'] == 'assistant' else '') + m['content']"
            )
            changed = changed.replace(
                "message['content']",
                "('<|system|>' if message['role'] == 'assistant' else '') + message['content']",
            )
            (folder / file).write_text(changed)
    assert AnswerSpan.of(Checkpoint(folder), messages) is None


def test_halves_are_disjoint_and_fixed() -> None:
    halves = [half_of(f"document {i}") for i in range(400)]
    assert halves == [half_of(f"document {i}") for i in range(400)]
    assert 150 < halves.count("choose") < 250


def test_next_bytes_of_a_vocabulary(pair) -> None:
    vocabulary = Checkpoint(pair["base"]).vocabulary
    classes = first_bytes(vocabulary, 510)
    assert classes[500:].tolist() == [CONTROL] * 10
    for index, token in enumerate(vocabulary.tokens):
        assert classes[index] == (CONTROL if token is None or token.added else token.content[0])
    ids = load_tokenizer(pair["base"])("Да, yes", add_special_tokens=False)["input_ids"]
    assert byte_offsets(vocabulary, ids)[-1] == len("Да, yes".encode())
    model = AutoModelForCausalLM.from_pretrained(pair["base"])
    [nats] = next_byte_nats(model, classes[:500], [([0, *ids], [1, 3])])
    logits = model(torch.tensor([[0, *ids]])).logits[0]
    for row, position in enumerate((0, 2)):
        slow = torch.zeros(257)
        for token, p in enumerate(logits[position].softmax(0)):
            slow[classes[token]] += p
        torch.testing.assert_close(nats[row].exp(), slow, rtol=1e-4, atol=1e-7)
    assert divergence(nats, nats).abs().max() == 0
    assert divergence(nats[:1], nats[1:]).item() == pytest.approx(
        torch.nn.functional.kl_div(nats[1:], nats[:1], log_target=True, reduction="sum").item(),
        rel=1e-5,
    )


def test_answers_under_two_vocabularies_meet_at_common_borders(family) -> None:
    messages = [
        {"role": "user", "content": "Кто?"},
        {"role": "assistant", "content": "Это был холодный день."},
    ]
    shutil.copytree(PAIR / "instruct", family / "chat", dirs_exist_ok=True)
    before = AnswerSpan.of(Checkpoint(family / "chat"), messages)
    shutil.copyfile(family / "tokenizer" / "tokenizer.json", family / "chat" / "tokenizer.json")
    checkpoint = Checkpoint(family / "chat")
    after = AnswerSpan.of(checkpoint, messages)
    for span in (before, after):
        # the template puts a space before the answer
        assert (min(span.borders), max(span.borders)) == (
            0,
            len(messages[1]["content"].encode()) + 1,
        )
        assert checkpoint.vocabulary.tokens[span.ids[span.stop]].added
    assert len(after.ids) <= len(before.ids)
    assert len(before.borders.keys() & after.borders.keys()) > 3


def test_what_cannot_be_chosen_on(family, tmp_path, monkeypatch) -> None:
    nothing = FEW.model_copy(update={"max_new_tokens": 1})
    with pytest.raises(
        CorpusError, match="none of 16 prompts got an answer that ends within 1 tokens"
    ):
        run(family, tmp_path / "out", nothing)
    monkeypatch.setattr(candidates, "free_memory", lambda: 1.0)
    with pytest.raises(
        BodyTooLarge, match=r"needs .* in memory, 0.0 GB, and 0.0 GB are free: name a --method"
    ):
        run(family, tmp_path / "out")
    report = weight_report(PAIR / "base", PAIR / "instruct", family / "adapted").splitlines()
    assert len(report) == 9
    assert report[3].startswith("input  | ridge")
    assert not list(tmp_path.iterdir())
    models = ["--base", "a", "--instruct", "b", "--adapted", "c", "--output", str(tmp_path / "out")]
    for options, message in [
        (["--method", "auto"], "--method auto chooses on text and prompts"),
        (["--method", "auto", "--dry-run"], "leave --dry-run out"),
        (["--method", "swap", "--prompts", "p"], "leave them out with --method swap"),
    ]:
        with pytest.raises(LepError, match=message):
            CliRunner().invoke(app, ["propagate", *models, *options], catch_exceptions=False)


@pytest.mark.slow
def test_the_plan_is_made_of_headers(pair, adapted, tmp_path) -> None:
    plan = dry_run(pair["base"], pair["instruct"], adapted)
    assert plan.tables == {"input": (600, 32), "output": (600, 32)}
    rows = 500 + 500 + 600
    assert plan.read_bytes == 2 * rows * 32 * 4
    size = (pair["instruct"] / "model.safetensors").stat().st_size
    assert (plan.copied_bytes, plan.linked_bytes) == (size - 2 * 500 * 32 * 4, 0)
    assert plan.written_bytes == plan.copied_bytes + 2 * 600 * 32 * 4
    assert plan.memory_bytes > rows * 32 * 4
    assert "write 0.00 GB" in str(plan)
    assert label(("exact", "ridge")) == "exact, output ridge"
