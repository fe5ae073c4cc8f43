"""Give a model a new tokenizer: every row of the new tables is made from rows of the old ones."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from lep.checkpoint.adapter import ADAPTER, check_merged
from lep.checkpoint.ids import check_named, remap_generation_config, remap_ids
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.writer import resized_config, write_checkpoint
from lep.hub import local_folder
from lep.publish import check_output, publishing
from lep.settings import InitSettings
from lep.tokenizer.idmap import IdMap
from lep.tokenizer.load import check_loaders, copy_tokenizer, keep_chat_template, load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.transfer.mappings import INIT_FILE, build_mappings, save_mappings
from lep.transfer.row_streams import mixed_rows

LOADER_TEXTS = [
    "Hello, world! 1234\n\tdef f(x):",
    "Съешь ещё этих мягких булок.",
    "ქართული, 中文, हिन्दी 🙂",
]


@dataclass(frozen=True)
class Initialised:
    """What `initialise` did: rows that were copied, and rows that are new mixtures."""

    rows: int
    copied: int
    mixed: int


def initialise(
    model: str | Path, tokenizer: str | Path, output: Path, settings: InitSettings | None = None
) -> Initialised:
    """Write `model` with the vocabulary of the folder `tokenizer` to `output` (`E_new = M E_old`, eq. 1-2).

    The body is untouched; the mappings are saved beside the model in `lep/`. Copied rows are bit-equal. Where the
    new tokenizer gives a token another id, the row moves, and configuration and generation settings follow.

    Raises `CheckpointError` when they name a token that the new tokenizer lacks.
    """
    check_output(output)
    source, folder = check_merged(Checkpoint(model).check()), local_folder(tokenizer)
    target = Vocabulary.of(load_tokenizer(folder))
    settings = settings or InitSettings()
    mappings = build_mappings(source, target, settings)
    mapping = mappings["input"]
    kinds = {name: kind for kind, name in source.tables.by_kind().items()}
    kinds |= {name: source.tables.kind_of(name) for name in source.tables.others}
    replaced = {name: mixed_rows(source, name, mappings[kind]) for name, kind in kinds.items()}
    moved = _moved_ids(source, target)
    with publishing(output) as partial:
        config = remap_ids(source.config, moved)
        resized = resized_config(config, mapping.target_size, source.tables.size_settings)
        write_checkpoint(source, replaced, partial, config | resized)
        remap_generation_config(partial, moved)
        copy_tokenizer(folder, partial)
        keep_chat_template(
            source.folder, partial
        )  # an instruct model stays one, with a tokenizer made for its base
        save_mappings(mappings, partial)
        if (source.folder / ADAPTER).exists():  # what its body learned, for later propagations
            shutil.copyfile(source.folder / ADAPTER, partial / ADAPTER)
        copied = len(mapping.kept()[0])
        result = Initialised(mapping.target_size, copied, mapping.target_size - copied)
        (partial / INIT_FILE).write_text(
            json.dumps(settings.model_dump() | vars(result), indent=2) + "\n"
        )
        written = Checkpoint(partial).check()
        check_loaders(partial, LOADER_TEXTS, written.tokenizer)
    return result


def _moved_ids(source: Checkpoint, target: Vocabulary) -> dict[int, int]:
    """New id of each token that got another one."""
    id_map = IdMap.between(source.vocabulary, target)
    check_named(source, {i for i in id_map.dropped if source.vocabulary.tokens[i] is not None})
    return id_map.moved
