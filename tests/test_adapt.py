"""`lep adapt`: what it refuses at once, what it decides, the recipe that it writes, its stages."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, SAMPLE
from test_card import traces
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import lep
from lep.corpus.language import SCRIPTS
from lep.corpus.read import Document, read_documents, write_records
from lep.errors import CorpusError, LepError, LepWarning, OutputError
from lep.pipeline import budget as budgets
from lep.pipeline import stages_adapt
from lep.pipeline.budget import budget
from lep.pipeline.devices import Device, this_device
from lep.pipeline.recipe import Recipe
from lep.pipeline.recipe_file import load_recipe
from lep.pipeline.recipe_stages import recipe_stages
from lep.pipeline.run import FinishedRun
from lep.pipeline.sampled_savings import Savings, _sample, first_tokens, savings_curve
from lep.pipeline.shape import Shape
from lep.pipeline.stage import RunFolder, Runner, Stage
from lep.pipeline.stages_adapt import apart, warnings
from lep.report.verdict import NAMES
from lep.tokenizer.count import count_texts
from lep.tokenizer.extend import extend_bpe
from lep.tokenizer.parts import Parts

TEXT = {"ru": SAMPLE / "ru", "en": SAMPLE / "en"}
LAB = ROOT / "lab" / "pair" / "instruct"


@pytest.fixture
def instruct(pair) -> Path:
    return pair["instruct"]


@pytest.fixture
def no_run(monkeypatch) -> list[Recipe]:
    """Recipes that would have been run."""
    recipes = []

    def run_recipe(grid, output, say) -> FinishedRun:
        recipes.append(grid.cells[0].recipe)
        return FinishedRun(output, output / "report.html", "table", {}, "It answers.")

    monkeypatch.setattr("lep.pipeline.run.run_recipe", run_recipe)
    return recipes


# --- what is missing ------------------------------------------------------------------------------

ENGLISH_AS_RUSSIAN = {"ru": SAMPLE / "en", "en": SAMPLE / "ru"}
FAULTS = {
    "no model": ({"model": "/no/such"}, "there is no folder /no/such"),
    "no template": ({"model": "BASE"}, "base has no chat template, so it cannot be asked anything"),
    "no text": ({"text": {}}, "--text has no language, and two languages are needed"),
    "one language": (
        {"text": {"ru": SAMPLE / "ru"}},
        "--text has ru, and two languages are needed",
    ),
    "another language": ({"language": "kk"}, "--language is 'kk', and --text has ru, en: give"),
    "no such text": (
        {"text": {"ru": "/no/text", "en": SAMPLE}},
        "no file or folder /no/text: check",
    ),
    "one text for both": (
        {"text": {"ru": SAMPLE, "en": SAMPLE / "en"}},
        r"en/.*\.txt is text of both ru and en: give each language its own",
    ),
    "no model folder": ({"model": SAMPLE}, "has no config.json: it is not a model folder"),
    "another script": (
        {"text": ENGLISH_AS_RUSSIAN},
        "0% of the letters in .* are Cyrillic .most are Latin., and 'ru' is written in Cyrillic",
    ),
    "no prompts": ({"prompts": "/no/prompts"}, "no file or folder /no/prompts: check"),
    "no pack": ({"from_pack": "/no/pack"}, "there is no pack /no/pack: check the path"),
    "no time": ({"hours": 0}, "--hours is 0: give a time above 0"),
    "time and tokens": ({"hours": 1, "tokens": 10}, r"give --hours \(1\) or --tokens \(10\), not"),
}
SETTINGS = {
    "unknown": (["adapt.tokns=5"], "unknown key 'adapt.tokns'; did you mean 'tokens'"),
    "unknown section": (
        ["adpt.own_prompts=2"],
        "^command line, adpt.own_prompts=2: unknown key 'adpt'; did you mean 'adapt'",
    ),
    "two lengths": (
        ["adapt.epochs=2"],
        "--hours is 1, and adapt.tokens or adapt.epochs says how long to train: give one",
        {"hours": 1},
    ),
    "no section": (["adapt=null"], "lep adapt needs the section adapt, and a change removes it"),
    "no size": (["tokenizer.method=merge"], "the method merge needs new_tokens: give new_tokens"),
    "no size in place": (["tokenizer.method=in-place"], "the method in-place needs new_tokens"),
    "no number": (["tokenizer.new_tokens=many"], "tokenizer.new_tokens is 'many': input should"),
    "too many": (
        ["tokenizer.new_tokens=90000"],
        r"the text yields only \d,\d+ of 90,000 tokens: give",
    ),
}


def refused(instruct: Path, output: Path, message: str, **changes) -> None:
    given = {"model": instruct, "text": TEXT} | changes
    if given["model"] == "BASE":
        given["model"] = instruct.parent / "base"
    with pytest.raises(LepError, match=message):
        lep.adapt(given.pop("model"), given.pop("text"), output, **given)
    assert not output.exists()


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_missing_is_said_and_nothing_written(name, instruct, tmp_path) -> None:
    changes, message = FAULTS[name]
    refused(instruct, tmp_path / "run", message, **changes)


@pytest.mark.parametrize("name", SETTINGS)
def test_changes_that_cannot_be_followed(name, instruct, tmp_path) -> None:
    overrides, message, *more = SETTINGS[name]
    options = more[0] if more else {}
    refused(instruct, tmp_path / "run", message, overrides=overrides, **options)


def test_a_wrong_key_shows_before_the_text_is_read(instruct, tmp_path) -> None:
    text = {"ru": "/no/text", "en": SAMPLE / "en"}
    changes = ["adpt.own_prompts=2"]
    refused(instruct, tmp_path / "run", "unknown key 'adpt'", text=text, overrides=changes)


def test_faults_show_before_torch_is_imported(pair, tmp_path) -> None:
    """In the first second: each of these commands in a new process, one after the other."""
    commands = [
        ["/no/such", *texts("ru", "en")],
        [str(pair["base"]), *texts("ru", "en")],
        [str(pair["instruct"]), *texts("ru")],
        [str(pair["instruct"]), "--text", f"ru={SAMPLE / 'en'}", *texts("en")],
    ]
    script = (
        "import sys\nfrom lep.cli import main\nfor words in " + repr(commands) + ":\n"
        f"    sys.argv = ['lep', 'adapt', *words, '--output', {str(tmp_path / 'run')!r}]\n"
        "    try: main()\n    except SystemExit as left: assert left.code == 2\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    faults = done.stderr.splitlines()
    assert len(faults) == len(commands)
    assert all(fault.startswith("error: ") for fault in faults)
    assert not (tmp_path / "run").exists()


def texts(*languages: str) -> list[str]:
    return [word for code in languages for word in ("--text", f"{code}={SAMPLE / code}")]


# --- the recipe that is written -------------------------------------------------------------------


def test_the_recipe_holds_what_was_decided_and_nothing_else(
    instruct, tmp_path, no_run, monkeypatch
) -> None:
    monkeypatch.chdir(SAMPLE.parent)
    said: list[str] = []
    text = {"en": "train/en", "ru": ["train/ru"]}
    changes = ["adapt.own_prompts=7", "evaluate.items=3", "adapt.shares=old_answers=0"]
    options = {"language": "ru", "tokens": 40_000, "title": "Cheaper: Russian", "say": said.append}
    result = lep.adapt(instruct, text, tmp_path / "run", overrides=changes, **options)
    path = tmp_path / "run" / "recipe.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content == {
        "name": "run",
        "title": "Cheaper: Russian",
        "instruct": str(instruct),
        "language": "ru",
        "text": {"en": str(SAMPLE / "en"), "ru": str(SAMPLE / "ru")},
        "tokenizer": {"new_tokens": 100},  # 40,000 tokens of training / 400
        "adapt": {"tokens": 40_000, "own_prompts": 7, "shares": "old_answers=0"},
        "evaluate": {"items": 3},
    }
    assert no_run == [load_recipe(path)]
    assert str(result).endswith("\n\nIt answers.")
    assert said[0] == "reading text and measuring this device ..."
    assert said[1] == "languages: new tokens for ru, none for en"
    first, second, third = said[2].splitlines()
    reason = "more need more text or training"
    assert re.match(rf"new tokens: 100 \({reason}\); tokens saved: \d+% by 256, ", first)
    assert second.startswith("training: 40,000 tokens, 400 for each new token, ")
    time = r"\d[\d hmins]+"
    parts = ("training", "prompts and answers", "practice tasks", "evaluation")
    named = ", ".join(f"{part} {time}" for part in parts)
    assert re.fullmatch(rf"time: about {time} on this device \(.*\): {named}", third)


def test_passes_over_the_text_bound_practice_too(instruct, tmp_path, no_run) -> None:
    """Two fifths of the half that is practice; a recipe with epochs alone would not know."""
    for name, changes, expected in (
        ("one", [], lambda tokens: round(0.2 * tokens)),
        ("two", ["adapt.practice_tokens=70"], lambda _: 70),
        ("none", ["adapt.shares=practice=0"], lambda _: None),
    ):
        overrides, said = ["adapt.epochs=0.5", *changes], []
        options = {"new_tokens": 50, "overrides": overrides, "say": said.append}
        lep.adapt(instruct, TEXT, tmp_path / name, **options)
        (tokens,) = re.findall(r"training: ([\d,]+) tokens", said[2])
        assert no_run[-1].adapt.epochs == 0.5
        assert no_run[-1].adapt.practice_tokens == expected(int(tokens.replace(",", "")))


def test_a_dry_run_says_what_is_decided_and_writes_nothing(here, instruct, tmp_path, no_run):
    words = ["adapt", instruct, *texts("ru", "en"), "--output", tmp_path / "run"]
    words += ["--tokens", "40000"]
    dry = here(*words, "--dry-run")
    assert "new tokens: 100 (" in dry
    assert "training: 40,000 tokens, 400 for each new token" in dry
    assert not list(tmp_path.iterdir())
    assert not no_run
    here(*words)
    written = (tmp_path / "run" / "recipe.yaml").read_text()
    assert dry.endswith(written.split("\n", 1)[1])  # the recipe that is written without it
    assert here(*words, "--dry-run") == written


def test_codes_whose_script_is_unknown_are_named(instruct, tmp_path, no_run) -> None:
    text = {"rr": SAMPLE / "ru", "en": SAMPLE / "en"}
    with pytest.warns(LepWarning, match="'rr' is no code whose script is known, so text in anoth"):
        lep.adapt(instruct, text, tmp_path / "run", new_tokens=50, say=lambda line: None)
    assert len(no_run) == 1
    assert set(NAMES) - set(SCRIPTS) == {"uz"}  # which has two scripts


def test_the_same_command_continues_and_another_is_refused(
    here, instruct, tmp_path, no_run, monkeypatch
) -> None:
    words = ["adapt", instruct, *texts("ru", "en"), "--output", tmp_path / "run"]
    words += ["--tokens", "40000"]
    first = here(*words, "adapt.seed=3")
    assert "It answers." in first
    recipe = tmp_path / "run" / "recipe.yaml"
    before = recipe.read_text()
    monkeypatch.setattr("lep.pipeline.budget.budget", None)  # nothing is decided again
    here(*words, "adapt.seed=3")
    assert no_run[0] == no_run[1] == load_recipe(recipe)
    assert no_run[0].adapt.seed == 3
    refusal = here(*words, code=2)
    assert "is the recipe of another command (lep adapt" in refusal
    assert f"`lep run {recipe} --output {tmp_path / 'run'} KEY=VALUE`" in refusal
    recipe.write_text(before.replace("seed: 3", "seed: 4"))  # by hand
    here(*words, "adapt.seed=3")
    assert no_run[2].adapt.seed == 4


def test_changes_may_follow_the_text(here, instruct, tmp_path, no_run) -> None:
    output = ["--output", tmp_path / "run", "--new-tokens", "50"]
    here("adapt", instruct, *output, *texts("ru", "en"), "adapt.seed=3")
    assert (no_run[0].adapt.seed, list(no_run[0].text)) == (3, ["ru", "en"])
    assert no_run[0].tokenizer.new_tokens == 50
    assert no_run[0].adapt.tokens == 600 * 50


def test_other_folders_are_left_alone(instruct, tmp_path, no_run) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml.0123.partial").write_text("")  # of a command killed while it wrote
    lep.adapt(instruct, TEXT, folder, new_tokens=50, say=lambda line: None)
    assert len(no_run) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(OutputError, match=r"other exists already, without a recipe.yaml: delete"):
        lep.adapt(instruct, TEXT, tmp_path / "other", new_tokens=50)


# --- how many tokens ------------------------------------------------------------------------------

# Held-out tokens by new tokens: the doublings save 10%, 4% and 2%.
CURVE = {256: 8_000, 512: 7_200, 1024: 6_912, 2048: 6_774}


@pytest.fixture
def chosen(instruct, tmp_path, monkeypatch):
    """The budget for a text of `characters`, of which one token is three with every size."""
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: x\ninstruct: {instruct}\nlanguage: ru\ntext: {{ru: {SAMPLE}/ru, en: {SAMPLE}/en}}\n"
        "tokenizer: {new_tokens: 1}\nadapt: {tokens: 1}\n"
    )

    def choose(characters: int, *changes: str, after=CURVE, **options) -> budgets.Budget:
        curve = {n: Savings(1, 3 * tokens, 10_000, tokens) for n, tokens in after.items()}
        monkeypatch.setattr(budgets, "savings_curve", lambda *_: curve)
        monkeypatch.setattr(budgets, "training_characters", lambda *_: characters)
        given = dict.fromkeys(("new_tokens", "tokens", "hours")) | options
        return budget(load_recipe(path, changes), **given)

    return choose


def test_new_tokens_follow_the_curve_of_savings(chosen) -> None:
    """The last doubling that still saves 3%; 600 tokens of training for each."""
    found = chosen(10**8)
    assert (found.new_tokens, found.tokens) == (1024, 614_400)
    assert "twice as many save less than 3% more" in found.reason
    assert "20% by 256, 28% by 512, 31% by 1,024, 32% by 2,048" in found.reason


def test_a_doubling_that_saves_little_does_not_end_the_curve(chosen) -> None:
    """Of Qwen, 512 tokens save 2.1% more than 256, and 1,024 save 3.2% more than those."""
    after = {256: 9_500, 512: 9_300, 1024: 9_000, 2048: 8_600, 4096: 8_500}
    assert chosen(10**8, after=after, tokens=204_800).new_tokens == 512
    assert chosen(10**8, after=after, tokens=204_799).new_tokens == 256
    assert chosen(10**8, after=after).new_tokens == 2048


def test_new_tokens_are_bounded_by_the_text(chosen) -> None:
    """Text is 22% of the mixture: four passes over 33,793 tokens are 614,418."""
    found = chosen(101_379)  # 33,793 tokens
    assert (found.new_tokens, found.tokens) == (1024, 614_400)
    assert "4.0 passes over the text" in found.reason
    found = chosen(48_400)
    assert (found.new_tokens, found.tokens) == (512, 293_333)
    assert "more need more text or training" in found.reason
    found = chosen(16_940)  # 102,666 tokens at most: fewer than the smallest size needs
    assert (found.new_tokens, found.tokens) == (256, 102_666)


def test_new_tokens_are_bounded_by_the_budget(chosen) -> None:
    assert chosen(10**8, tokens=300_000).new_tokens == 512
    assert chosen(10**8, tokens=40_000).new_tokens == 100
    found = chosen(10**8, new_tokens=2048, tokens=300_000)
    assert (found.new_tokens, found.tokens) == (2048, 300_000)
    needed = "each new token needs 400 tokens of training to be learned well, 600 are better: give"
    assert needed in found.reason


def test_hours_decide_how_much_is_trained(chosen, instruct, monkeypatch) -> None:
    """60% of the hours, at the operations of a token of which the new rows train."""
    told = Device("this CPU", 1e9, "as told", 1e9, is_cpu=True)
    monkeypatch.setattr(budgets, "this_device", lambda *_, **__: told)
    shape = Shape.of(instruct)
    rows = shape.ids + 512
    operations = 4 * (shape.body + rows * shape.hidden) + 2 * 512 * shape.hidden
    found = chosen(10**9, new_tokens=512, hours=0.2)
    assert found.tokens == pytest.approx(0.6 * 720 * 1e9 / operations, abs=1)
    assert "on this device (1 GFLOP/s, as told): training 7 min 12 s, prompts" in found.reason
    assert "--hours" not in found.reason


def seconds_by_part(reason: str) -> dict[str, int]:
    """What the line on time says, `whole` first."""
    (line,) = (line for line in reason.splitlines() if line.startswith("time: about "))
    line = line.replace("time: about", "whole").partition("; ")[0]
    units = {"h": 3600, "min": 60, "s": 1}
    pairs = re.findall(r"([a-z][a-z ]*?) ((?:\d+ (?:h|min|s)\b ?)+)", line)
    return {
        part: sum(int(n) * units[unit] for n, unit in re.findall(r"(\d+) (h|min|s)", time))
        for part, time in pairs
    }


def test_the_time_of_a_run_has_all_of_its_parts(chosen, instruct, monkeypatch) -> None:
    """Of each part the tokens that the model could read meanwhile, on a device that reads 2,000."""
    shape = Shape.of(instruct)
    forward = 2 * (shape.body + (shape.ids + 512) * shape.hidden)
    told = Device("this CPU", 2_000 * forward, "as told", 1e9, is_cpu=True)
    monkeypatch.setattr(budgets, "this_device", lambda *_, **__: told)
    changes = ("adapt.own_prompts=40", "adapt.prompt_tasks=10", "adapt.max_new_tokens=100")
    changes += ("evaluate.items=20", "evaluate.characters=60_000")

    def tokens(*more: str, **options) -> dict[str, float]:
        options = options or {"tokens": 200_000}
        reason = chosen(10**9, *changes, *more, new_tokens=512, **options).reason
        return {part: 2_000 * seconds for part, seconds in seconds_by_part(reason).items()}

    trained = 200_000 * (2 + 2 * 512 * shape.hidden / forward)
    expected = {
        "training": trained,
        "prompts and answers": 1.5 * 2 * (40 * (5 * 128 + 100) + 10 * 5 * 200),
        "practice tasks": 2 * 0.4 * 0.5 * 200_000,  # half of them are kept
        "evaluation": 3 * 2 * (1.5 * 20 * 5 * 200 + 60_000 / 3),
    }
    near = partial(pytest.approx, abs=1_000)  # seconds are rounded
    assert tokens() == near({"whole": sum(expected.values())} | expected)
    assert tokens("adapt.sweep=true")["training"] == near(1.8 * trained)
    four = 1.5 * 2 * (40 * (5 * 128 + 400) + 4 * 10 * 5 * 200)
    assert tokens("adapt.samples=4")["prompts and answers"] == near(four)
    one_side = tokens("adapt.shares=old_answers=0")["prompts and answers"]
    assert one_side == near(expected["prompts and answers"] / 2)
    assert list(tokens("adapt.shares=answers=0,old_answers=0,practice=0")) == [
        "whole",
        "training",
        "evaluation",
    ]
    prompts = instruct.parent / "prompts.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "?"}]}\n' * 70, encoding="utf-8")
    given = tokens(f"adapt.prompts={prompts}", "adapt.practice_tokens=3000")
    assert given["prompts and answers"] == near(1.5 * 70 * 100)
    assert given["practice tasks"] == near(6_000)


def test_what_the_time_leaves_out_is_named(chosen) -> None:
    (time,) = re.findall("time: .*", chosen(10**8, "evaluate.benchmark.tasks=[rublimp]").reason)
    assert time.endswith("; benchmark tasks are extra; --hours N makes it fit N hours")
    for options in ({"tokens": 40_000}, {"epochs": 2}, {"hours": 1000}):
        assert "--hours N" not in chosen(10**8, new_tokens=512, **options).reason


@pytest.mark.parametrize("tokens", [346_000, 450_000, 700_000, 3_000_000])
@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("adapt.own_prompts=5", "adapt.practice_tokens=9000"),
        ("adapt.samples=2", "adapt.prompt_tasks=0"),
        ("adapt.shares=practice=0.1",),
        ("adapt.sweep=true",),
    ],
)
def test_a_run_fits_its_hours(chosen, instruct, monkeypatch, tokens: int, changes) -> None:
    """Whatever is given: the training takes what the smallest settings and given ones leave."""
    shape = Shape.of(instruct)
    forward = 2 * (shape.body + (shape.ids + 512) * shape.hidden)
    told = Device("this CPU", forward, "as told", 1e9, is_cpu=True)
    monkeypatch.setattr(budgets, "this_device", lambda *_, **__: told)
    options = {"new_tokens": 512, "hours": tokens / 3600}
    try:
        found = chosen(10**9, *changes, **options)
    except LepError as refused:
        (advised,) = re.findall(r"give --hours ([\d.]+) or more", str(refused))
        options["hours"] = float(advised)
        found = chosen(10**9, *changes, **options)
    seconds = seconds_by_part(found.reason)
    assert 0.7 < seconds["whole"] / (3600 * options["hours"]) < 0.97
    assert seconds["training"] > 0.15 * seconds["whole"]


def test_hours_bound_answers_and_evaluation(chosen, instruct, monkeypatch) -> None:
    """What a slow device cannot write and read in the rest of the hours is asked for less often."""
    told = Device("this CPU", 1e9, "as told", 1e9, is_cpu=True)
    monkeypatch.setattr(budgets, "this_device", lambda *_, **__: told)
    shape = Shape.of(instruct)
    forward = 2 * (shape.body + (shape.ids + 512) * shape.hidden)
    hours = 450_000 * forward / 1e9 / 3600  # in which 450,000 tokens are read
    expected = {
        "adapt.own_prompts": 9,  # 31,500 tokens; 5 texts of 128 and an answer, in 2 languages
        "adapt.prompt_tasks": 10,
        "evaluate.items": 10,  # the fewest
        "evaluate.characters": 10_000,
    }
    found = chosen(10**9, new_tokens=512, hours=hours)
    assert found.counts == expected
    assert "to fit the hours: adapt.own_prompts 9, adapt.prompt_tasks 10, eval" in found.reason
    named = chosen(10**9, "evaluate.items=10", "adapt.own_prompts=0", new_tokens=512, hours=hours)
    others = ("adapt.prompt_tasks", "evaluate.characters")
    assert named.counts == {name: expected[name] for name in others}
    practised = chosen(10**9, "adapt.shares=practice=2", new_tokens=512, hours=hours)
    assert practised.counts == expected | {"adapt.practice_tokens": 27_000}  # of 54,000, half kept
    found = chosen(10**9, new_tokens=512, hours=5 * hours)  # 2,250,000 tokens
    assert found.counts["evaluate.items"] == 17  # of 5 tasks, by 3 models, in 2 languages
    characters = found.counts["evaluate.characters"]  # a token is three
    assert characters == pytest.approx(33_750, abs=1)
    prompts = instruct.parent / "few.jsonl"  # prompts that are given are all answered
    prompts.write_text('{"messages": [{"role": "user", "content": "?"}]}', encoding="utf-8")
    found = chosen(10**9, f"adapt.prompts={prompts}", new_tokens=512, hours=hours)
    silent = ["evaluate.items", "evaluate.characters"]
    assert list(found.counts) == silent
    assert chosen(10**9, new_tokens=512, hours=1000 * hours).counts == {}
    # 8 prompts and 10 items of 5 tasks, 2,000 tokens of practice, 10,000 characters: 138,000
    # tokens, 40% of 345,000.
    with pytest.raises(LepError, match="too short for this model on this device") as refused:
        chosen(10**9, new_tokens=512, hours=hours * 344 / 450)
    (advised,) = re.findall(r"give --hours ([\d.]+) or more", str(refused.value))
    assert 345 / 450 * hours <= float(advised) < 345 / 450 * hours + 0.001
    assert chosen(10**9, new_tokens=512, hours=float(advised)).tokens > 0
    assert chosen(10**9, new_tokens=512).counts == {}
    # Without answers to learn from there is nothing to answer, and without tasks own prompts are.
    no_answers = "adapt.shares=answers=0,old_answers=0"
    found = chosen(10**9, no_answers, new_tokens=512, hours=hours)
    assert list(found.counts) == ["adapt.practice_tokens", *silent]  # of a larger share
    alone = chosen(10**9, "adapt.prompt_tasks=0", new_tokens=512, hours=1.5 * hours)
    assert alone.counts["adapt.own_prompts"] == 20
    untasked = chosen(10**9, "evaluate.tasks=[]", new_tokens=512, hours=1.5 * hours)
    names = ["adapt.own_prompts", "evaluate.characters"]
    assert list(untasked.counts) == names


def test_passes_that_are_asked_for_are_budgeted(chosen) -> None:
    """Two passes over 33,793 tokens, which are 22% of the mixture."""
    found = chosen(101_379, new_tokens=512, epochs=2)
    assert found.tokens == pytest.approx(2 * 33_793 / 0.22, abs=1)
    assert "2.0 passes over the text" in found.reason
    assert found.read_characters == pytest.approx(2 * 101_379, abs=3)


@pytest.mark.parametrize(("language", "is_familiar"), [("ru", True), ("el", False)])
def test_a_language_with_hardly_a_token_is_noted(tmp_path, language, is_familiar) -> None:
    """The lab model's vocabulary was made for Russian and English; Greek is read byte by byte."""
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: x\ninstruct: {LAB}\nlanguage: {language}\n"
        f"text: {{{language}: {SAMPLE}/{language}, en: {SAMPLE}/en}}\n"
        "tokenizer: {new_tokens: 1}\nadapt: {tokens: 1}\n"
    )
    reason = budget(load_recipe(path), new_tokens=20, tokens=1000, hours=None).reason
    tokenizer, sizes = Tokenizer.from_file(str(LAB / "tokenizer.json")), []
    for code in (language, "en"):
        texts = [file.read_text(encoding="utf-8") for file in (SAMPLE / code).iterdir()]
        tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
        sizes.append(f"{sum(len(text.encode()) for text in texts) / tokens:.1f}")
    note = f"note: a token holds {sizes[0]} bytes of {language}, and {sizes[1]} of en"
    assert (note in reason) is not is_familiar
    assert ("note: a token" in reason) is not is_familiar


