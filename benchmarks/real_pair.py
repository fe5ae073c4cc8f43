"""An instruct model of a real base model: low-rank tuning on tasks, and how far it moved.

    python benchmarks/real_pair.py --base GEMMA --data DATA --output PAIR
    LEP_PAIR=PAIR lep run recipes/real-pair.yaml

It is a pair for the paper's way where no pair can be had: the base is as its makers left it.
Adapters on all layers and the head (with tied tables, the embeddings too) learn to repeat sentences
and paragraphs and to name words, in Russian and English, in Gemma's turns. PAIR gets `corpus/`,
`base/` and `instruct/`. Finished steps are skipped.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from joint import corpus_of

import lep
from lep.checkpoint.reader import Checkpoint
from lep.corpus.copies import records_apart
from lep.corpus.read import write_records
from lep.files import read_json, write_json
from lep.settings import TuneSettings

LANGUAGES = ("ru", "en")
TASKS = ["copy_sentence", "copy_paragraph", "first_word", "last_word"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + "
    "('model' if message['role'] == 'assistant' else message['role']) + '\n' + "
    "message['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
END = "<end_of_turn>"
SETTINGS = {"learning_rate": 2e-4, "batch_size": 16, "copy_tasks": 0, "epochs": 1}


def with_turns(base: Path, output: Path) -> Path:
    """The base model with a chat template, which its makers gave to the instruct model alone."""
    if not output.exists():
        shutil.copytree(base, output.with_suffix(".part"), dirs_exist_ok=True)
        end = Checkpoint(base).tokenizer.convert_tokens_to_ids(END)
        file = output.with_suffix(".part") / "generation_config.json"
        generation = read_json(file)
        write_json(file, generation | {"eos_token_id": [generation["eos_token_id"], end]})
        (file.parent / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        output.with_suffix(".part").rename(output)
    return output


def moved(base: Path, instruct: Path) -> dict[str, float]:
    """|instruct - base| / |base| of the tables, and of the body's matrices.

    Norms are left out: Gemma's are far larger than its matrices, and adapters do not move them.
    """
    before, after = Checkpoint(base), Checkpoint(instruct)
    sums: dict[str, list[float]] = {}
    for name in before.entries:
        part = "tables" if name in before.tables.names else "body"
        old, new = before.tensor(name).float(), after.tensor(name).float()
        if old.ndim < 2:
            continue
        both = sums.setdefault(part, [0.0, 0.0])
        both[0] += float((new - old).square().sum(dtype=torch.float64))
        both[1] += float(old.square().sum(dtype=torch.float64))
    return {part: (difference / size) ** 0.5 for part, (difference, size) in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ru, train/en")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tasks", type=int, default=250, help="of each kind, in each language")
    a = parser.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    corpus, instruct = corpus_of(a.data, a.output), a.output / "instruct"
    base = with_turns(a.base, a.output / "base")
    if not instruct.exists():
        sides = (
            {code: [str(corpus / f"{code}.{side}.jsonl")] for code in LANGUAGES}
            for side in ("train", "heldout")
        )
        train, heldout = sides
        records = records_apart(train, TASKS, a.tasks, 0, heldout)
        write_records(a.output / "tasks.jsonl", records)
        print(lep.tune(base, a.output / "tasks.jsonl", instruct, TuneSettings(**SETTINGS)))
    shares = moved(base, instruct)
    print(json.dumps({part: round(share, 4) for part, share in shares.items()}))


if __name__ == "__main__":
    main()
