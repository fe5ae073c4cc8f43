"""Joint training on the lab pair: what each stream is worth, and where three seeds arrive.

    python benchmarks/joint.py --data DATA [--seeds 0 1 2] [--arms ...] [--figure docs/joint.svg]

DATA holds `train/en` and `train/ru`. They are split as for the lab pair, so that no model has seen
the held-out text.

Every arm starts from the instruct model with 2,048 new Russian tokens, and trains their rows alone,
on so many tokens:

    full          the usual mixture                                          1,500,000
    mixture       the usual mixture                                            300,000
    no-answers    without the original's answers, in both languages            300,000
    no-practice   without practice tasks                                       300,000
    no-old        without text and answers of the old language                 300,000
    no-shared     no maps in common                                            300,000
    sequential    text of both languages first, then answers and tasks         300,000
    text          text of the new language alone                               300,000

Scores are of held-out text and of four tasks made from it (the lab pair never learned the fifth,
`word_after`). Finished steps are skipped, so that an interrupted run continues.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

import lep

sys.path.append(str(Path(__file__).parent.parent / "lab"))
import make_pair

from lep.checkpoint.reader import Checkpoint
from lep.corpus.copies import records_apart
from lep.corpus.read import read_documents, write_records
from lep.inference.models import load_model
from lep.pipeline.stages import write_evaluation
from lep.settings import EvaluateSettings, NewRowsSettings

ROOT = Path(__file__).parent.parent
INSTRUCT = ROOT / "lab" / "pair" / "instruct"
NEW_TOKENS, TOKENS, ABLATION_TOKENS = 2_048, 1_500_000, 300_000
CHARACTERS = {"en": 4_000_000, "ru": 12_000_000}
PROMPTS, PRACTICE_TOKENS = 200, 750_000
TASKS = ["copy_sentence", "copy_paragraph", "first_word", "last_word"]
ALONE = {"answers": 0, "practice": 0, "old_text": 0, "old_answers": 0}  # text of the new language
ARMS: dict[str, tuple[int, list[dict[str, Any]]]] = {  # tokens; settings of one training or two
    "full": (TOKENS, [{}]),
    "mixture": (ABLATION_TOKENS, [{}]),
    "no-answers": (ABLATION_TOKENS, [{"shares": {"answers": 0, "old_answers": 0}}]),
    "no-practice": (ABLATION_TOKENS, [{"shares": {"practice": 0}}]),
    "no-old": (ABLATION_TOKENS, [{"shares": {"old_text": 0, "old_answers": 0}}]),
    "no-shared": (ABLATION_TOKENS, [{"shared_maps": False}]),
    "sequential": (
        ABLATION_TOKENS,
        [
            {"shares": {"answers": 0, "practice": 0, "old_answers": 0}},
            {"shares": {"text": 0, "old_text": 0}},
        ],
    ),
    "text": (ABLATION_TOKENS, [{"shares": ALONE}]),
}
COLUMNS = {
    "ru text": ("bits per byte", "ru"),
    "ru answers": ("answer bits per byte", "ru"),
    "ru tasks": ("exact match", "ru"),
    "ru sentences copied": ("exact match", "ru", "copy_sentence"),
    "en text": ("bits per byte", "en"),
    "en tasks": ("exact match", "en"),
}


def corpus_of(data: Path, folder: Path) -> Path:
    """Training and held-out text, split as for the lab pair."""
    corpus = folder / "corpus"
    if not corpus.exists():
        make_pair.CORPUS_CHARACTERS = CHARACTERS
        make_pair.write_corpus(data, corpus)
    return corpus


def prepared(folder: Path, corpus: Path) -> dict[str, Any]:
    """Tokenizer, initialised model, answers and practice tasks: the same for all arms."""
    train, heldout = (
        {code: [str(corpus / f"{code}.{side}.jsonl")] for code in ("ru", "en")}
        for side in ("train", "heldout")
    )
    start = folder / "start"
    if not start.exists():
        tokenizer = folder / "tokenizer"
        if not tokenizer.exists():
            lep.extend_tokenizer(INSTRUCT, train["ru"], NEW_TOKENS, tokenizer)
        lep.initialise(INSTRUCT, tokenizer, start)
    prompts, answers, practice = folder / "prompts.jsonl", folder / "answers", folder / "practice"
    if not prompts.exists():
        kinds = [*TASKS, "word_after"]
        write_records(prompts, records_apart(train, kinds, PROMPTS, 1, heldout))
    if not answers.exists():
        print(lep.answer(INSTRUCT, prompts, answers, max_new_tokens=300, generation_batch=64))
    if not practice.exists():
        options = {"practice_tokens": PRACTICE_TOKENS, "practice": 1_000}
        words, old = ({code: train[code]} for code in ("ru", "en"))
        texts = {"old": old, "heldout": heldout}
        print(lep.practise(INSTRUCT, start, words, practice, **texts, **options))
    streams = {"answers": answers, "practice_tasks": practice}
    return {
        "start": start,
        "corpus": train["ru"],
        "heldout": heldout,
        "streams": {n: str(p) for n, p in streams.items()} | {"old_text": train["en"]},
    }


def trained(folder: Path, arm: str, seed: int, given: dict[str, Any]) -> Path:
    """The model of an arm, after one training or two with half of the tokens each."""
    tokens, trainings = ARMS[arm]
    model = given["start"]
    for number, changes in enumerate(trainings, 1):
        output = folder / f"{arm}.seed-{seed}.{number}"
        if not output.exists():
            options = {"seed": seed, "block_size": 512, "checkpoints": 4} | changes
            settings = NewRowsSettings(
                tokens=tokens // len(trainings), **options, **given["streams"]
            )
            print(lep.pretrain(model, given["corpus"], output, settings), flush=True)
        model = output
    return model


def scores(model: Path, folder: Path, given: dict[str, Any]) -> dict[str, float]:
    """The figures of `COLUMNS`, and the probability of new tokens on old text."""
    if not folder.exists():
        settings = EvaluateSettings(tasks=TASKS, characters=60_000, bootstrap=100)
        write_evaluation(model, given["heldout"], folder, settings)
    values = {
        (s["metric"], s["language"], s["task"]): s["value"]
        for s in json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    }
    mass = folder.with_suffix(".mass.json")
    if not mass.exists():
        mass.write_text(json.dumps(new_token_mass(model, given)), encoding="utf-8")
    return {title: values[(*key, None)[:3]] for title, key in COLUMNS.items()} | {
        "new tokens on en": json.loads(mass.read_text(encoding="utf-8"))
    }


@torch.inference_mode()
def new_token_mass(model: Path, given: dict[str, Any]) -> float:
    """The mean probability that all new tokens together have after each token of English text."""
    loaded, checkpoint = load_model(model)
    known = len(Checkpoint(INSTRUCT).tokenizer)
    total, count = 0.0, 0
    for document in read_documents(given["heldout"]["en"]):
        ids = checkpoint.tokenizer(document.text, return_tensors="pt")["input_ids"][:, :512]
        probabilities = loaded(input_ids=ids).logits[0].softmax(-1)
        total += float(probabilities[:, known:].sum())
        count += ids.shape[1]
        if count > 20_000:
            break
    return total / count


def english_hidden_states_are_equal(model: Path, given: dict[str, Any]) -> bool:
    """Bit for bit, between the original and a trained model, on held-out English text."""
    document = next(iter(read_documents(given["heldout"]["en"])))
    states = []
    for source in (INSTRUCT, model):
        loaded, checkpoint = load_model(source)
        ids = checkpoint.tokenizer(document.text, return_tensors="pt")["input_ids"][:, :256]
        with torch.inference_mode():
            states.append(loaded(input_ids=ids, output_hidden_states=True).hidden_states[-1])
    return torch.equal(*states)


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """A row per arm: the median over its seeds, and the range."""
    columns = [*next(iter(results.values()))[0]]
    rows = []
    for arm, values in results.items():
        cells = [_spread([value[column] for value in values]) for column in columns]
        tokens = f"{ARMS[arm][0]:,}" if arm in ARMS else "0"
        rows.append([arm, tokens, str(len(values)), *cells])
    lines = [["arm", "tokens", "seeds", *columns], ["---"] * (len(columns) + 3), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: list[float]) -> str:
    digits = 4 if max(values) < 0.1 else 3
    middle, low, high = statistics.median(values), min(values), max(values)
    shown = f"{middle:.{digits}f}"
    return shown if math.isclose(low, high) else f"{shown} ({low:.{digits}f}-{high:.{digits}f})"


def draw(
    results: dict[str, list[dict[str, float]]], original: dict[str, float], file: Path
) -> None:
    """A panel per measure: a point for each seed of each arm, and the original as a line."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lep"  # the same figure has the same bytes
    import matplotlib.pyplot as plt

    shown = ("ru tasks", "ru answers", "ru text", "en tasks")
    arms = [arm for arm in results if arm in ARMS][::-1]
    figure, axes = plt.subplots(1, len(shown), figsize=(11, 3.4), sharey=True)
    for axis, column in zip(axes, shown, strict=True):
        for height, arm in enumerate(arms):
            values = [value[column] for value in results[arm]]
            axis.plot(values, [height] * len(values), "o", color="#2a6f97", alpha=0.7)
        axis.axvline(original[column], color="#888888", linestyle="--", linewidth=1)
        axis.set_title(column, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(arms)), [f"{arm} ({ARMS[arm][0] // 1000:,}k)" for arm in arms])
    figure.suptitle("Dashed: the original instruct model. One point for each seed.", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/joint"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS])
    parser.add_argument("--figure", type=Path, help="SVG file to write")
    arguments = parser.parse_args()
    folder = arguments.output
    given = prepared(folder, corpus_of(arguments.data, folder))
    results = {
        "original": [scores(INSTRUCT, folder / "original.scores", given)],
        "mean initialisation": [scores(given["start"], folder / "start.scores", given)],
    }
    for arm in arguments.arms:
        for seed in arguments.seeds:
            model = trained(folder, arm, seed, given)
            values = scores(model, folder / f"{arm}.seed-{seed}.scores", given)
            results.setdefault(arm, []).append(values)
            print(arm, seed, values, flush=True)
    print(table(results))
    last = trained(folder, arguments.arms[0], arguments.seeds[0], given)
    equal = english_hidden_states_are_equal(last, given)
    print(f"hidden states of English text bit-equal with the original's: {equal}")
    if arguments.figure:
        draw(results, results["original"][0], arguments.figure)


if __name__ == "__main__":
    main()
