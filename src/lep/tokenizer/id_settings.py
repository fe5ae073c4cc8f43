"""Token ids in settings, whatever the setting is called: replaced where known, found where not."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Settings of `GenerationConfig` and of the configurations of transformers that hold token ids.
TOKEN_IDS = re.compile(
    r"token_(ids?|index|indices)$|suppress_tokens$|words_ids$|^forced_decoder_ids$|^sequence_bias$"
    r"|(^|_)(bos|eos|eod|eot|boi|eoi|boa|eoa|pad|unk|mask|sep|cls)_(ids?|index)$"
    r"|(^|_)(start|end|newline|patch)_id$|(^|_)(lang|task)\w*_to(_code)?_id$"
)
# Settings that may hold token ids by their name, and those of transformers that do not.
PERHAPS = re.compile(r"(^|_)(ids?|index|indexes|indices)$")
PERHAPS_LISTS = re.compile(r"(^|_)(tokens|words)$")
NO_IDS = re.compile(
    r"layer|block|hook|head|attn|visual_index|ignore|label|lang_id|speaker|prompt_id|aspect_ratio"
    r"|kpool|^(decode|merge|altup_active)_index$|^extra_ids$|^num_"
)
# Ids of other vocabularies: of sounds, units, and markup.
OTHER_VOCABULARY = re.compile(r"codec|codebook|t2u|vocoder|audio_stream|^(tag|subs)_pad")
Change = Callable[[str, int], int]  # of a setting's name and an id: the new id


def with_ids(settings: dict[str, Any], change: Change, rows: int | None = None) -> dict[str, Any]:
    """Settings with every token id replaced.

    A part whose `vocab_size` is not `rows` has a vocabulary of its own and stays.
    """
    return {name: _with_ids(name, value, change, rows) for name, value in settings.items()}


def _with_ids(name: str, value: Any, change: Change, rows: int | None) -> Any:
    if TOKEN_IDS.search(name):
        return value if OTHER_VOCABULARY.search(name) else _ids(name, value, change)
    if isinstance(value, list):
        return [_with_ids("", item, change, rows) for item in value]
    if not isinstance(value, dict) or rows not in (None, value.get("vocab_size", rows)):
        return value
    return with_ids(value, change, rows)


def _ids(name: str, value: Any, change: Change) -> Any:
    """The value of one setting with its ids replaced.

    `sequence_bias` is `{"(id, id)": bias}` or `[[[id, id], bias]]`, `forced_decoder_ids` is
    `[[position, id]]`; in all others every integer is an id.
    """
    if name == "sequence_bias" and isinstance(value, dict):
        renamed = (re.sub(r"\d+", lambda m: str(change(name, int(m[0]))), key) for key in value)
        return dict(zip(renamed, value.values(), strict=True))
    if name in ("sequence_bias", "forced_decoder_ids") and isinstance(value, list):
        part = 0 if name == "sequence_bias" else 1
        return [_part(name, item, part, change) for item in value]
    return _every(name, value, change)


def _every(name: str, value: Any, change: Change) -> Any:
    """A value with all its integers replaced."""
    if isinstance(value, list):
        return [_every(name, item, change) for item in value]
    if isinstance(value, dict):
        return {key: _every(name, item, change) for key, item in value.items()}
    return change(name, value) if type(value) is int else value


def _part(name: str, item: Any, part: int, change: Change) -> Any:
    """One entry of a list, in which only the `part` holds ids."""
    if not isinstance(item, list):
        return item
    return [_every(name, e, change) if i == part else e for i, e in enumerate(item)]


def remap_ids(
    settings: dict[str, Any], moved: Mapping[int, int], rows: int | None = None
) -> dict[str, Any]:
    """Settings with moved token ids replaced; see `with_ids`."""
    return with_ids(settings, lambda _, index: moved.get(index, index), rows)


def known_ids(settings: dict[str, Any], rows: int | None = None) -> list[tuple[str, int]]:
    """Each setting that holds token ids, and the ids."""
    entries: list[tuple[str, int]] = []

    def note(name: str, index: int) -> int:
        entries.append((name, index))
        return index

    with_ids(settings, note, rows)
    return entries


def possible_ids(settings: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Settings whose names are like those of token ids, but unknown, and the integers there."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from possible_ids(value)
        elif not any(p.search(name) for p in (TOKEN_IDS, OTHER_VOCABULARY, NO_IDS)) and (
            PERHAPS.search(name) or (isinstance(value, list) and PERHAPS_LISTS.search(name))
        ):
            yield from ((name, number) for number in _integers(value))


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, list):
        for item in value:
            yield from _integers(item)
    elif type(value) is int:
        yield value