def test_a_pack_needs_a_tenth(chosen, tmp_path) -> None:
    found = chosen(10**8, f"adapt.from_pack={tmp_path}", new_tokens=1000)
    assert found.tokens == 60_000
    assert "as in the pack" in found.reason
    assert "to be learned well" not in found.reason


def test_a_sample_of_many_files_is_no_larger_than_of_few(tmp_path) -> None:
    """Files from all over the list, until there are enough characters."""
    for number in range(300):
        (tmp_path / f"{number:03}.txt").write_text("x" * 1_000)
    files = [str(tmp_path)]
    assert len("".join(_sample(files, 50_000))) == 50_000
    assert len("".join(_sample(files, 10**7))) == 300_000
    few = _sample([str(tmp_path / f"{n:03}.txt") for n in range(3)], 2_000)
    assert len(few) == 2


def test_shapes_of_models_without_heads_and_with_unequal_layers(tmp_path, byte_level) -> None:
    """Mamba keeps no cache; Gemma 3n has one width for each layer."""
    from transformers import Gemma3nTextConfig, MambaConfig

    small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
    gemma = {"intermediate_size": [48, 64], "num_attention_heads": 2, "num_key_value_heads": 1}
    gemma |= {"head_dim": 16, "vocab_size_per_layer_input": 64, "laurel_rank": 8}
    gemma |= {"num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 2}
    gemma |= {"hidden_size_per_layer_input": 16, "activation_sparsity_pattern": [0.0, 0.0]}
    for name, config in {
        "mamba": MambaConfig(**small, state_size=4),
        "gemma": Gemma3nTextConfig(**small, **gemma),
    }.items():
        config.architectures = ["MambaForCausalLM" if name == "mamba" else "Gemma3nForCausalLM"]
        folder = tmp_path / name
        config.save_pretrained(folder)
        byte_level.save(str(folder / "tokenizer.json"))
        shape = Shape.of(folder)
        assert (shape.cache > 0, shape.inner) == {
            "mamba": (False, config.__dict__.get("intermediate_size", 64)),
            "gemma": (True, 64),
        }[name]


def test_the_speed_of_this_device(instruct) -> None:
    device = this_device(Shape.of(instruct), bf16=False)
    assert 1e6 < device.operations < 1e16
    assert device.source.startswith("40% of ")
    assert device.memory_bytes > 1e8
    assert device.is_cpu is not torch.cuda.is_available()


def test_smaller_extensions_are_the_first_tokens_of_a_larger_one(instruct) -> None:
    """Each learned alone has the same tokens and merges."""
    base = Tokenizer.from_file(str(instruct / "tokenizer.json"))
    russian = [file.read_text(encoding="utf-8") for file in sorted((SAMPLE / "ru").iterdir())]
    parts, words = Parts.of(base), count_texts(base, russian[1:])
    largest = extend_bpe(parts, words, 300)
    for size in (1, 100, 299, 300):
        alone, first = extend_bpe(parts, words, size).parts, first_tokens(parts, largest, size)
        for text in russian:
            sides = [
                each.tokenizer.encode(text, add_special_tokens=False) for each in (alone, first)
            ]
            assert sides[0].tokens == sides[1].tokens


def test_the_curve_ends_where_the_text_yields_no_more(instruct) -> None:
    curve = savings_curve(instruct, [str(SAMPLE / "ru")], [64, 128, 80_000, 90_000])
    assert list(curve)[:2] == [64, 128]
    assert 1_000 < list(curve)[2] < 10_000  # of 90,000 characters
    assert len(curve) == 3
    assert curve[64].before == curve[128].before > curve[64].after > curve[128].after
    with pytest.raises(CorpusError, match="yields only"):
        savings_curve(instruct, [str(SAMPLE / "ru")], [90_000])


# --- stages ---------------------------------------------------------------------------------------


def documents(groups: list[str]) -> list[Document]:
    return [Document(str(i), "text", "source", group) for i, group in enumerate(groups)]


def test_looks_are_whole_groups() -> None:
    looks, rest = apart(documents([f"author {i % 50}" for i in range(1_000)]), 0.1, "ru")
    groups = [{document.group for document in side} for side in (looks, rest)]
    assert not groups[0] & groups[1]
    assert 1 <= len(groups[0]) <= 12
    assert len(looks) + len(rest) == 1_000


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
@pytest.mark.parametrize("groups", [["a", "b"], ["a", "a", "a"]])
def test_both_sides_have_a_document(share, groups) -> None:
    assert all(apart(documents(groups), share, "ru"))
    with pytest.raises(CorpusError, match="training text of 'ru' is a single document"):
        apart(documents(["a"]), share, "ru")


@pytest.fixture
def stages(pair, tmp_path):
    """The stages of a recipe by name."""
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: x\ninstruct: {pair['instruct']}\nlanguage: ru\n"
        f"text: {{ru: {SAMPLE}/ru, en: {SAMPLE}/en}}\n"
        "tokenizer: {new_tokens: 60}\nadapt: {tokens: 10_000}\n"
    )
    return lambda *changes: {s.name: s for s in recipe_stages(load_recipe(path, changes)).all}


