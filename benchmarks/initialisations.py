"""Ways to initialise the rows of new tokens, on a real model: held-out text before and after some
training.

    python benchmarks/initialisations.py run --model FOLDER --tokenizer FOLDER --corpus FOLDER \\
        --eval FILE... --output DIR [--arms mean random ...] [--donor FOLDER] [--updates 50] \\
        [--relative-rate 0.005] [--input-only]
    python benchmarks/initialisations.py rates --model FOLDER --tokenizer FOLDER --corpus FOLDER \\
        --output DIR
    python benchmarks/initialisations.py table --output DIR

`--tokenizer` is from `lep extend`, `--corpus` a folder with ru.train.jsonl, ru.heldout.jsonl,
en.train.jsonl and en.heldout.jsonl (the corpus stage of a recipe writes them; other languages:
`--new` and `--old`). Everything is chosen on NEW.heldout.jsonl (the rate of the training with
`rates`, from `mean`) and reported on `--eval` and OLD.heldout.jsonl. Each arm writes one JSON file
and is skipped where it exists. Arms:

* `mean`, `length-weighted`, `random`, `first-output` (input mean, output first piece; as `mean`
  where both tables are one) and `calibrated` (mean, of the usual norm): `lep.initialise`.
* `hidden`: the model reads each new token in pieces, in text; a linear map takes its state at the
  last piece in an early layer to a row. The map is fitted by least squares on whole words of the
  old language: from states to their own input rows. Layer and norm are chosen on held-out bits.
  After the idea of FragMend (arXiv:2604.16656) and of Kaplan et al. (arXiv:2410.05864).
* `split`: the same; but the words that the map is fitted on are read in pieces, as new tokens are,
  and it sees the mean of the pieces too.
* `added`: the same, but what the map finds is what the states add to the mean of the pieces, and a
  share of it, chosen as the layer, is added. Where the map has learned nothing this is `mean`.
* `omp`: needs a donor, a model that has some of the new tokens (`--donor`). Each new row that the
  donor has is a sparse combination of its rows of tokens that both models have, by orthogonal
  matching pursuit; the same combination of the model's rows is the new row (arXiv:2506.06607).
  Tokens that the donor lacks too have the mean. The candidates are shared tokens with letters of
  other than the Latin script and a sample of the others.

These ways give input rows; in an untied model output rows are means. In a tied one a row serves
both. With `--input-only` the output table of a tied model is a table of its own, with means, so
that the input rows are judged alone; their files are named ARM-input, and nothing is trained.

Bits per byte of texts of one document each, and of the repetition of a short one (`copied`), are
compared with those of `mean` by a paired bootstrap over documents (95%).
"""

import argparse
import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from initial_rows import Candidates, Experiment, from_donor, from_states
from torch import Tensor

import lep
from lep.corpus.prepare import unit_hash
from lep.corpus.read import read_documents
from lep.files import write_json
from lep.inference.likelihood import sequence_nats, start_token, text_nats
from lep.inference.models import load_model
from lep.statistics import bounds, draws, ratio
from lep.training.trainer import write_trained

METHODS: dict[str, dict[str, Any]] = {
    "mean": {"method": "mean"},
    "length-weighted": {"method": "length-weighted"},
    "first-output": {"method": "mean", "output_method": "first"},
    "calibrated": {"method": "mean", "calibrate_norms": True},
    "random": {"method": "random"},
}
NUMBERS = {
    "texts": 32,
    "old-texts": 12,
    "choice-texts": 6,
    "characters": 300,
    "state-tokens": 16_000,
    "anchors": 8_192,
    "nonzero": 64,
    "updates": 50,
    "block": 256,
    "batch-tokens": 256,
}
EVALUATION_BATCH = 8
ROWS: dict[str, Callable[[Experiment], Candidates]] = {
    "hidden": partial(from_states, split=False),
    "split": partial(from_states, split=True),
    "added": partial(from_states, split=True, added=True),
    "omp": from_donor,
}


def texts(paths: list[Path], count: int, characters: int) -> list[str]:
    """The beginnings of documents in an order fixed by hash, each of at least half the length."""
    documents = sorted(read_documents(paths), key=lambda d: (unit_hash(d.id), d.id))
    long = (d.text for d in documents if len(d.text) >= characters / 2)
    return [text[:characters] for text, _ in zip(long, range(count), strict=False)]


