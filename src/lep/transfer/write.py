"""Publish a model with another vocabulary."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lep.checkpoint.ids import check_named, remap_files
from lep.checkpoint.origin import Origin
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import Rows
from lep.checkpoint.writer import resized_config, write_checkpoint
from lep.files import write_text
from lep.mapping import VocabularyMapping
from lep.publish import publishing
from lep.tokenizer.carry import check_carried
from lep.tokenizer.id_settings import remap_ids
from lep.tokenizer.idmap import IdMap
from lep.tokenizer.load import LOADER_TEXTS, check_loaders, write_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.transfer.mappings import save_mappings
from lep.transfer.recipient import Recipient


def moved_ids(
    source: Checkpoint, target: Vocabulary, carried: Mapping[int, int] | None = None
) -> dict[int, int]:
    """`{id: new id}` of the tokens whose id changes; `carried` are ids that the caller chose.

    Raises `CheckpointError` when the model's settings name a token that the target lacks, or an id
    that cannot follow its token (`check_named`).
    """
    chosen = carried or {}
    following = enumerate(IdMap.between(source.vocabulary, target).target)
    new_ids = {old: new for old, new in following if new is not None} | dict(chosen)
    check_named(source, target, new_ids)
    return {old: new for old, new in new_ids.items() if old != new}


def write_model(
    source: Checkpoint,
    replaced: Mapping[str, Rows],
    output: Path,
    moved: dict[int, int],
    mappings: dict[str, VocabularyMapping],
    *,
    add_files: Callable[[Path], None],
    texts: Iterable[str] = (),
) -> None:
    """Publish `source` with replaced tensors, token ids `moved` in its settings, and its mappings.

    `add_files` writes the tokenizer and what else belongs beside the model. All loaders must give
    the same ids for `texts` and `LOADER_TEXTS`, every added token of `source` must be one token,
    and every id must have a row, before the result takes its name.
    """
    rows = replaced[source.tables.input].shape[0]
    config = remap_ids(source.config, moved, source.shape(source.tables.input)[0])
    resized = resized_config(config, rows, source.tables.size_settings)
    with publishing(output) as partial:
        write_checkpoint(source, replaced, partial, config | resized)
        remap_files(partial, moved)
        save_mappings(mappings, partial)
        Origin.of(source.folder).save(partial)
        add_files(partial)
        tokenizer = Checkpoint(partial).check().tokenizer
        check_carried(source.tokenizer, tokenizer, moved)
        check_loaders(partial, [*LOADER_TEXTS, *texts], tokenizer)


def write_recipient(
    recipient: Recipient, replaced: Mapping[str, Rows], notes: dict[str, str], output: Path
) -> None:
    """Publish an instruct model with new tables and vocabulary; `notes` are files for `lep/`."""
    model, mappings = recipient.model, recipient.result_mappings
    moved = moved_ids(model, Vocabulary.of(recipient.tokenizer), recipient.ids)

    def add_files(folder: Path) -> None:
        write_tokenizer(recipient.tokenizer_spec(), model.folder, folder, model.tokenizer, moved)
        for name, content in notes.items():
            write_text(folder / "lep" / name, content)

    texts = ["".join([*model.vocabulary.added_ids()][:8])]
    write_model(model, replaced, output, moved, mappings, add_files=add_files, texts=texts)