ALL = [
    *("corpus", "tokenizer", "init-instruct", "looks", "prompt-tasks", "own-prompts"),
    *("adapt-prompts", "adapt-unjudged", "adapt-answers", "practice", "adapt"),
    *("evaluate-instruct", "evaluate-init-instruct", "evaluate-adapt"),
]


def test_the_stages_of_joint_training(stages) -> None:
    assert list(stages()) == ALL
    assert stages()["practice"].settings["practice_tokens"] == 2_000  # two fifths of half
    assert stages("adapt.practice_tokens=9")["practice"].settings["practice_tokens"] == 9


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        (["adapt.shares=practice=0"], ["practice"]),
        (["adapt.shares=answers=0,old_answers=0"], [name for name in ALL if name in ALL[4:9]]),
        (["adapt.own_prompts=0"], ["own-prompts"]),
        (["adapt.prompt_tasks=0"], ["prompt-tasks"]),
    ],
)
def test_a_stream_without_a_share_has_no_stage(changes, without, stages) -> None:
    assert list(stages(*changes)) == [name for name in ALL if name not in without]


def test_prompts_are_in_the_languages_that_have_a_share(stages) -> None:
    both, new = stages(), stages("adapt.shares=old_answers=0")
    assert both["own-prompts"].settings["languages"] == ["ru", "en"]
    assert new["own-prompts"].settings["languages"] == ["ru"]


