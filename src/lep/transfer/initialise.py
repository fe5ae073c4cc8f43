"""Give a model a new tokenizer: every row of the new tables is a mixture of known rows."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lep.checkpoint.adapter import ADAPTER, check_merged
from lep.checkpoint.reader import Checkpoint
from lep.files import write_json
from lep.hub import local_folder
from lep.publish import check_output
from lep.result import Result
from lep.settings import InitSettings
from lep.tokenizer.load import copy_tokenizer, keep_chat_template, load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.transfer.mappings import INIT_FILE, build_mappings
from lep.transfer.row_streams import mixed_stream
from lep.transfer.write import moved_ids, write_model


@dataclass(frozen=True)
class Initialised(Result):
    """The rows of an initialised model: copied ones, and mixtures for new tokens."""

    output: Path
    rows: int
    copied: int
    mixed: int

    def __str__(self) -> str:
        return f"{self.rows:,} rows: {self.copied:,} copied, {self.mixed:,} new; {self.output}"


def initialise(
    model: str | Path,
    tokenizer: str | Path,
    output: str | Path,
    settings: InitSettings | None = None,
    **options: Any,
) -> Initialised:
    """Write `model` with the vocabulary of the folder `tokenizer` (`E_new = M E_old`, eq. 1-2).

    The body stays as it is, copied rows are bit-equal, and the mappings are saved in `lep/` of the
    result. Where the new tokenizer gives a token another id, its row moves, and configuration and
    generation settings follow.

    Raises `CheckpointError` when these settings name a token that the new tokenizer lacks.
    """
    output, settings = Path(output), InitSettings.given(settings, options)
    check_output(output)
    source, folder = check_merged(Checkpoint(model).check()), local_folder(tokenizer)
    target = Vocabulary.of(load_tokenizer(folder))
    mappings = build_mappings(source, target, settings)
    kinds = {name: kind for kind, name in source.tables.by_kind().items()}
    kinds |= {name: source.tables.kind_of(name) for name in source.tables.others}
    tensors = {name: mixed_stream(source, name, mappings[kind]) for name, kind in kinds.items()}
    moved, copies = moved_ids(source, target), mappings["input"].copies
    counts = {"rows": len(copies), "copied": int(copies.sum()), "mixed": int((~copies).sum())}

    def add_files(partial: Path) -> None:
        copy_tokenizer(folder, partial)
        keep_chat_template(source.folder, partial)  # also with a tokenizer made for the base
        if (source.folder / ADAPTER).exists():  # what the body learned, for later propagations
            shutil.copyfile(source.folder / ADAPTER, partial / ADAPTER)
        write_json(partial / INIT_FILE, settings.model_dump() | counts, indent=2)

    write_model(source, tensors, output, moved, mappings, add_files=add_files)
    return Initialised(output, **counts)
