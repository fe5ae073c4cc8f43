"""What Adam's epsilon is worth in a short joint training of a real model.

    python benchmarks/epsilon.py RUN --output OUT [--shares 0 0.1 0.3 1] [--steps 16] [--tokens 512]

RUN is the folder of a finished `lep adapt`: its initialised model is trained again on its text,
answers and practice tasks, for a few steps of so many tokens. A share of 0 is Adam as it is
(epsilon 1e-8). Printed are held-out text and its repetition in bits per byte at each look, and the
first and last losses of the streams. Finished trainings are read again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import lep
from lep.settings import NewRowsSettings
from lep.training import optimizer

LOOKS, CHARACTERS = 4, 4_000


def trained(run: Path, output: Path, share: float, steps: int, tokens: int) -> dict[str, Any]:
    """The record of a training whose epsilon is a share of the root mean square of gradients."""
    folder = output / f"share-{share:g}"
    if not folder.exists():
        optimizer.EPSILON_SHARE = share
        languages = {path.name.split(".")[0] for path in (run / "looks").glob("*.looks.jsonl")}
        new = json.loads((run / "run.json").read_text(encoding="utf-8"))["recipe"]["language"]
        rest = {code: str(run / "looks" / f"{code}.rest.jsonl") for code in languages}
        settings = NewRowsSettings(
            tokens=steps * tokens,
            batch_tokens=tokens,
            block_size=tokens,
            checkpoints=LOOKS,
            eval_text={c: [str(run / "looks" / f"{c}.looks.jsonl")] for c in sorted(languages)},
            eval_characters=CHARACTERS,
            old_text=[rest[code] for code in sorted(languages - {new})],
            answers=str(run / "adapt-answers"),
            practice_tasks=str(run / "practice"),
        )
        lep.pretrain(run / "init-instruct", [rest[new]], folder, settings)
    return json.loads((folder / "lep" / "pretrain.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.1, 0.3, 1])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    arguments = parser.parse_args()
    print("share of epsilon | text, by step | repetition | losses of the streams, first to last")
    for share in arguments.shares:
        record = trained(arguments.run, arguments.output, share, arguments.steps, arguments.tokens)
        looks, streams = record["looks"], record["streams"]
        print(
            f"{share:g}",
            *(path(looks, key) for key in ("bits_per_byte", "copied_bits_per_byte")),
            ", ".join(
                f"{name} {stream['losses'][0][1]:.2f} to {stream['losses'][-1][1]:.2f}"
                for name, stream in streams.items()
            ),
            sep=" | ",
            flush=True,
        )


def path(looks: list[dict[str, Any]], key: str) -> str:
    """A measure of each language, look by look."""
    return "; ".join(
        f"{code} " + " ".join(f"{look[key][code]:.3f}" for look in looks) for code in looks[0][key]
    )


if __name__ == "__main__":
    main()
