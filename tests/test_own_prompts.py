"""Prompts that the instruct model writes itself: the cut template, openings, rules, whole runs."""

import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SAMPLE, TEMPLATE
from transformers import AutoModelForCausalLM, AutoTokenizer

from lep.calibration import drafts as drafts_module
from lep.calibration import prompts as module
from lep.calibration.drafts import Draft, Writer
from lep.calibration.filters import QUESTION, reason_to_drop_draft
from lep.calibration.openings import Sentences, first_words
from lep.calibration.prompts import OwnPrompts, write_prompts
from lep.corpus.read import read_messages
from lep.errors import CorpusError, LepWarning, OutputError, TokenizerError
from lep.inference.generate import Written
from lep.settings import OwnPromptSettings
from lep.tokenizer.chat import UserTurn

LAB = ROOT / "lab" / "pair" / "instruct"
TEXT = {language: [SAMPLE / language] for language in ("ru", "en")}
TURN = "{{ '<|user|>' + m['content']%s + '<|end|>' }}"
LOOP = "{%% for m in messages %%}%s{%% endfor %%}{{ '<|assistant|>' }}"


def with_template(template: str | None):
    tokenizer = AutoTokenizer.from_pretrained(LAB)
    tokenizer.chat_template = template
    return tokenizer


def looped(turn: str) -> str:
    return LOOP % turn