def test_a_file_of_prompts_replaces_those_made(stages, tmp_path) -> None:
    file = tmp_path / "prompts.jsonl"
    write_records(file, [{"messages": [{"role": "user", "content": "?"}]}])
    given = stages(f"adapt.prompts={file}")
    assert not {"prompt-tasks", "own-prompts", "adapt-prompts"} & set(given)
    assert given["adapt-unjudged"].files[1:] == [file]


def test_stages_do_not_depend_on_what_does_not_change_them(stages) -> None:
    """Another budget trains on the same answers; more new tokens change no answer either."""
    before = stages()
    for change, again in {
        "adapt.tokens=20_000": {"practice", "adapt"},
        "adapt.learning_rate=1e-3": {"adapt"},
        "adapt.practice=50": {"practice", "adapt"},
        "adapt.max_new_tokens=9": {"adapt-unjudged", "adapt-answers", "adapt"},
        "tokenizer.new_tokens=70": {"tokenizer", "init-instruct", "practice", "adapt"},
        "adapt.looks_share=0.5": set(ALL[3:11]),
    }.items():
        after = stages(change)
        changed = {n for n in ALL[:11] if after[n].fingerprint != before[n].fingerprint}
        assert changed == again, change


def test_with_a_base_both_ways_are_there(stages, pair) -> None:
    """On one tokenizer, the base's; the stages of the base are those without joint training."""
    base = [f"base={pair['base']}", "pretrain.tokens=5_000", "propagate=[conversion]"]
    both, alone = stages(*base), stages(*base, "adapt=null")
    assert {*alone, *ALL} == set(both)
    assert all(both[name].fingerprint == stage.fingerprint for name, stage in alone.items())
    assert pair["base"] in both["tokenizer"].files
    after = stages(*base, "adapt.after=conversion")
    assert set(after) - set(both) == {"adapt-conversion", "evaluate-adapt-conversion"}
    assert all(after[name].fingerprint == stage.fingerprint for name, stage in both.items())
    trained, first = after["adapt-conversion"], after["adapt"]
    assert trained.upstream == [after["propagate-conversion"], *first.upstream[1:]]
    assert trained.settings == first.settings


