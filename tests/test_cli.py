"""The command line as a user meets it: whole processes, exit codes, one sentence for each fault."""

import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lep import settings
from lep.cli import app
from lep.errors import LepError
from lep.fields import FlatSettings, Setting
from lep.settings import BuildSettings, EvaluateSettings, PretrainSettings, Settings

SAMPLE = Path(__file__).parent.parent / "lab" / "text" / "train"
COMMAND = typer.main.get_command(app)
VERBS = {name: command for name, command in COMMAND.commands.items() if name != "tokenizer"} | {
    f"tokenizer {name}": command for name, command in COMMAND.commands["tokenizer"].commands.items()
}
SETTINGS = {
    "init": ["InitSettings"],
    "pretrain": ["PretrainSettings"],
    "propagate": ["PropagateSettings", "SelectSettings"],
    "answer": ["AnswerSettings"],
    "prompts": ["OwnPromptSettings"],
    "calibrate": ["CalibrateSettings", "AnswerTuning"],
    "tune": ["TuneSettings", "AnswerTuning"],
    "corpus": ["BuildSettings", "ClusterSettings"],
    "evaluate": ["EvaluateSettings"],
    "export": ["ExportSettings"],
    "import": ["ImportSettings"],
}
# The options of the answers of `lep answer`, which `lep calibrate` is given.
NOT_OPTIONS = {"calibrate": set(settings.AnswerSettings.model_fields)}
SECTIONS = {"--prompts": "--select-prompts", "--tasks": "--benchmark-tasks"}
WIDE = {"COLUMNS": "300", "TERMINAL_WIDTH": "300"}


def lep(*arguments: object, code: int = 0) -> str:
    """Run the command; its output, after checking the exit code and that there is no traceback."""
    process = subprocess.run(
        [sys.executable, "-m", "lep", *map(str, arguments)], capture_output=True, text=True
    )
    output = process.stdout + process.stderr
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def help_of(verb: str) -> str:
    result = CliRunner().invoke(app, [*verb.split(), "--help"], env=WIDE)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("verb", SETTINGS)
def test_help_shows_every_setting(verb) -> None:
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", help_of(verb)))
    for name in SETTINGS[verb]:
        for setting in Setting.all_of(getattr(settings, name)):
            option = "--" + setting.name.replace("_", "-")
            if setting.name in NOT_OPTIONS.get(verb, ()):
                assert option not in shown
            else:
                assert (
                    {option, SECTIONS.get(option, option)} <= shown
                    if (setting.settings.__name__ in ("SelectSettings", "BenchmarkSettings"))
                    else option in shown
                )


@pytest.mark.parametrize("verb", VERBS)
def test_options_are_described_with_their_defaults(verb) -> None:
    text = help_of(verb)
    for parameter in VERBS[verb].params:
        assert parameter.help, f"{parameter.name} has no description"
        assert not parameter.hidden
        if not parameter.required and parameter.name != "changes":
            default = "default" in parameter.help or parameter.default is not None
            assert default, f"the help of --{parameter.name} does not say its default"
    headings = [line for line in text.splitlines() if line.startswith("╭")]
    assert len(headings) == len(set(headings))


def test_headings_are_the_classes_that_declare_the_fields() -> None:
    before, after = help_of("pretrain").split("Training ─")
    assert "Continued pre-training" in before
    assert "--tokens" in before
    assert "--warmup-share" in after
    assert re.search(r"--schedule .*Choices: cosine, wsd.*\[default: cosine\]", before)
    assert "--no-merge" in help_of("tune")


def test_every_field_has_a_description_and_every_class_a_heading() -> None:
    classes = [
        c for c in vars(settings).values() if isinstance(c, type) and issubclass(c, Settings)
    ]
    assert len(classes) > 15
    for cls in classes:
        assert "\n" not in cls.__doc__ or cls is Settings
        for setting in Setting.all_of(cls):
            assert setting.description[0].isupper(), f"{cls.__name__}.{setting.name}"
            assert setting.description.endswith((".", '"')), setting.description


