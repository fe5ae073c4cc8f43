"""What a small instruct model keeps of English when it gets Russian: longer, in place, by pack.

    python benchmarks/old_language.py --model SMOLLM2 --data DATA --output DIR

Three ways to new tokens, each beside the model that it started from:

    adapted    `lep adapt`: the vocabulary grows
    in place   as many rarely used tokens go, and the new ones take their ids; trained on the same
               text, answers and practice tasks
    sibling    the model tuned further on tasks; it gets the new rows as means, and from a pack of
               the adapted model, with no training

Measured are text and tasks in both languages, English MMLU, arithmetic, the output of Python
programs, and the first model's own answers to users' prompts in English. Prints the tables of
`lep evaluate`, in which each model is compared with the first, item by item. What is finished is
read again.
"""

import argparse
from pathlib import Path
from typing import Any

import darumeru_data
from real import Run
from real_scores import users_prompts

import lep
from lep.corpus.copies import records_apart
from lep.corpus.read import write_records
from lep.settings import BenchmarkSettings, EvaluateSettings, NewRowsSettings, TuneSettings

LANGUAGES = ("ru", "en")
ADAPT = [
    "corpus.limit_characters=4000000",
    "corpus.source_share=0.2",
    "adapt.own_prompts=64",
    "adapt.prompt_tokens=64",
    "adapt.prompt_tasks=16",
    "adapt.max_new_tokens=128",
    "adapt.generation_batch=64",
    "evaluate.items=4",
    "evaluate.characters=4000",
]
CHAT_TASKS = ["copy_sentence", "first_word", "last_word"]
TASKS = ["daru_mmlu_en", "arithmetic", "python_output"]
TUNING_TASKS = ["copy_sentence", "first_word", "last_word"]
TUNING = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 16, "copy_tasks": 0}


def adapted(a: argparse.Namespace) -> Run:
    """The whole of `lep adapt`."""
    folder = a.output / "run"
    if not (folder / "adapt").exists():
        text = {code: a.data / "train" / code for code in LANGUAGES}
        options = {"new_tokens": a.new_tokens, "tokens": a.tokens}
        lep.adapt(a.model, text, folder, overrides=[*ADAPT, *a.set], **options)
    return Run(folder)


def in_place(run: Run, output: Path, new_tokens: int, tokens: int) -> Path:
    """New tokens in the ids of dropped ones; the usual mixture."""
    tokenizer, start, trained = (output / f"in-place{end}" for end in ("-tokenizer", "-start", ""))
    corpus, english = run.text(run.new), run.text(run.old[0])
    if not tokenizer.exists():
        size = len(lep.Checkpoint(run.original).tokenizer)
        keep = size - new_tokens
        options: dict[str, Any] = {"in_place": True, "protect": [english]}
        print(lep.optimize_tokenizer(run.original, [corpus], keep, size, tokenizer, **options))
    if not start.exists():
        print(lep.initialise(run.original, tokenizer, start))
    if not trained.exists():
        settings = NewRowsSettings(
            tokens=tokens,
            eval_text={code: [run.text(code, "looks")] for code in LANGUAGES},
            old_text=[english],
            answers=str(run.folder / "adapt-answers"),
            practice_tasks=str(run.folder / "practice"),
        )
        print(lep.pretrain(start, [corpus], trained, settings))
    return trained


def siblings(run: Run, output: Path, tasks: int) -> list[Path]:
    """The model tuned further, the same with means for new rows, and with the pack."""
    sibling, mean, packed = (output / name for name in ("sibling", "sibling-mean", "sibling-pack"))
    if not sibling.exists():
        train, heldout = (
            {code: [at(code)] for code in LANGUAGES} for at in (run.text, run.heldout)
        )
        records = records_apart(train, TUNING_TASKS, tasks, 5, heldout)
        write_records(output / "tuning.jsonl", records)
        print(lep.tune(run.original, output / "tuning.jsonl", sibling, TuneSettings(**TUNING)))
    if not mean.exists():
        lep.initialise(sibling, run.folder / "tokenizer", mean)
    pack = output / "ru.lep"
    if not pack.exists():
        print(lep.make_pack(run.original, run.folder / "adapt", pack, new_only=True))
    if not packed.exists():
        print(lep.apply_pack(pack, sibling, packed))
    return [sibling, mean, packed]


def compare(run: Run, models: list[Path], a: argparse.Namespace, name: str) -> None:
    bench, prompts = a.output / "bench", a.output / "prompts.jsonl"
    if not prompts.exists():
        darumeru_data.write(bench, "mmlu_ru", darumeru_data.data_sets(a.data)["mmlu_ru"]())
        write_records(prompts, users_prompts(a.data, "en", a.prompts))
    settings = EvaluateSettings(
        tasks=CHAT_TASKS,
        items=a.items,
        characters=a.characters,
        answer_tokens=96,
        prompts=str(prompts),
        benchmark=BenchmarkSettings(tasks=TASKS, data=str(bench), limit=a.limit),
    )
    table = a.output / name / "table.txt"
    if not table.exists():
        lep.evaluate(
            models, {code: run.heldout(code) for code in LANGUAGES}, table.parent, settings
        )
    print(f"\n{name}\n\n{table.read_text(encoding='utf-8')}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and bench")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--new-tokens", type=int, default=4_096)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--tuning-tasks", type=int, default=150, help="of each kind and language")
    parser.add_argument("--characters", type=int, default=20_000, help="of text, each language")
    parser.add_argument("--items", type=int, default=40, help="of each chat task and language")
    parser.add_argument("--limit", type=int, default=200, help="items of each benchmark task")
    parser.add_argument("--prompts", type=int, default=60, help="of users, in English")
    parser.add_argument("--set", nargs="*", default=[], help="further changes of the recipe")
    a = parser.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    run = adapted(a)
    trained = in_place(run, a.output, a.new_tokens, a.tokens)
    compare(run, [run.original, run.folder / "adapt", trained], a, "ways")
    compare(run, siblings(run, a.output, a.tuning_tasks), a, "siblings")


if __name__ == "__main__":
    main()
