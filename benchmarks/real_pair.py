"""An instruct model of a real base model: low-rank tuning on tasks, and how far it moved.

    python benchmarks/real_pair.py --base GEMMA --data DATA --output PAIR
    LEP_PAIR=PAIR lep run recipes/real-pair.yaml --output PAIR/run
    python benchmarks/real_pair.py --run PAIR/run

It is a pair for the paper's way where no pair can be had: the base is as its makers left it.
Adapters on all layers and the head (with tied tables, the embeddings too) learn to repeat sentences
and paragraphs and to name words, in Russian and English, in Gemma's turns. PAIR gets `corpus/`,
`base/` and `instruct/`. Finished steps are skipped. The last command prints the table of a run:
ratios to the original's bits and differences of right answers, with paired 95% intervals.
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
from lep.evaluation.records import load_records
from lep.files import read_json, write_json
from lep.report.paired import Contrast, Original
from lep.report.run_record import RunRecord
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
COLUMNS = [("bits per byte", "ru"), ("bits per byte", "en"), ("answer bits per byte", "ru")]
COLUMNS += [("exact match", "ru"), ("exact match", "en")]
HEAD = [("text", "ru"), ("text", "en"), ("right answers", "ru"), ("tasks", "ru"), ("tasks", "en")]
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


def table(run: Path) -> str:
    """A line for each instruct model of a run, beside the original."""
    record = RunRecord.load(run)
    (cell,) = record.cells
    (original, first), *others = cell.instruct_models.items()
    wanted = [(metric, None) for metric, _ in COLUMNS]
    records = load_records(run / first / "records.jsonl")
    beside = Original(records, wanted, cell.evaluate_settings)
    titles = [f"{title} {language}" for title, language in HEAD]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for title, stage in others:
        found = beside.contrasts(load_records(run / stage / "records.jsonl"))
        if len(lines) == 2:
            values = (found[metric, language, None].before for metric, language in COLUMNS)
            lines.append(f"| {original} | {' | '.join(f'{value:.3f}' for value in values)} |")
        cells = (_cell(metric, found[metric, language, None]) for metric, language in COLUMNS)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(metric: str, contrast: Contrast) -> str:
    value, low, high = contrast.gain_interval
    if metric == "exact match":
        return f"{value:+.3f}, {low:+.3f} to {high:+.3f}"
    return f"x{1 - value:.3f}, {1 - high:.3f} to {1 - low:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path)
    parser.add_argument("--data", type=Path, help="folder with train/ru, train/en")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--run", type=Path, help="a finished run, to print its table")
    parser.add_argument("--tasks", type=int, default=250, help="of each kind, in each language")
    a = parser.parse_args()
    if a.run:
        print(table(a.run))
        return
    if not (a.base and a.data and a.output):
        parser.error("give --base, --data and --output, or --run")
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