def test_a_model_that_writes_no_prompts_answers_tasks(stages, tmp_path, monkeypatch) -> None:
    """Without tasks the fault is the run's."""

    def write_prompts(*_, **__) -> None:
        raise CorpusError("none of 80 prompts is of use")

    monkeypatch.setattr(stages_adapt, "write_prompts", write_prompts)
    names = ("corpus", "looks", "prompt-tasks", "own-prompts", "adapt-prompts")
    for change, fault in {"adapt.prompt_tasks=2": False, "adapt.prompt_tasks=0": True}.items():
        made, said = stages(change), []
        runner = Runner(RunFolder(tmp_path / change), said.append)
        if fault:
            with pytest.raises(CorpusError, match="none of 80 prompts is of use"):
                runner.run_all([made[name] for name in names if name in made])
            continue
        runner.run_all([made[name] for name in names])
        warning = (
            "warning: none of 80 prompts is of use; only tasks made from the text are answered"
        )
        assert warning in said
        lines = (tmp_path / change / "adapt-prompts" / "records.jsonl").read_text().splitlines()
        questions = [json.loads(line)["messages"][0] for line in lines]
        assert len(questions) == 2 * 5 * 2  # of five kinds in two languages
        assert {question["role"] for question in questions} == {"user"}


def test_prompts_of_its_own_join_the_tasks(stages, tmp_path, monkeypatch) -> None:
    def write_prompts(original, text, output, settings, *, wanted, each) -> None:
        assert not each  # a language without prompts has tasks
        assert wanted == {"ru": 200, "en": 200}
        output.mkdir()
        record = {"messages": [{"role": "user", "content": "How so?"}], "language": "en"}
        write_records(output / "prompts.jsonl", [record])
        counts = {"ru": {"kept": 0, "cut off": 8}, "en": {"kept": 200}}
        (output / "prompts.json").write_text(json.dumps(counts))

    monkeypatch.setattr(stages_adapt, "write_prompts", write_prompts)
    made, said = stages("adapt.prompt_tasks=1"), []
    names = ("corpus", "looks", "prompt-tasks", "own-prompts", "adapt-prompts")
    Runner(RunFolder(tmp_path / "run"), said.append).run_all([made[name] for name in names])
    lines = (tmp_path / "run" / "adapt-prompts" / "records.jsonl").read_text().splitlines()
    assert len(lines) == 5 * 2 + 1
    assert json.loads(lines[-1])["messages"][0]["content"] == "How so?"
    (warning,) = (line for line in said if line.startswith("warning"))
    drafts = tmp_path / "run" / "own-prompts" / "drafts.jsonl"
    assert f"0 of 200 prompts in ru, after 8 drafts: look at {drafts}, the" in warning


