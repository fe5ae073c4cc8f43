"""The page of a run: its first sentence, its signs, and sections for what the run has."""

import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from test_verdict import answers, texts

from lep.evaluation.records import Record, encode
from lep.evaluation.score import summarise
from lep.report.figure import line_figure
from lep.report.page import write_progress, write_report
from lep.report.run_record import CellRecord, RunRecord
from lep.report.verdict import run_verdict
from lep.settings import EvaluateSettings

VOID = {"meta", "link", "br", "img", "input", "hr"}
MODELS: dict[str, list[Record]] = {
    "original instruct": [
        *texts("ru", [300.0] * 3), *answers("ru", [0.9] * 8),
        *texts("en", [200.0] * 3), *answers("en", [0.5, 0.7]),
    ],
    "joint training": [
        *texts("ru", [330.0] * 3, tokens=80), *answers("ru", [0.89] * 8),
        *texts("en", [200.0] * 3, mass=0.004), *answers("en", [0.6, 0.6]),
    ],
}  # fmt: skip
STREAMS = {
    "text": {"tokens": 6_000, "share": 0.6, "learned": 6_000, "losses": [[1, 4.5], [20, 3.25]]},
    "old_text": {"tokens": 4_000, "share": 0.4, "learned": 3_987, "losses": [[1, 2.0], [20, 1.5]]},
}
PRETRAIN = {
    "losses": [{"step": 1, "loss": 4.0, "learning_rate": 0.1}],
    "streams": STREAMS,
    "new_token_mass": [[1, 0.31], [20, 0.0123]],
    "below_practice": 1_234,
    "median_learned": 61.5,
    "settings": {"practice": 100},
}


class Outline(HTMLParser):
    """The elements of a page, each with its tag, class, and the text in it; checks their order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[dict[str, Any]] = []
        self._open: list[dict[str, Any]] = []
        self.feed(page)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            element = {"tag": tag, "text": ""} | dict(attrs)
            self.elements.append(element)
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Parts of drawings that close themselves."""

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element["text"] += data


