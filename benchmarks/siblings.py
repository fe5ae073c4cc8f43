"""A pack of the new rows of one instruct model, in its sibling: with no training, and with a tenth.

    python benchmarks/joint.py --data DATA --arms full --seeds 0   (the model that is packed)
    python benchmarks/siblings.py --data DATA

The sibling is the lab pair's instruct model, tuned further: adapters and head learn other tasks.
It gets the new tokens in three ways: initialised by mean, from the pack, and from the pack with a
tenth of the joint training, on its own answers and the practice tasks that it solves. Finished
steps are skipped.
"""

import argparse
from pathlib import Path
from typing import Any

import joint

import lep
from lep.corpus.copies import records_apart
from lep.corpus.read import write_records
from lep.pipeline.recipe import AFTER_PACK
from lep.settings import NewRowsSettings, TuneSettings

TUNING_TASKS, TUNING_RATE = ["copy_sentence", "first_word", "last_word"], 1e-3
TOKENS = joint.TOKENS // 10


def sibling(folder: Path, corpus: Path) -> Path:
    """The instruct model after a second tuning."""
    output, data = folder / "sibling", folder / "sibling-data.jsonl"
    if not output.exists():
        train, heldout = (
            {code: [str(corpus / f"{code}.{side}.jsonl")] for code in ("ru", "en")}
            for side in ("train", "heldout")
        )
        write_records(data, records_apart(train, TUNING_TASKS, 150, 5, heldout))
        options = {"learning_rate": TUNING_RATE, "epochs": 2, "batch_size": 16, "copy_tasks": 0}
        print(lep.tune(joint.INSTRUCT, data, output, TuneSettings(**options)))
    return output


def streams(folder: Path, model: Path, start: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What the sibling learns from: its own answers, and the practice tasks that it solves."""
    answers, practice = folder / "sibling-answers", folder / "sibling-practice"
    if not answers.exists():
        options = {"max_new_tokens": 300, "generation_batch": 64}
        print(lep.answer(model, folder / "prompts.jsonl", answers, **options))
    if not practice.exists():
        old, heldout = given["streams"]["old_text"], given["heldout"]
        options = {"practice_tokens": TOKENS, "practice": 1_000, "heldout": heldout}
        text = {"ru": given["corpus"]}
        print(lep.practise(model, start, text, practice, old={"en": old}, **options))
    return given["streams"] | {"answers": str(answers), "practice_tasks": str(practice)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/joint"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, seed = arguments.output, arguments.seed
    corpus = joint.corpus_of(arguments.data, folder)
    given = joint.prepared(folder, corpus)
    trained = joint.trained(folder, "full", seed, given)
    model, pack = sibling(folder, corpus), folder / f"ru.seed-{seed}.lep"
    if not pack.exists():
        print(lep.make_pack(joint.INSTRUCT, trained, pack, new_only=True))
    mean, packed = folder / "sibling-mean", folder / f"sibling-pack.seed-{seed}"
    if not mean.exists():
        lep.initialise(model, folder / "tokenizer", mean)
    if not packed.exists():
        print(lep.apply_pack(pack, model, packed))
    tenth = folder / f"sibling-tenth.seed-{seed}"
    if not tenth.exists():
        options = {"seed": seed, "block_size": 512} | AFTER_PACK
        options |= streams(folder, model, packed, given)
        settings = NewRowsSettings(tokens=TOKENS, checkpoints=4, **options)
        print(lep.pretrain(packed, given["corpus"], tenth, settings))
    models = {
        "the sibling": model,
        "mean initialisation": mean,
        "the pack": packed,
        f"the pack, and {TOKENS:,} tokens": tenth,
        "where the pack was learned": trained,
    }
    results = {}
    for title, path in models.items():
        name = f"full.seed-{seed}.scores" if path == trained else f"{path.name}.scores"
        results[title] = [joint.scores(path, folder / name, given)]
        print(title, results[title][0], flush=True)
    print(joint.table(results))


if __name__ == "__main__":
    main()