def test_old_languages_share_as_many_prompts_as_the_new_one_has(
    stages, tmp_path, monkeypatch
) -> None:
    """Of tasks and of its own prompts; with an odd number each gets the next whole one."""
    asked = {}

    def write_prompts(original, text, output, settings, *, wanted, each) -> None:
        asked.update(wanted)
        output.mkdir()
        write_records(output / "prompts.jsonl", [])
        (output / "prompts.json").write_text(json.dumps({code: {"kept": 9} for code in wanted}))

    monkeypatch.setattr(stages_adapt, "write_prompts", write_prompts)
    text = f"text={{ru: {SAMPLE}/ru, en: {SAMPLE}/en, el: {SAMPLE}/el}}"
    made = stages(text, "adapt.prompt_tasks=3", "adapt.own_prompts=5", "evaluate.tasks=first_word")
    names = ("corpus", "looks", "prompt-tasks", "own-prompts", "adapt-prompts")
    Runner(RunFolder(tmp_path / "run"), lambda line: None).run_all([made[n] for n in names])
    assert asked == {"ru": 5, "en": 3, "el": 3}
    lines = (tmp_path / "run" / "prompt-tasks" / "records.jsonl").read_text().splitlines()
    assert Counter(json.loads(line)["language"] for line in lines) == {"ru": 3, "en": 2, "el": 2}


