"""Give a model a new tokenizer: every row of the new tables is a mixture of known rows."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lep.checkpoint.adapter import ADAPTER, check_merged
from lep.checkpoint.reader import Checkpoint
from lep.files import write_json
from lep.hub import local_folder
from lep.publish import check_output
from lep.result import Result
from lep.settings import InitSettings
from lep.tokenizer.carry import carried_ids, with_added_tokens
from lep.tokenizer.load import keep_chat_template, load_tokenizer, write_tokenizer
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

    The vocabulary is that of the folder; special tokens, chat template, post-processor and the
    other tokenizer settings are the model's, whose added tokens are appended where the folder
    lacks them (it may be made from the model's base). A model without a chat template takes the
    folder's.

    The body stays as it is, copied rows are bit-equal, and the mappings are saved in `lep/` of the
    result. Where the result gives a token another id, its row moves, and configuration and
    generation settings follow.

    Raises `CheckpointError` when these settings name a token that the new tokenizer lacks, and
    `TokenizerError` for an added token that would not stay one token.
    """
    output, settings = Path(output), InitSettings.given(settings, options)
    check_output(output)
    source, folder = check_merged(Checkpoint(model).check()), local_folder(tokenizer)
    given, model_tokenizer = load_tokenizer(folder), source.tokenizer.backend_tokenizer
    carried = carried_ids(source.vocabulary, Vocabulary.of(given))
    spec = with_added_tokens(given.backend_tokenizer, model_tokenizer, carried)
    target = Vocabulary.of(Tokenizer.from_str(json.dumps(spec)))
    mappings = build_mappings(source, target, settings)
    kinds = {name: kind for kind, name in source.tables.by_kind().items()}
    kinds |= {name: source.tables.kind_of(name) for name in source.tables.others}
    tensors = {name: mixed_stream(source, name, mappings[kind]) for name, kind in kinds.items()}
    moved, copies = moved_ids(source, target), mappings["input"].copies
    counts = {"rows": len(copies), "copied": int(copies.sum()), "mixed": int((~copies).sum())}

    def add_files(partial: Path) -> None:
        write_tokenizer(spec, source.folder, partial, source.tokenizer, moved)
        keep_chat_template(folder, partial)
        if (source.folder / ADAPTER).exists():  # what the body learned, for later propagations
            shutil.copyfile(source.folder / ADAPTER, partial / ADAPTER)
        write_json(partial / INIT_FILE, settings.model_dump() | counts, indent=2)

    write_model(source, tensors, output, moved, mappings, add_files=add_files)
    return Initialised(output, **counts)
