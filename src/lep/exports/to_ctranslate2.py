"""A folder for CTranslate2: model.bin, its vocabulary of token names, and the tokenizer."""

import json
from pathlib import Path

from lep.errors import CheckpointError
from lep.exports.folder import WAY_OUT, Program
from lep.exports.job import Exported, Job
from lep.exports.vocabulary import unused_names
from lep.files import read_json, write_json

PROGRAM = Program(
    "ctranslate2", "CTranslate2", "ctranslate2", "ctranslate2", "lep.exports.run_ctranslate2"
)
VOCABULARY, CONFIG = "vocabulary.json", "config.json"
check = PROGRAM.check


def write(job: Job) -> Exported:
    """Convert, and prove in CTranslate2 itself.

    CTranslate2 is given token names and looks up their ids, so each row has a name of its own:
    that of its token, or one that nothing else has. Its settings hold one end token; it is the one
    that ends a turn.
    """
    names = row_names(job)

    def finish(folder: Path) -> None:
        check_names(json.loads((folder / VOCABULARY).read_text(encoding="utf-8")), names)
        settings, end = read_json(folder / CONFIG), end_token(job)
        settings |= {"eos_token": end, "bos_token": settings.get("bos_token") or end}
        write_json(folder / CONFIG, settings, indent=2)

    stops = json.dumps(job.stops, ensure_ascii=False)
    notes = [f"generate_batch(..., end_token={stops}): the folder's settings hold one end token"]
    return PROGRAM.write(job, finish, notes[: len(job.stops) - 1], {"vocabulary": names})


def check_names(written: list[str], names: list[str]) -> None:
    """Raise `CheckpointError` unless the vocabulary has the name of each row."""
    if written != names:
        pairs = zip(written, names, strict=False)
        row = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(written), len(names)))
        raise CheckpointError(
            f"CTranslate2's converter wrote {len(written):,} token names for {len(names):,} rows, "
            f"and another one for row {row} than it was given; nothing was written: {WAY_OUT}"
        )


def end_token(job: Job) -> str:
    """The token that ends a turn, or a text where there are no turns."""
    index = job.ends[0] if job.turn_end is None else job.turn_end
    return job.tokenizer.convert_ids_to_tokens(index)


def row_names(job: Job) -> list[str]:
    """A name for each row of the embeddings, no two alike."""
    tokenizer = job.tokenizer
    names = [tokenizer.convert_ids_to_tokens(index) for index in range(len(job.source.vocabulary))]
    unused = unused_names(names, job.rows)
    known = [unused[i] if name is None else name for i, name in enumerate(names)]
    return known + unused[len(known) :]