def test_held_out_text_without_a_task_is_refused_before_the_training(stages, tmp_path) -> None:
    """Lines have no paragraphs to copy: said when the text is split, not in the evaluation."""
    text = tmp_path / "lines.jsonl"
    sentence = "The {} house by the river was sold to a family from the city last year."
    records = [{"id": str(i), "text": sentence.format(f"{i}th")} for i in range(40)]
    write_records(text, records)
    said = []
    made = stages("evaluate.tasks=[copy_paragraph]", f"text.en={text}", "corpus.heldout_share=0.5")
    with pytest.raises(CorpusError, match="the en text gives no copy_paragraph item"):
        Runner(RunFolder(tmp_path / "run"), said.append).run_all([made["corpus"]])
    enough = stages("evaluate.tasks=[first_word]", f"text.en={text}", "corpus.heldout_share=0.5")
    Runner(RunFolder(tmp_path / "run"), said.append).run_all([enough["corpus"]])


def test_few_answers_stop_the_run_with_counts(tmp_path) -> None:
    few, reason = {"kept": 9, "too long": 91}, {"kept": 40}
    for name, value in (("answers", few), ("languages", {"ru": few, "en": reason})):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    message = (
        r"9 of 100 ru questions have an answer to learn from \(91 too long\), and 10 are "
        "needed: look at .*, give more or better prompts .adapt.prompts., a model that can "
    )
    with pytest.raises(CorpusError, match=message):
        list(warnings(tmp_path, "ru"))
    named = {"ru": {"kept": 3}, "Cyrillic": {"kept": 5}, "Russian": {"kept": 2}, "en": reason}
    (tmp_path / "languages.json").write_text(json.dumps(named))
    assert not list(warnings(tmp_path, "ru"))  # three ways to say it
    (tmp_path / "languages.json").write_text(json.dumps({"en": reason, "uk": reason}))
    with pytest.raises(CorpusError, match="0 of 0 ru questions have"):
        list(warnings(tmp_path, "ru"))
    (tmp_path / "languages.json").write_text(json.dumps({"ru": few, "en": reason}))
    (warning,) = warnings(tmp_path, None)  # where they have no share
    assert "9 of 100 ru questions have an answer to learn from" in warning


def test_warnings_are_said_before_the_next_stage_and_faults_stop_it(tmp_path) -> None:
    said: list[str] = []

    def check(folder: Path):
        assert (folder / "x").exists()
        yield "most answers were dropped"
        if not (tmp_path / "good").exists():
            raise CorpusError("too few")

    first = Stage("answers", lambda output, at: make(output), {}, check=check)
    second = Stage("adapt", lambda output, at: make(output), {}, (first,))
    for _ in range(2):  # what was built stays refused
        runner = Runner(RunFolder(tmp_path / "run"), said.append)
        with pytest.raises(CorpusError, match="too few"):
            runner.run_all([first, second])
        assert not (tmp_path / "run" / "answers").exists()
    (tmp_path / "good").touch()
    said.clear()
    Runner(RunFolder(tmp_path / "run"), said.append).run_all([first, second])
    assert said.index("most answers were dropped") < said.index("[2/2] adapt ...")


