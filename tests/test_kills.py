"""A kill before any file operation: the same command afterwards equals a run in peace."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT, SAMPLE

from lep.calibration import answers as module
from lep.calibration.answers import answer
from lep.corpus.read import write_records
from lep.pipeline.run import run_recipe
from lep.tokenizer.write import extend_tokenizer
from lep.transfer.initialise import initialise
from lep.transfer.language_pack import make_pack

RU, EN = (str(SAMPLE / language) for language in ("ru", "en"))
RECIPE = """\
name: tiny
base: {base}
instruct: {instruct}
language: ru
text: {{ru: {RU}, en: {EN}}}
corpus: {{heldout_share: 0.2, limit_characters: 20_000, limit_heldout_characters: 4_000}}
tokenizer: {{new_tokens: 40}}
propagate: [swap]
pretrain: {{tokens: 1_000, learning_rate: 1e-3, block_size: 64, batch_tokens: 256}}
calibrate: {{prompt_tasks: 4, copy_tasks: 4, max_new_tokens: 8, batch_size: 4, after: swap}}
evaluate: {{items: 2, characters: 1_000, bootstrap: 20, tasks: [copy_sentence]}}
"""
MOST = int(os.environ.get("LEP_KILLS", 60))  # of each verb
TRAINING = "--learning-rate 1e-2 --block-size 64 --batch-tokens 128 --tokens 1000"


TRAINS = {"pretrain", "calibrate", "tune", "run"}


def killed_everywhere(
    tmp_path: Path, arguments: str, copies: Sequence[Path] = (), most: int = MOST
) -> dict:
    """The report of `kills.py` on a command, whose paths are relative to an empty folder."""
    (tmp_path / "kills").mkdir()
    job = {"arguments": arguments.split(), "copies": list(map(str, copies)), "most": most}
    job["warm"] = job["arguments"][0] not in TRAINS
    (tmp_path / "job.json").write_text(json.dumps(job | {"folder": str(tmp_path / "kills")}))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kills.py"), tmp_path / "job.json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(arguments.split()[:2], len(report["operations"]), "operations,", report["kills"], "kills")
    return report


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = ["Где дом?", "Где река?", "Where is it?", "What is a river?"]
    write_records(path, [{"messages": [{"role": "user", "content": text}]} for text in texts])
    return path


@pytest.mark.slow
def test_init_killed_at_some_operations(pair, tmp_path) -> None:
    init = f"init --model {pair['base']} --tokenizer {pair['tokenizer']} --output sub/out"
    report = killed_everywhere(tmp_path, init, most=3)
    assert not report["wrong"], json.dumps(report["wrong"], indent=1)
    assert report["kills"] >= 3


@pytest.fixture(scope="module")
def material(pair, adapted, prompts, tmp_path_factory) -> dict[str, object]:
    """All that commands name."""
    folder, patch = tmp_path_factory.mktemp("material"), pytest.MonkeyPatch()
    patch.setattr(module, "reason_to_drop", lambda *_: None)
    answer(pair["instruct"], prompts, folder / "answers", max_new_tokens=6)
    data = [json.loads(line) for line in (folder / "answers" / "kept.jsonl").open()]
    write_records(folder / "data.jsonl", data)
    for language, text in (("ru", "Снег пошёл ночью.\n"), ("en", "It snowed at night.\n")):
        (folder / f"{language}.txt").write_text(text * 20, encoding="utf-8")
    names = {name: pair[name] for name in ("base", "instruct", "tokenizer")}
    names |= {"initialised": pair["base"].parent / "initialised", "adapted": adapted}
    names |= {"answers": folder / "answers", "prompts": prompts, "RU": RU, "EN": EN}
    names |= {"ru": folder / "ru.txt", "en": folder / "en.txt", "data": folder / "data.jsonl"}
    lab = ROOT / "lab" / "pair"  # whose answers end, as a choice needs
    extend_tokenizer(lab / "base", [SAMPLE / "ru"], 20, folder / "lab-tokenizer")
    initialise(lab / "base", folder / "lab-tokenizer", folder / "lab")
    asked = [
        f"Повтори это предложение: Он {word} домой." for word in ["шёл", "ехал", "бежал", "плыл"]
    ]
    asked += [f"Repeat this sentence: He {word} home." for word in ["went", "ran", "came", "rode"]]
    many = [{"messages": [{"role": "user", "content": text}]} for text in asked]
    write_records(folder / "many.jsonl", many)
    initialise(pair["instruct"], pair["tokenizer"], folder / "chat")
    names |= {"chat": folder / "chat", "many": folder / "many.jsonl", "lab": folder / "lab"}
    names |= {"labbase": lab / "base", "labinstruct": lab / "instruct"}
    make_pack(pair["base"], adapted, folder / "x.pack")
    yield names | {"folder": folder, "T": TRAINING}
    patch.undo()


VERBS = {
    "extend": "tokenizer extend --base {base} --corpus {RU} --new-tokens 20 --output out",
    "prune": "tokenizer prune --base {base} --corpus {RU} {EN} --vocab-size 450 --output out",
    "train": "tokenizer train --base {base} --corpus {RU} --algorithm bpe --vocab-size 600 "
    "--output out",
    "optimize": "tokenizer optimize --base {base} --corpus {RU} {EN} --keep 450 --vocab-size 500 "
    "--in-place --output out",
    "count": "tokenizer count --base {base} --corpus {RU} --output out.counts.zst",
    "compare": "tokenizer compare {base} {tokenizer} --text ru={ru} --json out.json "
    "--html out.html",
    "corpus": "corpus {RU} {EN} --output out",
    "init": "init --model {base} --tokenizer {tokenizer} --output deep/er/out",
    "pretrain": "pretrain --model {initialised} --corpus {RU} --output out {T} "
    "--eval-text ru={ru} --checkpoints 2",
    "sweep": "pretrain --model {initialised} --corpus {ru} --output out {T} --eval-text ru={ru} "
    "--sweep --checkpoints 1 --train new_rows",
    "joint": "pretrain --model {chat} --corpus {ru} --output out {T} --train new_rows "
    "--old-text {en} --answers {data} --checkpoints 2",
    "lora": "pretrain --model {initialised} --corpus {ru} --output out {T} --train embeddings+lora",
    "propagate": "propagate --base {base} --instruct {instruct} --adapted {adapted} --output out",
    "auto": "propagate --base {labbase} --instruct {labinstruct} --adapted {lab} --output out "
    "--method auto --text ru={RU} en={EN} --prompts {many} --candidates swap overlap "
    "--characters 1000 --copies 2 --max-new-tokens 32",
    "pack": "pack --base {base} --adapted {adapted} --output deep/out.pack",
    "apply": "apply {folder}/x.pack --model {instruct} --output out",
    "answer": "answer --original {instruct} --prompts {prompts} --output out --samples 2 "
    "--max-new-tokens 6 --batch-size 2",
    "prompts": "prompts --original {labinstruct} --text ru={RU} en={EN} --output out "
    "--own-prompts 3 --prompt-batch 2 --prompt-tokens 6",
    "calibrate": "calibrate --model {instruct} --answers {answers} --output out --batch-size 2",
    "tune": "tune --model {instruct} --data {data} --output out --batch-size 2 --no-merge",
    "evaluate": "evaluate {base} {instruct} --output out --text ru={RU} --bootstrap 20 --items 2 "
    "--characters 1000",
    "inspect": "inspect {base} --json out.json",
    "verify": "verify {base} {adapted} --json out.json",
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_killed_everywhere(verb, material, tmp_path) -> None:
    report = killed_everywhere(tmp_path, VERBS[verb].format(**material))
    assert not report["wrong"], json.dumps(report["wrong"], indent=1)
    assert report["kills"]


@pytest.mark.slow
def test_a_run_and_its_report_killed_at_some_operations(material, tmp_path) -> None:
    """Stages, their caches and manifests, the record of the run, its page."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.format(**material), encoding="utf-8")
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    report = killed_everywhere(
        tmp_path / "first", f"run {recipe} --output run", most=max(1, MOST // 4)
    )
    assert not report["wrong"], json.dumps(report["wrong"], indent=1)
    run_recipe(recipe, tmp_path / "run", say=lambda line: None)
    report = killed_everywhere(tmp_path / "second", "report run", [tmp_path / "run"])
    assert not report["wrong"], json.dumps(report["wrong"], indent=1)
    assert report["kills"] >= 2