SYSTEM = "{% if messages[0]['role'] != 'system' %}<|system|>You help.<|end|>\n{% endif %}"
TEMPLATES = {
    "lab": (TEMPLATE, "<|end|>"),
    "system line": (SYSTEM + looped(TURN % ""), "<|end|>"),
    "strips the content": (looped(TURN % "|trim"), "<|end|>"),
    "white space after the content": (looped(TURN % " + '\n'"), "<|end|>"),
    "next role": (looped("{{ '<|user|>' + m['content'] }}"), "<|assistant|>"),
    "plain words": (
        "{% for m in messages %}[INST] {{ m['content'] }} [/INST] {% endfor %}",
        "[/INST]",
    ),
    "plain line": (
        "{% for m in messages %}### User:\n{{ m['content'] }}\n\n### Model:\n{% endfor %}",
        "### Model:",
    ),
    "nothing after it": ("{{ messages[0]['content'] }}", None),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_is_cut_around_what_the_user_writes(name: str) -> None:
    template, stop = TEMPLATES[name]
    tokenizer = with_template(template)
    turn = UserTurn.of(tokenizer)
    text = "Где «река»? <b> 'да'\n\nИ \"дом\" & лес?"
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    assert turn.before + text + turn.after == whole
    if stop in tokenizer.get_vocab():
        assert (turn.stop, turn.stop_text) == (tokenizer.get_vocab()[stop], None)
    else:
        assert (turn.stop, turn.stop_text) == (None, stop)


@pytest.mark.parametrize(
    "content", ["|upper", "|e", "|tojson", " + m['content']", ".split()|join(' ')", "[:3]", "[99:]"]
)
def test_templates_that_change_the_content_are_refused(content: str) -> None:
    with pytest.raises(TokenizerError, match=r"changes, drops or repeats .*: give --prompts FILE"):
        UserTurn.of(with_template(looped(TURN % content)))


def test_a_template_that_depends_on_the_content_is_refused() -> None:
    depends = "{{ '<|user|>' if '&' in m['content'] else '<|end|>' }}{{ m['content'] }}"
    with pytest.raises(TokenizerError, match="changes, drops or repeats"):
        UserTurn.of(with_template(looped(depends)))


def test_an_opening_is_the_beginning_of_the_conversation_with_it() -> None:
    tokenizer = AutoTokenizer.from_pretrained(LAB)
    writer = Writer(LAB, OwnPromptSettings())
    for row, opening in zip(writer.rows(["Где", "What is"]), ["Где", "What is"], strict=True):
        message = [{"role": "user", "content": f"{opening} (12)?"}]
        assert row == tokenizer.apply_chat_template(message)["input_ids"][: len(row)]
        assert tokenizer.decode(row) == f"<s><|user|> {opening}"


def corpus(folder: Path, text: str) -> list[Path]:
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8")
    return [path]


@pytest.mark.parametrize(
    ("sentence", "words", "expected"),
    [
        ("— Скажите, пожалуйста, где вы?", 1, "Скажите"),
        ("— Скажите, пожалуйста, где вы?", 2, "Скажите, пожалуйста"),
        ("«Кто-то там?» — спросил он", 2, "Кто-то там"),
        ("1. What's that?", 1, "What's"),
        ("Почему?", 3, "Почему"),
        ("你好吗？我很好", 2, "你好"),
        ("क्या है यह?", 2, "क्या है"),
        ("12 + 13?", 2, ""),
    ],
)
def test_first_words(sentence, words, expected) -> None:
    assert first_words(sentence, words) == expected


@pytest.mark.parametrize(
    ("text", "is_question"),
    [
        ("Где река?", True),
        ("«Где река?»", True),
        ("河在哪里？", True),
        ("أين النهر؟", True),
        ("Πού είναι;", True),
        ("молоко и хлеб;", False),
        ("Где? Там.", False),
    ],
)
def test_questions_end_with_the_mark_of_their_script(text, is_question) -> None:
    assert (QUESTION.search(text) is not None) == is_question


def test_openings_are_those_of_questions_then_of_others(tmp_path) -> None:
    text = "Где моя река? Вот она. Python is here? Как вам наш дом? Этот дом хорош."
    pool = Sentences.of("ru", corpus(tmp_path, text), 99)
    assert pool.questions == ["Где моя река?", "Как вам наш дом?"]
    assert pool.others == ["Вот она.", "Этот дом хорош."]
    questions = {"Где", "Где моя", "Где моя река", "Как", "Как вам", "Как вам наш"}
    others = {"Вот", "Вот она", "Этот", "Этот дом", "Этот дом хорош"}
    drawn = pool.openings(22, seed=0)
    assert set(drawn[:6]) == questions
    assert set(drawn[6:11]) == others
    assert drawn[11:] == drawn[:11]  # and again
    assert drawn == Sentences.of("ru", [tmp_path / "text.txt"], 99).openings(22, seed=0)
    assert drawn != pool.openings(22, seed=1)
    assert {opening.split()[0] for opening in drawn[:2]} == {"Где", "Как"}  # each in its turn


def test_the_script_of_an_unknown_language_is_that_of_most_sentences(tmp_path) -> None:
    paths = corpus(tmp_path, "Кайда суу? Here it is. Бул жерде.")
    assert Sentences.of("krc", paths, 99).script == "Cyrillic"
    assert Sentences.of("en", paths, 99).others == ["Here it is."]


def test_enough_questions_end_the_reading(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("Где дом? Где лес?", encoding="utf-8")
    (tmp_path / "b.txt").write_text("Где река?", encoding="utf-8")
    assert Sentences.of("ru", [tmp_path], 2).questions == ["Где дом?", "Где лес?"]
    assert len(Sentences.of("ru", [tmp_path], 3).questions) == 3


DRAFT = Draft("Где", "Где находится наша река?", finished=True, has_controls=False, surprise=0.5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"surprise": None}, None),
        ({"finished": False}, "cut off"),
        ({"has_controls": True}, "no text"),
        ({"text": "Где находится \ufffd река?"}, "no text"),
        ({"text": "Где находится\x12 река?"}, "no text"),
        ({"text": "Где"}, "too short"),
        ({"text": "Где река?"}, "too short"),
        ({"text": "Где эта река?"}, None),
        ({"text": "Где can I find the nearest river?"}, "wrong language"),
        ({"text": "Где скачать Python 3.12?"}, None),
        ({"text": "Где " + "она моя и твоя " * 5}, "repeating"),
        ({"text": "Где слово ихихихихихихихих его"}, "repeating"),
        ({"surprise": 1.1}, "word salad"),
        ({"surprise": 1.1, "text": "Где я, ты?"}, "word salad"),
    ],
)
def test_rules(changes, reason) -> None:
    assert reason_to_drop_draft(replace(DRAFT, **changes), "Cyrillic") == reason


def test_rules_of_a_script_without_spaces() -> None:
    draft = replace(DRAFT, opening="河", text="河在哪里？")
    assert reason_to_drop_draft(draft, "Han") is None
    assert reason_to_drop_draft(replace(draft, text="河在？"), "Han") == "too short"