def make(folder: Path) -> None:
    folder.mkdir()
    (folder / "x").touch()


# --- whole runs -----------------------------------------------------------------------------------

SMALL = [
    *("adapt.prompt_tasks=6", "adapt.own_prompts=0", "adapt.max_new_tokens=12"),
    *("adapt.shares=practice=0", "adapt.block_size=256", "adapt.checkpoints=2"),
    *("evaluate.items=2", "evaluate.characters=2_000", "evaluate.bootstrap=50"),
    "evaluate.tasks=[copy_sentence, first_word]",
]


@pytest.mark.slow
def test_from_text_to_verdict_and_again(instruct, tmp_path, monkeypatch) -> None:
    """On a random model, whose answers pass no rule and no practice task."""
    monkeypatch.setattr("lep.calibration.answers.reason_to_drop", lambda *_: None)
    run, said = tmp_path / "run", []
    options = {"new_tokens": 40, "tokens": 3_000, "overrides": SMALL}
    result = lep.adapt(instruct, TEXT, run, **options, say=said.append)
    assert "joint training" in result.table
    assert str(result).endswith(str(result.verdict))
    record = json.loads((run / "adapt" / "lep" / "pretrain.json").read_text())
    assert set(record["streams"]) == {"text", "answers", "old_answers", "old_text"}
    looked = [look["bits_per_byte"] for look in record["looks"]]
    assert all(list(bits) == ["ru", "en"] for bits in looked)
    paths = ["corpus/ru.train.jsonl", "looks/ru.looks.jsonl", "looks/ru.rest.jsonl"]
    whole, looks, rest = ([d.text for d in read_documents([run / path])] for path in paths)
    assert sorted(looks + rest) == sorted(whole)
    assert not traces(run / "adapt", tmp_path, instruct, ROOT)
    card = (run / "adapt" / "README.md").read_text(encoding="utf-8")
    assert result.verdict in card
    again: list[str] = []
    lep.run_recipe(run / "recipe.yaml", run, say=again.append)
    assert all(line.endswith("up to date") for line in again)
    assert len(again) == len(ALL) - 2  # without own prompts and practice


LAB_CHANGES = [
    *("adapt.prompt_tasks=4", "adapt.own_prompts=2", "adapt.prompt_tokens=32"),
    *("adapt.max_new_tokens=40", "adapt.checkpoints=4", "adapt.practice=3"),
    *("evaluate.items=4", "evaluate.characters=2_000"),
]


def lab_command(run: Path) -> list[str]:
    command = [sys.executable, "-m", "lep", "adapt", str(LAB), *texts("ru", "en")]
    return [*command, "--output", str(run), "--new-tokens", "64", "--tokens", "8000", *LAB_CHANGES]


def lab_results(run: Path) -> list[bytes]:
    files = ("adapt/model.safetensors", "adapt-answers/kept.jsonl", "practice/kept.jsonl")
    return [(run / file).read_bytes() for file in files]


@pytest.fixture(scope="module")
def lab_run(tmp_path_factory) -> Path:
    """A run on the lab pair, from text alone, that nobody killed."""
    run = tmp_path_factory.mktemp("peace") / "run"
    done = subprocess.run(lab_command(run), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Russian" in done.stdout.splitlines()[-1]  # the verdict
    return run


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prompt-tasks", "adapt-unjudged", "practice", "adapt"])
def test_a_killed_command_continues(stage, lab_run, tmp_path) -> None:
    """Killed when a stage begins or a little later, then the same command: the same bits."""
    command = lab_command(tmp_path / "run")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert any(f"] {stage} ..." in line for line in process.stdout)
    time.sleep(1 if stage != "prompt-tasks" else 0)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "run.json").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert lab_results(tmp_path / "run") == lab_results(lab_run)


@pytest.mark.slow
def test_the_model_keeps_its_size(tmp_path) -> None:
    """In place: as many rows as before, and the same ids for English and for what frames a turn."""
    overrides = [*LAB_CHANGES, "tokenizer.method=in-place"]
    run, options = tmp_path / "run", {"new_tokens": 64, "tokens": 4_000}
    lep.adapt(LAB, TEXT, run, **options, overrides=overrides, say=lambda line: None)
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (LAB, run / "adapt"))
    assert len(before) == len(after)
    known, now = before.get_vocab(), after.get_vocab()
    freed = {i for name, i in known.items() if name not in now}
    assert {i for name, i in now.items() if name not in known} == freed
    assert len(freed) == 64
    chat = [{"role": "user", "content": "Repeat."}]
    texts = {
        code: [d.text for d in read_documents([run / "corpus" / f"{code}.train.jsonl"])]
        for code in TEXT
    }
    for text in [before.apply_chat_template(chat, tokenize=False), *texts["en"]]:
        assert after(text).input_ids == before(text).input_ids
    lengths = [sum(len(t(text).input_ids) for text in texts["ru"]) for t in (before, after)]
    assert lengths[1] < lengths[0]
    rows = [
        AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
        for folder in (LAB, run / "adapt")
    ]
    assert rows[0].shape == rows[1].shape
    changed = (rows[0] != rows[1]).any(1).nonzero().flatten().tolist()
    assert set(changed) == freed


@pytest.mark.slow
def test_a_pack_is_where_a_sibling_starts(lab_run, tmp_path) -> None:
    """New rows of the lab model, packed, and trained on in the same model."""
    lep.make_pack(LAB, lab_run / "adapt", tmp_path / "ru.pack")
    options = {"from_pack": tmp_path / "ru.pack", "overrides": LAB_CHANGES}
    result = lep.adapt(LAB, TEXT, tmp_path / "run", **options, say=lambda line: None)
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (recipe.tokenizer.new_tokens, recipe.adapt.tokens) == (64, 64 * 60)
    assert "rows of the pack" in result.table
    assert result.verdict is not None
    files = [run / "tokenizer" / "tokenizer.json" for run in (lab_run, tmp_path / "run")]
    first, second = (Tokenizer.from_file(str(file)).get_vocab() for file in files)
    assert first == second
