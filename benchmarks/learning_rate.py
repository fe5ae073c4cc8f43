"""Choose the learning rate for the lab pair's embeddings as the paper does: a few rates, some data.

    python benchmarks/learning_rate.py --corpus runs/lab/corpus [--base lab/pair/base] \\
        [--output runs/learning-rate]

All rates train on the same text. They are compared in bits per byte on sections of the *training*
side that none of them saw. Held-out text is not used.
"""

import argparse
import json
from pathlib import Path

from lep.corpus.read import read_documents, write_records
from lep.evaluation.score import score_model
from lep.settings import EvaluateSettings, PretrainSettings
from lep.tokenizer.write import extend_tokenizer
from lep.training.pretrain import pretrain
from lep.transfer.initialise import initialise

VALIDATION_SECTIONS, TRAINING_SECTIONS = 60, 2500
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        required=True,
        help="folder with ru.train.jsonl, from lab/make_pair.py",
    )
    parser.add_argument("--base", type=Path, default=Path("lab/pair/base"))
    parser.add_argument("--output", type=Path, default=Path("runs/learning-rate"))
    parser.add_argument("--new-tokens", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=500_000)
    arguments = parser.parse_args()
    out = arguments.output
    out.mkdir(parents=True, exist_ok=True)
    documents = list(read_documents([arguments.corpus / "ru.train.jsonl"]))
    for name, part in (
        ("validation", documents[-VALIDATION_SECTIONS:]),
        ("train", documents[:TRAINING_SECTIONS]),
    ):
        write_records(out / f"{name}.jsonl", ({"id": d.id, "text": d.text} for d in part))
    if not (out / "tokenizer").exists():
        extend_tokenizer(
            arguments.base, [out / "train.jsonl"], arguments.new_tokens, out / "tokenizer"
        )
    if not (out / "init").exists():
        initialise(arguments.base, out / "tokenizer", out / "init")
    results = {}
    for rate in RATES:
        model = out / f"rate-{rate:g}"
        if not model.exists():
            settings = PretrainSettings(
                tokens=arguments.tokens,
                learning_rate=rate,
                weight_decay=0,
                block_size=512,
                batch_tokens=8192,
            )
            pretrain(out / "init", [out / "train.jsonl"], model, settings)
        text: dict[str, list[str | Path]] = {"ru": [out / "validation.jsonl"]}
        scores = score_model(model, text, EvaluateSettings(tasks=[])).scores
        bits = next(s.value for s in scores if s.metric == "bits per byte")
        results[f"{rate:g}"] = bits
        print(f"learning rate {rate:g}: {bits:.4f} bits per byte", flush=True)
    (out / "rates.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