def test_help_imports_nothing_heavy() -> None:
    heavy = "torch transformers datasets peft matplotlib tokenizers numpy scipy"
    check = (
        f"import sys, lep.cli; sys.exit(' '.join(m for m in '{heavy}'.split() if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert "propagate" in lep("--help")


def processor_seconds(*arguments: str) -> float:
    """Processor time of a fresh process, the median of three: the wall clock of an idle machine."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(seconds)


@pytest.fixture(scope="module")
def smallest_help() -> float:
    """Processor seconds of a help with one option, by the libraries that ours is made with."""
    code = """
import typer, pydantic
class Settings(pydantic.BaseModel):
    steps: int = 5
app = typer.Typer()
@app.command()
def run(steps: int = Settings().steps) -> None: pass
app(["--help"])
"""
    return processor_seconds("-c", code)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_help_takes_under_half_a_second(verb, smallest_help) -> None:
    """The bar is half a second. On a slower machine it is 1.6 times the smallest help there."""
    seconds = processor_seconds("-m", "lep", *verb.split(), "--help")
    assert seconds < max(0.5, 1.6 * smallest_help)


def repeated(verb: str, *arguments: str) -> str:
    return " ".join(VERBS[verb].repeated(list(arguments)))


def test_lists_of_values() -> None:
    assert repeated("pretrain", "--corpus", "a", "b", "c", "--tokens", "5") == (
        "--corpus a --corpus b --corpus c --tokens 5"
    )
    assert repeated("pretrain", "--corpus=a", "b") == "--corpus=a --corpus b"
    assert repeated("evaluate", "m", "--text", "ru=a", "en=b", "n") == (
        "m --text ru=a --text en=b n"
    )
    assert repeated("propagate", "--candidates", "swap", "exact") == (
        "--candidates swap --candidates exact"
    )


def read(cls: type[Settings], **values: object) -> Settings:
    flat = FlatSettings.of(cls)
    return flat.read(values, lambda name: "--" + name.replace("_", "-"))


def test_values_have_text_forms() -> None:
    text = read(PretrainSettings, tokens=5, eval_text=["ru=a", "en=b", "ru=c=d"]).eval_text
    assert text == {"ru": ["a", "c=d"], "en": ["b"]}
    assert read(BuildSettings, weights="a=2,b=0.5").weights == {"a": 2.0, "b": 0.5}
    assert read(settings.SelectSettings, candidates=["swap,exact", "ridge"]).candidates == [
        "swap",
        "exact",
        "ridge",
    ]
    nested = read(EvaluateSettings, limit=3, batch_size=2, seed=7, benchmark_tasks=["x"])
    assert nested.benchmark.limit == 3
    assert (nested.batch_size, nested.benchmark.batch_size) == (2, 2)
    assert (nested.seed, nested.benchmark.seed, nested.benchmark.tasks) == (7, 7, ["x"])
    assert (read(EvaluateSettings).batch_size, read(EvaluateSettings).benchmark.batch_size) == (
        32,
        16,
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": "wiki"}, "--weights: 'wiki' lacks a name or weight: write NAME=WEIGHT"),
        ({"weights": "=2"}, "--weights: '=2' lacks a name or weight: write NAME=WEIGHT"),
        ({"weights": "wiki=x"}, "--weights is 'x': input should be a valid number"),
        ({"dedup": "minhsh"}, "--dedup is 'minhsh': input should be 'exact', 'minhash' or 'none'; "
         "did you mean 'minhash'\\?"),
        ({"near": 2.0}, "--near is 2.0: input should be less than or equal to 1"),
    ],
)  # fmt: skip
def test_faults_of_values_name_the_option(values, message) -> None:
    with pytest.raises(LepError, match=message):
        read(BuildSettings, **values)


def test_faults_in_python_name_the_setting() -> None:
    for (name, value), message in [
        (("learning_rat", 1), "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        (("tokens", -5), "tokens is -5: input should be greater than 0"),
        (("train", "new-rows"), "train is 'new-rows': .*; did you mean 'new_rows'"),
        (("eval_text", ["ru"]), "eval_text: 'ru' lacks a language or path: write LANGUAGE=PATH"),
        (("epochs", None), "give tokens or epochs .* neither is given"),
    ]:
        with pytest.raises(LepError, match=f"PretrainSettings: {message}"):
            PretrainSettings.given(None, {name: value})
    with pytest.raises(LepError, match="in the settings object, or no object"):
        PretrainSettings.given(PretrainSettings(tokens=1), {"tokens": 2})
    assert PretrainSettings.given(None, {"tokens": 2}).tokens == 2


@pytest.mark.slow
def test_the_verbs_one_after_another(pair, here, tmp_path, monkeypatch) -> None:
    ru = SAMPLE / "ru"
    verbs = (
        "tokenizer",
        "init",
        "adapted",
        "propagated",
        "answers",
        "calibrated",
        "tuned",
        "scores",
    )
    out = {name: tmp_path / name for name in verbs}
    output = lep(
        "tokenizer",
        "extend",
        "--base",
        pair["base"],
        "--corpus",
        ru,
        SAMPLE / "en",
        "--new-tokens",
        40,
        "--output",
        out["tokenizer"],
    )
    assert "500 tokens before, 540 after: 500 kept, 0 moved, 40 new, 0 dropped" in output
    output = here(
        "init",
        "--model",
        pair["base"],
        "--tokenizer",
        out["tokenizer"],
        "--method",
        "mean",
        "--output",
        out["init"],
    )
    assert "540 rows: 500 copied, 40 new" in output
    here(
        "pretrain",
        "--model",
        out["init"],
        "--corpus",
        ru,
        "--tokens",
        4000,
        "--learning-rate",
        "1e-3",
        "--train",
        "embeddings",
        "--output",
        out["adapted"],
    )
    output = lep(
        "propagate",
        "--base",
        pair["base"],
        "--instruct",
        pair["instruct"],
        "--adapted",
        out["adapted"],
        "--method",
        "overlap",
        "--output",
        out["propagated"],
    )
    assert re.search(r"input: held-out residual 0\.\d+", output)
    data = tmp_path / "data.jsonl"
    data.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        * 4
    )
    monkeypatch.setattr(
        "lep.calibration.answers.reason_to_drop", lambda *_: None
    )  # a random model's
    output = here(
        "answer",
        "--original",
        pair["instruct"],
        "--prompts",
        data,
        "--samples",
        2,
        "--max-new-tokens",
        4,
        "--output",
        out["answers"],
    )
    assert "kept: 4" in output
    output = here(
        "calibrate",
        "--model",
        out["propagated"],
        "--answers",
        out["answers"],
        "--train",
        "new_rows",
        "--text",
        f"ru={ru}",
        "--copy-tasks",
        4,
        "--output",
        out["calibrated"],
    )
    assert "answers: {'kept': 4}; copy tasks: 4\n" in output
    assert "1 steps" in output
    here(
        "tune",
        "--model",
        out["propagated"],
        "--data",
        data,
        "--output",
        out["tuned"],
        "--copy-tasks",
        0,
        "--no-merge",
    )
    assert (out["tuned"] / "adapter" / "adapter_config.json").exists()
    output = here(
        "evaluate",
        pair["instruct"],
        out["tuned"],
        "--text",
        f"ru={ru}",
        "--text",
        f"en={SAMPLE / 'en'}",
        "--tasks",
        "copy_sentence,first_word",
        "--items",
        2,
        "--characters",
        1000,
        "--output",
        out["scores"],
    )
    assert "bits/byte" in output
    assert all(path.is_dir() for path in out.values())


def test_faults_are_one_sentence_and_exit_code_2(pair, adapted, here, tmp_path) -> None:
    out = tmp_path / "out"
    pickled = tmp_path / "pickled"
    shutil.copytree(pair["base"], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "recipe.yaml").write_text("nam: x\n")
    cases = [
        (
            [
                "init",
                "--model",
                tmp_path / "none",
                "--tokenizer",
                pair["tokenizer"],
                "--output",
                out,
            ],
            "is no folder",
        ),
        (
            ["init", "--model", pickled, "--tokenizer", pair["tokenizer"], "--output", out],
            "pickled weights only",
        ),
        (
            [
                "tokenizer",
                "extend",
                "--base",
                pair["base"],
                "--corpus",
                tmp_path / "empty.txt",
                "--new-tokens",
                5,
                "--output",
                out,
            ],
            "the corpus holds no text",
        ),
        (
            [
                "pretrain",
                "--model",
                adapted,
                "--corpus",
                SAMPLE / "ru",
                "--tokens",
                -5,
                "--output",
                out,
            ],
            "tokens is -5",
        ),
        (
            [
                "pretrain",
                "--model",
                adapted,
                "--corpus",
                SAMPLE / "ru",
                "--tokens",
                5,
                "--train",
                "all",
                "--output",
                out,
            ],
            "--train is 'all'",
        ),
        (["run", tmp_path / "recipe.yaml"], "unknown key 'nam'; did you mean 'name'?"),
        (["evaluate", pair["base"], "--text", "ru", "--output", out], "write LANGUAGE=PATH"),
        (
            ["evaluate", pair["base"], "--tasks", "daru_rcb", "rublimp", "--output", out],
            "rublimp is a task where a model is expected: write --tasks daru_rcb,rublimp",
        ),
        (["report", tmp_path], "has no run.json: finish the run first (lep run RECIPE.yaml)"),
        (
            ["tune", "--model", adapted, "--data", tmp_path, "--copy-tasks", 4, "--output", out],
            "--copy-tasks is 4, and there is no text to make them from",
        ),
        (
            ["evaluate", pair["base"], "--text", "ru=x", "--bootstrap", 1, "--output", out],
            "--bootstrap is 1: input should be greater than or equal to 10",
        ),
    ]
    for number, (arguments, message) in enumerate(cases):
        output = (here if number else lep)(*arguments, code=2)
        assert message in output
        assert output.startswith("error: ")
        assert len(output.strip().splitlines()) == 1, output
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_the_verbs_of_tokenizers(pair, here, tmp_path) -> None:
    ru, en, base = SAMPLE / "ru", SAMPLE / "en", pair["base"]
    output = here(
        "tokenizer", "count", "--base", base, "--corpus", ru, "--output", tmp_path / "ru.counts.zst"
    )
    assert "different words with Cyrillic letters from" in output
    output = here(
        "tokenizer",
        "extend",
        "--base",
        base,
        "--corpus",
        tmp_path / "ru.counts.zst",
        "--new-tokens",
        30,
        "--script",
        "cyrillic",
        "--method",
        "merge",
        "--output",
        tmp_path / "merged",
    )
    assert "500 kept, 0 moved, 30 new, 0 dropped" in output
    output = here(
        "tokenizer",
        "prune",
        "--base",
        base,
        "--corpus",
        ru,
        en,
        "--vocab-size",
        450,
        "--protect",
        en / "no",
        "--output",
        tmp_path / "no",
        code=2,
    )
    assert "no does not exist" in output
    output = here(
        "tokenizer",
        "prune",
        "--base",
        base,
        "--corpus",
        ru,
        en,
        "--vocab-size",
        450,
        "--output",
        tmp_path / "p",
    )
    assert "500 tokens before, 450 after" in output
    output = here(
        "tokenizer",
        "optimize",
        "--base",
        base,
        "--corpus",
        ru,
        en,
        "--script",
        "cyrillic",
        "--keep",
        460,
        "--vocab-size",
        500,
        "--in-place",
        "--output",
        tmp_path / "o",
    )
    assert "460 kept, 0 moved, 40 new, 40 dropped" in output
    output = here(
        "tokenizer",
        "train",
        "--base",
        base,
        "--corpus",
        ru,
        "--algorithm",
        "bpe",
        "--vocab-size",
        600,
        "--output",
        tmp_path / "t",
    )
    assert "600 after" in output
    output = here(
        "tokenizer",
        "compare",
        base,
        tmp_path / "o",
        "--text",
        f"ru={ru}",
        f"en={en}",
        "--json",
        tmp_path / "c.json",
        "--html",
        tmp_path / "c.html",
    )
    assert "unreachable" in output
    assert json.loads((tmp_path / "c.json").read_text())["reference"] == "base"
    page = (tmp_path / "c.html").read_text()
    assert "<h2>The tokenizers</h2>" in page
    assert "http://" not in page.replace("http://www.w3.org", "").split("<body>")[1]


TOGETHER = [([], "neither"), (["--tokens=9", "--epochs=2"], "both")]


@pytest.mark.parametrize(("options", "given"), TOGETHER)
def test_a_fault_of_several_options_together(options, given) -> None:
    arguments = ["pretrain", "--model=m", "--corpus=c", "--output=o", *options]
    with pytest.raises(LepError, match=f"^give tokens or epochs to say how long to train; {given}"):
        app(arguments, standalone_mode=False)


@pytest.mark.parametrize("arguments", [["frobnicate"], ["init"], ["propagate", "--base", "x"]])
def test_wrong_usage_has_exit_code_2(arguments) -> None:
    lep(*arguments, code=2)


def test_launchers_are_for_pretraining_alone(tmp_path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "lep", "run", "no.yaml"],
        capture_output=True,
        text=True,
        env=os.environ | {"WORLD_SIZE": "2", "RANK": "0"},
        cwd=tmp_path,
    )
    assert process.returncode == 2
    assert "only lep pretrain shares its work" in process.stderr.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_command_says_how_it_goes_on(tmp_path) -> None:
    """Ctrl-C while a verb runs: one line, exit code 130."""
    script = (
        "import sys, lep.cli, lep.cli.runs as runs\n"
        "def stop(*_, **__): raise KeyboardInterrupt\n"
        "runs.lep.doctor = stop\n"
        "sys.argv = ['lep', 'doctor']\n"
        "lep.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == "stopped; what is finished is kept, and the same command goes on"