def measured(model: Any, tokenizer: Any, by_language: dict[str, list[str]]) -> dict[str, Any]:
    """(nats, bytes) of each text, and of the repetition of a third of it, by language."""
    result: dict[str, Any] = {}
    start = start_token(tokenizer)
    for language, items in by_language.items():
        nats = [loss for _, loss in text_nats(model, tokenizer, items, EVALUATION_BATCH)]
        result[language] = _with_bytes(nats, items)
        short = [text[: len(text) // 3] for text in items]
        encoded = tokenizer(short, add_special_tokens=False)["input_ids"]
        twice = [([start, *ids, *ids], 1 + len(ids)) for ids in encoded]
        nats = sequence_nats(model, twice, EVALUATION_BATCH)
        result[f"{language} copied"] = _with_bytes(nats, short)
    return result


def _with_bytes(nats: list[float], items: list[str]) -> list[tuple[float, int]]:
    return [(each, len(text.encode())) for each, text in zip(nats, items, strict=True)]


def bits(pairs: list[tuple[float, int]]) -> float:
    nats, size = np.sum(pairs, axis=0)
    return float(nats / math.log(2) / size)


def chosen(
    experiment: Experiment, candidates: dict[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """The candidate with the fewest bits on held-out text of the training side, and all bits."""
    a = experiment.arguments
    items = texts(experiment.text(a.new, "heldout"), a.choice_texts, a.characters)
    model, checkpoint = load_model(experiment.mean)
    if a.input_only:
        untie(model, experiment)
    table, looks = model.get_input_embeddings().weight.data, {}
    for name, rows in {"mean": experiment.mean_rows, **candidates}.items():
        table[experiment.new] = rows.to(table.dtype)
        losses = text_nats(model, checkpoint.tokenizer, items, EVALUATION_BATCH)
        looks[name] = bits(_with_bytes([nats for _, nats in losses], items))
        print(f"    {name}: {looks[name]:.4f}", flush=True)
    return candidates[min(candidates, key=lambda name: looks[name])], looks


def untie(model: Any, experiment: Experiment) -> None:
    """Give a model an output table of its own, the one with means."""
    tables = experiment.after.tables.by_kind()
    means = experiment.after.tensor(tables.get("output", tables["input"]))
    model.get_output_embeddings().weight = torch.nn.Parameter(means.to(model.dtype))


def initialised(experiment: Experiment, arm: str, folder: Path) -> dict[str, Any]:
    """Write the model of an arm to `folder`; returns what was chosen."""
    if arm in METHODS:
        options = dict(METHODS[arm])
        if "output" not in experiment.before.tables.by_kind():
            options.pop("output_method", None)
        lep.initialise(experiment.model, experiment.arguments.tokenizer, folder, **options)
        return {}
    candidates, facts = ROWS[arm](experiment)
    rows, choice = chosen(experiment, candidates)
    name = experiment.after.tables.input
    table = experiment.after.tensor(name).clone()
    table[experiment.new] = rows.to(table.dtype)
    write_trained(experiment.after, {name: table}, folder)
    return {"bits": choice, **facts}


def trained(a: argparse.Namespace, arm: str, rate: float) -> Path:
    """The folder of an arm's model after training at a rate, which is done once."""
    folder = a.output / "models" / f"{arm}-{rate:g}"
    if not folder.exists():
        lep.pretrain(
            a.output / "models" / arm,
            [a.corpus / f"{a.new}.train.jsonl"],
            folder,
            tokens=a.updates * a.batch_tokens,
            block_size=a.block,
            batch_tokens=a.batch_tokens,
            checkpoints=1,
            train="new_rows",
            relative_rate=rate,
            weight_decay=0.0,
        )
    return folder


def experiment_of(a: argparse.Namespace) -> Experiment:
    mean = a.output / "models" / "mean"
    if not mean.exists():
        lep.initialise(a.model, a.tokenizer, mean)
    return Experiment(a, a.model, mean)


def rates(a: argparse.Namespace) -> None:
    """Held-out bits after the training at each rate, from `mean`."""
    experiment, file = experiment_of(a), a.output / "rates.json"
    items = texts(experiment.text(a.new, "heldout"), a.choice_texts, a.characters)
    looks = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for rate in a.rates:
        if str(rate) not in looks:
            model, checkpoint = load_model(trained(a, "mean", rate))
            looks[str(rate)] = bits(measured(model, checkpoint.tokenizer, {"": items})[""])
            write_json(file, looks)
        print(rate, looks[str(rate)], flush=True)


def run(a: argparse.Namespace) -> None:
    a.output.mkdir(parents=True, exist_ok=True)
    reported = {
        a.new: texts(a.eval, a.texts, a.characters),
        a.old: texts([a.corpus / f"{a.old}.heldout.jsonl"], a.old_texts, a.characters),
    }

    def look(folder: Path, *, own_output: bool = False) -> dict[str, Any]:
        model, checkpoint = load_model(folder)
        if own_output:
            untie(model, experiment)
        return measured(model, checkpoint.tokenizer, reported)

    experiment = experiment_of(a)
    same = [name.replace("-", "_") for name in NUMBERS if name != "updates"]
    settings = {name: str(getattr(a, name)) for name in same}
    if not (a.output / "original.json").exists():
        write_json(a.output / "original.json", {"settings": settings, "start": look(a.model)})
    for arm in a.arms:
        name = f"{arm}-input" if a.input_only else arm
        file, folder = a.output / f"{name}.json", a.output / "models" / name
        record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        before = {name: record["settings"][name] for name in same} if record else settings
        if before != settings:
            raise SystemExit(f"{file} is of other settings: {before}, not {settings}; move it")
        if "start" not in record:
            if arm != "mean":
                shutil.rmtree(folder, ignore_errors=True)
            choice = {} if arm == "mean" else initialised(experiment, arm, folder)
            record = {
                "settings": settings,
                "choice": choice,
                "start": look(folder, own_output=a.input_only),
            }
            write_json(file, record)
        if a.updates and not a.input_only and "trained" not in record:
            record["trained"] = look(trained(a, arm, a.relative_rate))
            write_json(file, record | {"relative rate": a.relative_rate})
        print(arm, {k: round(bits(v), 4) for k, v in record["start"].items()}, flush=True)


def table(a: argparse.Namespace) -> None:
    """Print bits per byte, and differences from `mean` with intervals."""
    records = {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(a.output.glob("*.json"))
        if file.stem != "rates"
    }
    names = [*records["original"]["start"]]
    for stage in ("start", "trained"):
        print(f"\n| {stage} | " + " | ".join(names) + " |\n" + "|---" * (1 + len(names)) + "|")
        for arm, record in records.items():
            if stage not in record:
                continue
            cells = [f"{bits(record[stage][name]):.3f}" for name in names]
            if arm not in ("mean", "original") and stage in records["mean"]:
                base = records["mean"][stage]
                cells = [
                    f"{cell} ({difference(record[stage][name], base[name])})"
                    for cell, name in zip(cells, names, strict=True)
                ]
            print(f"| `{arm}` | " + " | ".join(cells) + " |")


def difference(pairs: list[tuple[float, int]], base: list[tuple[float, int]]) -> str:
    arrays = [np.array(each, dtype=np.float64) for each in (pairs, base)]
    for array in arrays:
        array[:, 0] /= math.log(2)
    value = ratio(arrays[0]) - ratio(arrays[1])
    interval = bounds(value, draws(arrays, ratio, 2000, 0), len(pairs))
    return f"{interval.value:+.3f}, {interval.low:+.3f} to {interval.high:+.3f}"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    for verb in (run, rates, table):
        part = verbs.add_parser(verb.__name__, description=verb.__doc__)
        part.set_defaults(verb=verb)
        part.add_argument("--output", type=Path, required=True)
        if verb is table:
            continue
        for name in ("model", "tokenizer", "corpus"):
            part.add_argument(f"--{name}", type=Path, required=True)
        part.add_argument("--new", default="ru")
        part.add_argument("--old", default="en")
        if verb is rates:
            part.add_argument("--rates", type=float, nargs="+", default=[0.002, 0.005, 0.02])
        else:
            part.add_argument("--eval", type=Path, nargs="+", required=True)
            part.add_argument("--donor", type=Path)
            part.add_argument("--arms", nargs="+", choices=[*METHODS, *ROWS], default=["mean"])
            part.add_argument("--input-only", action="store_true")
            part.add_argument("--relative-rate", type=float, default=0.005)
        for name, number in NUMBERS.items():
            part.add_argument(f"--{name}", type=int, default=number)
    return parser


def main() -> None:
    a = arguments().parse_args()
    a.verb(a)


if __name__ == "__main__":
    main()