def test_drafts_are_what_transformers_draws(monkeypatch) -> None:
    """With the same seed, and rows that are padded by the tokenizer itself."""
    monkeypatch.setattr("lep.inference.models.multiplies_bf16", lambda: False)
    settings = OwnPromptSettings(prompt_tokens=12, prompt_top_p=0.9, prompt_seed=3)
    openings, writer = ["Где", "Скажите, пожалуйста"], Writer(LAB, settings)
    batch = writer.drafts("ru 5", openings, 0.5)
    tokenizer = AutoTokenizer.from_pretrained(LAB, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float32)

    def nats_per_byte(text: str) -> float:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([[1, *ids]])).logits[0].double().log_softmax(-1)
        return -sum(float(logits[i, token]) for i, token in enumerate(ids)) / len(text.encode())

    texts = [f"<s><|user|> {opening}" for opening in openings]
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    torch.manual_seed((3 << 32) + zlib.crc32(b"ru 5"))
    options = {"do_sample": True, "top_k": 0, "top_p": 0.9, "max_new_tokens": 12}
    written = model.generate(**inputs, **options, eos_token_id=[2, 6])
    for draft, opening, row in zip(batch, openings, written.tolist(), strict=True):
        expected = tokenizer.decode(row, skip_special_tokens=True).strip()
        assert draft.text == expected
        assert draft.text.startswith(opening)
        assert draft.finished == bool({2, 6} & set(row))
        assert draft.surprise == pytest.approx(nats_per_byte(draft.text) / 0.5, rel=1e-4)
    sentences = ["Где мой дом?", "Река.", "Он пошёл домой."]
    median = sorted(map(nats_per_byte, sentences))[1]
    assert writer.median(sentences) == pytest.approx(median, rel=1e-4)


def writes(monkeypatch, continuation: str) -> None:
    """Let every model write the same tokens after each row."""
    tokenizer = AutoTokenizer.from_pretrained(LAB)
    ids = tokenizer(continuation, add_special_tokens=False)["input_ids"]
    written = Written(ids, len(ids) * [1.0])
    monkeypatch.setattr(
        drafts_module, "continuations", lambda m, t, rows, **_: [written] * len(rows)
    )


@pytest.mark.parametrize(
    ("template", "continuation", "text", "finished", "has_controls"),
    [
        (TEMPLATE, " река?<|end|><|assistant|>", "Где река?", True, False),
        (TEMPLATE, " река?</s>", "Где река?", True, False),
        (TEMPLATE, " река?", "Где река?", False, False),
        (TEMPLATE, " рек<|user|>а?<|end|>", "Где рек<|user|>а?", True, True),
        (TEMPLATES["next role"][0], " река?<|assistant|> Там", "Где река?", True, False),
        (TEMPLATES["plain words"][0], " река? [/INST] Там", "Где река?", True, False),
        (TEMPLATES["plain line"][0], " река?\n\n### Model:\nТам", "Где река?", True, False),
    ],
)
def test_where_a_prompt_ends(
    monkeypatch, template, continuation, text, finished, has_controls
) -> None:
    writes(monkeypatch, continuation)
    writer = Writer(LAB, OwnPromptSettings())
    writer.turn = UserTurn.of(with_template(template))
    (draft,) = writer.drafts("ru 0", ["Где"], 1.0)
    assert (draft.text, draft.finished) == (text, finished)
    assert draft.has_controls == has_controls


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


OPTIONS = {"own_prompts": 5, "prompt_batch": 4, "prompt_tokens": 16}


@pytest.fixture
def all_pass(monkeypatch) -> None:
    """The lab's model never learned what users write."""
    monkeypatch.setattr(module, "reason_to_drop_draft", lambda draft, script: None)


