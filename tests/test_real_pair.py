"""A pair made of a base model alone, and the paper's way on it, in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, sample_texts, save_model
from tokenizers import Tokenizer
from transformers import AutoTokenizer

SMALL = """
corpus.limit_heldout_characters=20000 tokenizer.new_tokens=40
pretrain.tokens=4000 pretrain.block_size=128 propagate=[swap,new-rows]
calibrate=null adapt=null evaluate.items=2 evaluate.characters=2000
"""  # a random model has no answers to learn from


@pytest.fixture
def base(byte_level, tmp_path) -> Path:
    """A base model whose tokenizer has Gemma's turns and no chat template."""
    tokenizer = Tokenizer.from_str(byte_level.to_str())
    tokenizer.add_special_tokens(["<start_of_turn>", "<end_of_turn>"])
    model = save_model(tmp_path / "given", tokenizer, tied=True)
    model.generation_config.eos_token_id = tokenizer.token_to_id("</s>")
    model.save_pretrained(tmp_path / "given")
    return tmp_path / "given"


def run(*command: object, **environment: str) -> str:
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_an_instruct_model_is_tuned_from_a_base_and_the_recipe_runs(base, tmp_path) -> None:
    pair = tmp_path / "pair"
    (pair / "corpus").mkdir(parents=True)
    for code in ("ru", "en"):
        texts = sample_texts(code)
        for side, part in {"train": texts[4:], "heldout": texts[:4]}.items():
            lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part)
            (pair / "corpus" / f"{code}.{side}.jsonl").write_text("".join(lines))
    script = ROOT / "benchmarks" / "real_pair.py"
    given = ["--base", base, "--data", tmp_path, "--output", pair, "--tasks", 6]
    moved = json.loads(run(script, *given).splitlines()[-1])
    assert 0 < moved["body"] < 1
    assert 0 < moved["tables"] < 1
    tokenizer = AutoTokenizer.from_pretrained(pair / "instruct")
    turns = [{"role": "user", "content": "Да"}, {"role": "assistant", "content": "Нет"}]
    shown = "<start_of_turn>user\nДа<end_of_turn>\n<start_of_turn>model\nНет<end_of_turn>\n"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == f"<s>{shown}"
    ends = json.loads((pair / "instruct" / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids(["</s>", "<end_of_turn>"]) == ends
    recipe, output = ROOT / "recipes" / "real-pair.yaml", tmp_path / "run"
    printed = run(
        "-m", "lep", "run", recipe, "--output", output, *SMALL.split(), LEP_PAIR=str(pair)
    )
    assert (output / "report.html").exists()
    for model in ("swap", "new-rows"):
        assert model in printed
    table = run(script, "--run", output).splitlines()
    titles = [line.split(" | ")[0] for line in table[2:]]
    assert titles == ["| original instruct", "| mean initialisation", "| swap", "| new-rows"]
    assert all(line.count("|") == 7 for line in table)
