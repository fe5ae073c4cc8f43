"""`lep chat`: two answers to one prompt, beside what transformers and tokenizers say of them."""

import io
import re
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TEMPLATE, save_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import lep
from lep.chat.stream import Speaker
from lep.chat.terminal import talk

ORIGINAL = ROOT / "lab" / "pair" / "instruct"
PROMPT = "Повтори это предложение: Сегодня мы работаем дома."
MOST = 40
COUNTS = r"(\d+) tokens \((\d+) new\), (\d+) characters; "


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's instruct model with new tokens: not trained, but made eager to write them."""
    folder = tmp_path_factory.mktemp("chat")
    text = ROOT / "lab" / "text" / "train" / "ru"
    lep.extend_tokenizer(ORIGINAL, text, 64, folder / "tokenizer")
    lep.initialise(ORIGINAL, folder / "tokenizer", folder / "adapted")
    known = len(AutoTokenizer.from_pretrained(ORIGINAL))
    model = AutoModelForCausalLM.from_pretrained(folder / "adapted")
    with torch.no_grad():
        model.get_output_embeddings().weight[known:] *= 1.5
    model.save_pretrained(folder / "adapted")
    return folder / "adapted"


def expected(folder: Path, known: int) -> tuple[str, list[int], int]:
    """The greedy answer by transformers alone: text, ids, and how many are new."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = [{"role": "user", "content": PROMPT}]
    row = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**row, do_sample=False, max_new_tokens=MOST)
    ids = written[0, row["input_ids"].shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    ids = [index for index in ids if index not in (ends if isinstance(ends, list) else [ends])]
    return tokenizer.decode(ids), ids, sum(index >= known for index in ids)


def answers(adapted: Path) -> list[tuple[str, list[int], int]]:
    known = len(AutoTokenizer.from_pretrained(ORIGINAL))
    return [expected(folder, known) for folder in (ORIGINAL, adapted)]


def in_terminal(models: list[Path], prompts: list[str]) -> str:
    """What `lep chat` prints when the prompts are typed."""
    command = [sys.executable, "-m", "lep", "chat", *models, "--terminal"]
    command += ["--max-new-tokens", str(MOST)]
    done = subprocess.run(
        list(map(str, command)),
        input="\n".join(prompts) + "\n",
        capture_output=True,
        text=True,
        env={"COLUMNS": "400", "PYTHONPATH": str(ROOT / "src"), "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_model_answers_alone(adapted: Path) -> None:
    known = len(AutoTokenizer.from_pretrained(ORIGINAL))
    text, ids, new = expected(ORIGINAL, known)
    said = in_terminal([ORIGINAL], [PROMPT])
    assert re.findall(COUNTS, said) == [(str(len(ids)), str(new), str(len(text)))]
    assert " ".join(text.split()) in " ".join(said.split())


@pytest.mark.parametrize("prompts", [[PROMPT], ["", PROMPT]])
def test_both_answer_in_the_terminal(adapted: Path, prompts: list[str]) -> None:
    said = in_terminal([ORIGINAL, adapted], prompts)
    assert f"> {PROMPT}" in said
    shown = re.findall(COUNTS, said)
    both = answers(adapted)
    assert shown == [(str(len(ids)), str(new), str(len(text))) for text, ids, new in both]
    assert both[1][2] > 0  # it does write new tokens
    for text, _, _ in both:
        assert " ".join(text.split()) in " ".join(said.split())


def test_a_full_context_is_said_and_the_talk_goes_on(adapted: Path, monkeypatch, capsys) -> None:
    speakers = [Speaker.of(str(folder), folder.name) for folder in (ORIGINAL, adapted)]
    long = "слово " * 3_000  # more than the lab model's context
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{long}\n{PROMPT}\n"))
    talk(speakers, 4)
    said = " ".join(capsys.readouterr().out.split())
    assert "as many as it can attend to: begin a new one" in said
    assert said.index("begin a new one") < said.index(PROMPT)


def test_a_character_counts_for_the_token_that_ends_it(adapted: Path) -> None:
    """Of bytes of one letter, the last token has it; together the pieces are the decoded text."""
    from lep.chat.stream import Speaker

    speaker = Speaker.of(adapted)
    tokenizer = AutoTokenizer.from_pretrained(adapted)
    ids = tokenizer("Щ ☃, дома", add_special_tokens=False)["input_ids"]
    pieces = speaker._pieces(ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert len(pieces) == len(ids)
    assert "" in pieces  # a snowman is three bytes, and no token


def test_bytes_and_added_tokens_are_shown_and_special_ones_are_not(
    tmp_path: Path, byte_fallback: Tokenizer
) -> None:
    """Line ends and rare characters are byte tokens in SentencePiece-like vocabularies."""
    from lep.chat.stream import Speaker

    tokenizer = Tokenizer.from_str(byte_fallback.to_str())
    tokenizer.add_special_tokens(["<|user|>", "<|assistant|>", "<|end|>"])
    tokenizer.add_tokens(["<table>"])
    save_model(tmp_path / "model", tokenizer, template=TEMPLATE)
    fast = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = fast("один\n\nдва 🙂 <table>", add_special_tokens=False)["input_ids"]
    ids.insert(3, fast.eos_token_id)
    said = "".join(Speaker.of(tmp_path / "model")._pieces(ids))
    assert said.strip() == fast.decode(ids, skip_special_tokens=True).strip()
    assert all(part in said for part in ("\n\n", "🙂", "<table>"))


def test_without_gradio_the_page_is_refused_in_a_sentence(here, adapted, monkeypatch) -> None:
    monkeypatch.setattr("lep.cli.runs.find_spec", lambda name: None)
    said = here("chat", ORIGINAL, adapted, code=2)
    advice = "install lep with its extra 'chat', or give --terminal"
    assert said == f"error: the page of lep chat needs gradio: {advice}\n"


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("gradio") and find_spec("selenium") and shutil.which("chromedriver")),
    reason="needs gradio, selenium, and Debian's chromium-driver",
)
def test_both_answer_in_a_browser(adapted: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lep", "chat", ORIGINAL, adapted, "--port", port]
    command += ["--max-new-tokens", MOST]
    server = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(option)
    driver: Any = None
    try:
        assert server.stdout is not None
        assert any(f":{port}" in line for line in server.stdout)  # it listens
        service = webdriver.ChromeService(str(shutil.which("chromedriver")))
        driver = webdriver.Chrome(options, service)
        driver.implicitly_wait(20)
        driver.get(f"http://127.0.0.1:{port}")
        box = driver.find_element(By.CSS_SELECTOR, "#prompt textarea")
        box.send_keys(PROMPT + Keys.ENTER)
        both = answers(adapted)
        for number, (text, ids, new) in enumerate(both):
            answer = f"#answer-{number}"
            counts = f"{len(ids)} tokens ({new} new), {len(text)} characters"
            until = time.monotonic() + 60
            while counts not in driver.find_element(By.CSS_SELECTOR, answer).text:
                assert time.monotonic() < until, driver.find_element(By.CSS_SELECTOR, answer).text
                time.sleep(0.2)
            spans = driver.find_elements(By.CSS_SELECTOR, f"{answer} .tokens span")
            assert len(spans) == len(ids)
            assert "".join(span.get_property("textContent") for span in spans) == text
            marked = driver.find_elements(By.CSS_SELECTOR, f"{answer} .tokens span.new")
            assert len(marked) == new
    finally:
        if driver:
            driver.quit()
        server.terminate()
        server.wait()