def test_a_whole_run(all_pass, tmp_path) -> None:
    result = write_prompts(str(LAB), TEXT, str(tmp_path / "out"), **OPTIONS)
    assert sorted(path.name for path in tmp_path.rglob("*.json*")) == [
        "drafts.jsonl",
        "prompts.json",
        "prompts.jsonl",
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    prompts, drafts = (read(tmp_path / "out" / f"{n}.jsonl") for n in ("prompts", "drafts"))
    assert [prompt["language"] for prompt in prompts] == ["ru"] * 5 + ["en"] * 5
    assert read_messages(tmp_path / "out" / "prompts.jsonl") == prompts  # as lep answer reads them
    kept = [draft for draft in drafts if draft["dropped"] is None]
    assert [draft["messages"] for draft in kept] == [prompt["messages"] for prompt in prompts]
    for draft in drafts:
        assert [message["role"] for message in draft["messages"]] == ["user"]
        assert draft["messages"][0]["content"].startswith(draft["opening"])
    counts = json.loads((tmp_path / "out" / "prompts.json").read_text(encoding="utf-8"))
    assert counts == result.counts
    for language in ("ru", "en"):
        outcomes = [d["dropped"] or "kept" for d in drafts if d["language"] == language]
        assert counts[language] == {name: outcomes.count(name) for name in set(outcomes)}
        assert len(outcomes) % 4 == 0  # whole batches
    sentences = " ".join(p.read_text(encoding="utf-8") for p in (SAMPLE / "ru").glob("*.txt"))
    for draft in (draft for draft in drafts if draft["language"] == "ru"):
        words = draft["opening"].split()
        assert 1 <= len(words) <= 3
        assert all(word in sentences for word in words)


def test_languages_may_want_different_numbers(all_pass, tmp_path) -> None:
    result = write_prompts(LAB, TEXT, tmp_path / "out", **OPTIONS, wanted={"ru": 3, "en": 1})
    prompts = read(tmp_path / "out" / "prompts.jsonl")
    assert [prompt["language"] for prompt in prompts] == ["ru"] * 3 + ["en"]
    few = OwnPrompts({"ru": {"kept": 1}, "en": {"kept": 1}}, {"ru": 3, "en": 1}, tmp_path)
    assert [line.split(", after")[0] for line in few.warnings] == ["warning: 1 of 3 prompts in ru"]
    assert result.warnings == []


def test_a_killed_run_continues_with_the_same_bits(all_pass, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MEASURED", 8)
    options = {"own_prompts": 6, "prompt_batch": 2, "prompt_tokens": 8}
    write_prompts(LAB, TEXT, tmp_path / "whole", **options)
    original, labels, kills = Writer.drafts, list[str](), ["ru 2", "en 1"]

    def drafts(self, label, openings, median):
        labels.append(label)
        if kills and label == kills[0]:
            kills.pop(0)
            raise KeyboardInterrupt
        return original(self, label, openings, median)

    monkeypatch.setattr(Writer, "drafts", drafts)
    while kills:
        with pytest.raises(KeyboardInterrupt):
            write_prompts(LAB, TEXT, tmp_path / "out", **options)
        (saved,) = tmp_path.glob("out.*.partial/checkpoint-drafts/drafts.jsonl")
        with saved.open("ab") as file:
            file.write(b'{"language": "ru", "dra')  # a line that a kill left half written
        with pytest.raises(OutputError, match="unfinished run with other settings"):
            write_prompts(LAB, TEXT, tmp_path / "out", **options, prompt_seed=1)
    write_prompts(LAB, TEXT, tmp_path / "out", **options)
    assert labels == ["ru 0", "ru 1", "ru 2", "ru 2", "en 0", "en 1", "en 1", "en 2"]
    for name in ("prompts.jsonl", "drafts.jsonl", "prompts.json"):
        whole, resumed = (tmp_path / folder / name for folder in ("whole", "out"))
        assert whole.read_bytes() == resumed.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Runs whose drafts are given: texts for all batches, each after its opening."""

    def run(texts: list[str], **options) -> OwnPrompts:
        rest = iter(texts)

        def drafts(self, label, openings, median):
            return [replace(DRAFT, opening="Где", text=next(rest)) for _ in openings]

        monkeypatch.setattr(Writer, "drafts", drafts)
        monkeypatch.setattr(Writer, "median", lambda self, sentences: 1.0)
        return write_prompts(LAB, {"ru": TEXT["ru"]}, tmp_path / "out", **options)

    return run


GOOD = [f"Где {word} {other}?" for word in ("дом", "лес", "пёс") for other in ("мой", "твой")]


def test_drafts_end_with_enough_prompts(scripted) -> None:
    result = scripted([*GOOD[:2], "Где да", *GOOD[2:5]], own_prompts=4, prompt_batch=3)
    assert result.counts == {"ru": {"kept": 4, "too short": 1, "more than needed": 1}}
    assert "warning" not in str(result)


def test_duplicates_count_once(scripted) -> None:
    long = "Где в нашем старом городе самый красивый и тихий дом у широкой тёмной реки"
    texts = [GOOD[0], "где дом... МОЙ", GOOD[1], long + "?", long + " есть?", GOOD[2]]
    result = scripted(texts, own_prompts=4, prompt_batch=3)
    assert result.counts == {"ru": {"kept": 4, "duplicate": 2}}
    kept = [each["messages"][0]["content"] for each in read(result.output / "prompts.jsonl")]
    assert kept == [GOOD[0], GOOD[1], long + "?", GOOD[2]]


def test_few_prompts_deserve_a_warning(scripted) -> None:
    result = scripted([GOOD[0]] + 11 * ["Где да"], own_prompts=3, prompt_batch=5)
    assert result.counts == {"ru": {"kept": 1, "too short": 11}}  # four drafts for each prompt
    lines = str(result).splitlines()
    assert lines[0] == "ru: kept: 1, too short: 11"
    assert lines[1].startswith("warning: 1 of 3 prompts in ru, after 12 drafts: look at ")
    assert lines[2] == f"wrote {result.output}"


def test_drafts_end_where_the_model_writes_hardly_a_prompt(scripted) -> None:
    """After 64 drafts with fewer than a tenth of use, not after four for each prompt."""
    texts = [*GOOD, *58 * ["Где да"], *8 * ["Где да"]]
    result = scripted(texts, own_prompts=100, prompt_batch=8)
    assert result.counts == {"ru": {"kept": 6, "too short": 58}}


def test_no_prompt_at_all_is_a_fault(scripted, tmp_path) -> None:
    message = (
        r"none of 12 prompts that .*instruct wrote in ru is of use \(too short: 12; the last "
        r"begins 'Где да'\): give prompts in a file \(--prompts FILE\), or ask for none \(adapt.own"
    )
    with pytest.raises(CorpusError, match=message):
        scripted(12 * ["Где да"], own_prompts=3, prompt_batch=5)
    assert not list(tmp_path.iterdir())


def test_one_language_without_prompts_leaves_those_of_the_others(tmp_path, monkeypatch) -> None:
    def drafts(self, label, openings, median):
        word = "Где да" if label.startswith("ru") else "Where is the next old house?"
        return [replace(DRAFT, opening=o, text=word) for o in openings]

    monkeypatch.setattr(Writer, "drafts", drafts)
    monkeypatch.setattr(Writer, "median", lambda self, sentences: 1.0)
    options = {"own_prompts": 1, "prompt_batch": 4}
    with pytest.raises(CorpusError, match=r"none of 4 prompts that .* wrote in ru is of use"):
        write_prompts(LAB, TEXT, tmp_path / "all", **options)
    with pytest.warns(LepWarning, match=r"none of 4 prompts that .* wrote in ru is of use"):
        result = write_prompts(LAB, TEXT, tmp_path / "some", each=False, **options)
    assert (result.counts["ru"]["kept"], result.counts["en"]["kept"]) == (0, 1)


def test_faults(pair, tmp_path) -> None:
    """Found before a model is loaded, and nothing is written."""
    (tmp_path / "in").mkdir()
    ru, out = corpus(tmp_path / "in", "Где река?"), tmp_path / "out"
    with pytest.raises(TokenizerError, match="no chat template: give an instruct model"):
        write_prompts(pair["base"], {"ru": ru}, out)
    with pytest.raises(CorpusError, match=r"there is no text, give --text LANGUAGE=PATH"):
        write_prompts(LAB, {}, out)
    with pytest.raises(CorpusError, match=r"own prompts is 0, give .*--own-prompts N"):
        write_prompts(LAB, {"ru": ru}, out, own_prompts=0)
    with pytest.raises(CorpusError, match=r"the en text has no sentence in Latin script.*'en'"):
        write_prompts(LAB, {"ru": ru, "en": ru}, out)
    strange = corpus(tmp_path / "in", "𐎠𐎡𐎢 𐎣𐎤?")  # Old Persian, which is no listed script
    with pytest.raises(CorpusError, match="the peo text has no sentence in a script that lep"):
        write_prompts(LAB, {"peo": strange}, out)
    digits = corpus(tmp_path / "in", "12 + 13 = ?")
    with pytest.raises(CorpusError, match="the ru text has no sentence in Cyrillic script"):
        write_prompts(LAB, {"ru": digits}, out)
    mixed = corpus(
        tmp_path / "in", "Ёёёё, жж яяя abcdefghijk lm."
    )  # whose first words are in another script
    with pytest.raises(CorpusError, match="the en text has no sentence in Latin script"):
        write_prompts(LAB, {"en": mixed}, out)
    with pytest.raises(CorpusError, match=r"there is no file or folder .*nowhere: check"):
        write_prompts(LAB, {"ru": [tmp_path / "nowhere"]}, out)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_template_that_fills_the_context(pair, tmp_path) -> None:
    long = shutil.copytree(pair["instruct"], tmp_path / "long")
    template = "x" * 400 + TEMPLATE
    (long / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"first words of a prompt have \d+ tokens, the model's"):
        write_prompts(long, TEXT, tmp_path / "out", own_prompts=1)


def test_on_the_command_line(all_pass, here, tmp_path) -> None:
    text = [f"{language}={SAMPLE / language}" for language in ("ru", "en")]
    arguments = ["prompts", "--original", LAB, "--text", *text, "--output", tmp_path / "out"]
    options = ["--own-prompts", 2, "--prompt-batch", 2, "--prompt-tokens", 4]
    shown = here(*arguments, *options)
    assert f"wrote {tmp_path / 'out'}" in shown
    assert "ru: kept: 2" in shown
    assert "the output" in here(*arguments, *options, code=2)