@pytest.fixture(scope="module")
def run(pair: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of joint training: without a base model, propagation, calibration and benchmark."""
    tmp_path = tmp_path_factory.mktemp("run")
    settings = EvaluateSettings(bootstrap=100)
    stages = {title: f"evaluate-{i}" for i, title in enumerate(MODELS)}
    for title, records in MODELS.items():
        stage = tmp_path / stages[title]
        stage.mkdir()
        lines = "".join(json.dumps(encode(record)) + "\n" for record in records)
        (stage / "records.jsonl").write_text(lines)
        scores = [vars(score) for score in summarise(records, settings)]
        (stage / "scores.json").write_text(json.dumps(scores))
    shutil.copytree(pair["tokenizer"], tmp_path / "tokenizer")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "ru.heldout.jsonl").write_text('{"text": "Снег идёт. Зима."}\n')
    (tmp_path / "corpus" / "counts.json").write_text("{}")
    (tmp_path / "adapt" / "lep").mkdir(parents=True)
    (tmp_path / "adapt" / "lep" / "pretrain.json").write_text(json.dumps(PRETRAIN))
    recipe = {"name": "joint", "language": "ru", "base": None, "instruct": str(pair["instruct"])}
    recipe |= {"propagate": [], "evaluate": {"bootstrap": 100, "seed": 0}}
    seconds = {"corpus": 1.0, "tokenizer": 2.0, "adapt": 3.0}
    RunRecord(seconds, [CellRecord({}, None, recipe, stages, {})]).save(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def outline(page: str) -> list[dict[str, Any]]:
    return Outline(re.sub(r"<script.*?</script>", "", page, flags=re.S)).elements


def test_the_verdict_is_the_first_sentence(run: Path, page: str) -> None:
    after = [each["text"] for each in outline(page) if each["tag"] in ("h1", "p")]
    assert after[:2] == ["joint", run_verdict(run)]
    assert after[1] == (
        "Russian takes 20% fewer tokens. Russian answers are as good as the original's within 2 "
        "points (89% right, the original 90%; 95% -1 to -1 points). English answers are not "
        "distinguishable from the original's (60% right, the original 60%; 95% -100 to +100 "
        "points), and its text is as before (0% bits)."
    )


def test_every_judged_value_has_a_sign_beside_its_colour(page: str) -> None:
    elements = outline(page)
    heads = [e["text"] for e in elements if e["tag"] == "th"][6:15]
    assert heads == ["ru", "en", "ru", "en", "ru", "en", "ru", "en", "en"]
    cells = [e for e in elements if e["tag"] == "td" and "class" in e][9:18]
    signs = {"better": "▲", "same": "=", "worse": "▼", "unclear": "?", None: ""}
    outcomes = ["better", "same", "worse", "same", "same", "unclear", "same", "same", ""]
    assert [cell["class"] for cell in cells] == outcomes
    for cell, outcome in zip(cells, outcomes, strict=True):
        value = re.match(r"(?P<value>\d\.\d{3})(?P<sign>\D?)", cell["text"])
        assert value is not None
        assert value["sign"] == signs[outcome or None]
    assert cells[8]["text"].startswith("0.004")
    labels = [e["aria-label"] for e in elements if e.get("class") == "sign"]
    assert labels == [outcome for outcome in outcomes if outcome]


def test_only_sections_with_content_are_shown(page: str) -> None:
    elements = outline(page)
    assert [e["text"] for e in elements if e["tag"] == "h2"] == [
        "What became of the instruct model",
        "The same text before and after",
        "The first new tokens",
        "Training",
        "Training loss",
        "Answers to held-out questions",
        "Where the time went",
    ]


def test_the_time_of_each_stage_is_drawn(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "timed"
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record["seconds"] = {"corpus": 30.0, "adapt": 270.0}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    page = write_report(folder).read_text(encoding="utf-8")
    rows = re.findall(r"<td>([\d.]+)</td><td><span class=\"bar\" style=\"width: ([\d.]+)rem", page)
    assert rows == [("30.0", "1.00"), ("270.0", "9.00")]
    assert "5 min in all" in page


def test_the_streams_of_a_training_have_a_table_and_curves(page: str) -> None:
    rows = re.findall(r'<tr><th scope="row">[^<]*</th>(?:<td>[^<]*</td>){5}</tr>', page)
    assert [re.findall(r">([^<]+)</", row) for row in rows] == [
        ["text", "6,000", "60.0%", "6,000", "4.500", "3.250"],
        ["old text", "4,000", "40.0%", "3,987", "2.000", "1.500"],
    ]
    assert "new tokens took 31.00% of the probability at first, and 1.23% at last" in page
    assert (
        "A new token was learned 61.5 times in the median. "
        "1,234 new tokens were learned fewer than 100 times" in page
    )


def test_curves_are_drawn_in_the_page(page: str) -> None:
    """Small, without script and network; a line of each stream, named beside it and aloud."""
    assert len(page.encode()) < 200_000
    assert not re.search(r"<script|<link|<img|url\((?!#)|@import", page)
    assert "http:" not in page
    assert "https:" not in page
    (curves, losses) = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert 'aria-label="loss, nats per token by optimizer step: text, old text"' in curves
    assert re.findall(r"<text[^>]*>([a-z ]*text)</text>", curves) == ["text", "old text"]
    lines = re.findall(r'd="M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+) \n" clip-path', curves)
    places = [[float(number) for number in line] for line in lines]
    text, old = (line for line in places if line[0] != line[2] and line[1] != line[3])
    assert [text[0], text[2]] == [old[0], old[2]]  # the steps 1 and 20
    nat = (text[3] - text[1]) / (4.5 - 3.25)  # in height, which grows downwards
    assert (old[3] - old[1]) / nat == pytest.approx(2.0 - 1.5, abs=1e-3)
    assert (old[1] - text[1]) / nat == pytest.approx(4.5 - 2.0, abs=1e-3)
    assert "font-family: inherit" in losses


def test_a_name_is_no_markup_and_no_formula() -> None:
    name = '_<b>"$x$"\\1'
    figure = line_figure([(name, ([1, 2], [3, 4]))], "steps", "loss")
    assert f">{name.replace('<', '&lt;').replace('>', '&gt;')}</text>" in figure
    assert "<b>" not in figure
    assert 'loss by steps: _&lt;b&gt;&quot;$x$&quot;\\1"' in figure
    assert line_figure([], "steps", "loss") == ""


def test_measures_are_counted_below_the_verdict(page: str) -> None:
    """Of the signs of the table, without those of tokens."""
    paragraphs = [each["text"] for each in outline(page) if each["tag"] == "p"]
    assert paragraphs[1] == (
        "Russian: of 3 measures, 2 as good, 1 worse (bits/byte). "
        "English: of 3 measures, 2 as good, 1 undecided (exact match)."
    )


def test_the_page_says_how_to_use_the_model_and_what_that_takes(
    run: Path, pair: dict[str, Path], tmp_path: Path
) -> None:
    """Weights as safetensors counts them, tokens of 1,000 characters from the table."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert "<h2>Use it</h2>" not in write_report(folder).read_text(encoding="utf-8")
    shutil.copytree(pair["instruct"], folder / "adapt", dirs_exist_ok=True)
    tensors = load_file(folder / "adapt" / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].double()  # 4 bytes more each
    save_file(tensors, folder / "adapt" / "model.safetensors", metadata={"format": "pt"})
    (folder / "evaluate-1").rename(folder / "evaluate-adapt")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record["instruct_models"]["joint training"] = "evaluate-adapt"
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    page = write_report(folder).read_text(encoding="utf-8")
    assert 'AutoModelForCausalLM.from_pretrained("adapt")' in page
    assert "lep export --model adapt --output joint.gguf" in page
    sizes = [
        sum(t.numel() * t.element_size() for t in load_file(each / "model.safetensors").values())
        for each in (pair["instruct"], folder / "adapt")
    ]
    assert sizes[1] > sizes[0]
    shown = re.findall(r'<th scope="row">(weights|tokens)[^<]*</th>((?:<td>[^<]*</td>){3})', page)
    rows = [re.findall(r">([^<]+)<", cells) for _, cells in shown]
    change = f"{100 * sizes[1] / sizes[0] - 100:+.1f}%"
    assert rows[0] == [*(f"{size / 1e6:,.1f}" for size in sizes), change]
    # The fixture's texts have 100 tokens, and 80 in Russian after.
    characters = {code: texts(code, [1.0])[0].characters for code in ("ru", "en")}
    tokens = [texts("ru", [1.0])[0].tokens, texts("ru", [1.0], tokens=80)[0].tokens]
    before, after = (1000 * count / characters["ru"] for count in tokens)
    assert rows[1:] == [
        [f"{before:.0f}", f"{after:.0f}", f"{100 * after / before - 100:+.1f}%"],
        [f"{1000 * tokens[0] / characters['en']:.0f}"] * 2 + ["+0.0%"],
    ]


@pytest.mark.parametrize(
    ("memory", "head", "cells"),
    [
        ({}, [], []),
        ({"machine": 1_500_000_000}, ["machine memory, GB"], [["1.5"], ["–"], ["–"]]),
        (
            {"machine": 1_500_000_000, "GPU": 20_000_000_000},
            ["machine memory, GB", "GPU memory, GB"],
            [["1.5", "20.0"], ["–", "–"], ["–", "–"]],
        ),
        ({"machine": "much"}, [], []),
        ("much", [], []),
    ],
)
def test_the_memory_of_each_stage(memory, head, cells, run: Path, tmp_path: Path) -> None:
    """Of the stages that say it: earlier versions did not."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "corpus" / "lep_stage.json").write_text(json.dumps({"memory": memory}))
    (folder / "tokenizer" / "lep_stage.json").write_text("{}")
    page = write_report(folder).read_text(encoding="utf-8")
    (table,) = re.findall(r'<table class="stages">(.*?)</table>', page, re.DOTALL)
    heads, *rows = table.split("<tr>")[1:]
    titles = re.findall(r'scope="col">([^<]*)<', heads)
    assert titles == ["stage", *head, "seconds", "share"]
    shown = [re.findall(r"<td>([^<]*)</td>", row)[: len(head)] for row in rows]
    assert shown == (cells or [[], [], []])


def test_a_long_run_can_be_watched(run: Path, tmp_path: Path) -> None:
    """The page of a run that is not finished: what is done, what comes next, what is known."""
    folder = tmp_path / "watched"
    shutil.copytree(run, folder)
    record, written = RunRecord.load(folder), folder / "report.html"
    for seconds, headings in (
        ({"corpus": 1.0}, ["Where the time went"]),
        (
            {"corpus": 1.0, "tokenizer": 2.0, "adapt": 3.0},
            ["The same text before and after", "Training", "Where the time went"],
        ),
    ):
        write_progress(folder, RunRecord(seconds, record.cells), ["evaluate-0", "evaluate-1"])
        elements = outline(written.read_text(encoding="utf-8"))
        assert [each["text"] for each in elements if each["tag"] == "h2"] == headings
        (said,) = [each["text"] for each in elements if each.get("class") == "verdict"]
        whole = len(seconds) + 2
        assert said == f"{len(seconds)} of {whole} stages are done; evaluate-0 comes next."
        assert elements[-1]["text"] == "Still to do: evaluate-0, evaluate-1."
        (about,) = [each["text"] for each in elements if each.get("class") == "note"]
        name = Path(record.cells[0].recipe["instruct"]).name
        assert about.startswith(f"{name} learns Russian. This page is written again")


CHROMIUM, AXE = shutil.which("chromium"), os.environ.get("LEP_AXE")
SCHEMES = {"dark": "0", "light": "1"}  # Chromium's numbers
CHECK = """<script>axe.run().then(found => {
  const shown = document.createElement("pre"), width = document.documentElement.scrollWidth;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  shown.id = "found";
  shown.textContent = JSON.stringify({width, dark, ids: found.violations.map(each => each.id)});
  top.document.body.append(shown);
})</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and AXE), reason="LEP_AXE names axe-core's axe.min.js")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [390, 1_200])
def test_the_page_is_accessible_and_as_wide_as_its_window(
    width: int, scheme: str, page: str, tmp_path: Path
) -> None:
    """In a frame: no window of Chromium is as narrow as a phone."""
    script = Path(str(AXE)).read_text(encoding="utf-8").replace("</script", "<\\/script")
    changed = page.replace("</body>", f"<script>{script}</script>{CHECK}</body>")
    frame = f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{escape(changed)}">'
    (tmp_path / "page.html").write_text(f"<body>{frame}</iframe></body>", encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--window-size=1300,900", "--virtual-time-budget=20000"]
    command += [f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "page.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = json.loads(unescape(re.findall(r'<pre id="found">(.*?)</pre>', shown, re.DOTALL)[0]))
    assert found["ids"] == []
    assert found["width"] <= width
    assert found["dark"] == (scheme == "dark")


def test_a_page_of_base_models_alone(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "base")
    record = json.loads((run / "run.json").read_text())
    record["base_models"] = record.pop("instruct_models")
    (tmp_path / "base" / "run.json").write_text(json.dumps(record | {"instruct_models": {}}))
    (tmp_path / "base" / "adapt" / "lep" / "pretrain.json").unlink()
    page = write_report(tmp_path / "base").read_text(encoding="utf-8")
    assert [e["text"] for e in outline(page) if e["tag"] == "h2"] == [
        "What became of the base model",
        "The same text before and after",
        "The first new tokens",
        "Where the time went",
    ]


def test_the_command_line_says_the_verdict(run: Path, here, monkeypatch) -> None:
    monkeypatch.setattr("lep.report.page.write_report", lambda folder: folder / "report.html")
    printed = here("report", run)
    assert printed == f"report: {run / 'report.html'}\n\n{run_verdict(run)}\n"
