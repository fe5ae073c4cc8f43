"""Change the tokenizer of a model and publish it: what the verbs of `lep tokenizer` do."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lep.corpus.read import stream_texts
from lep.errors import CorpusError, LepError, OutputError, TokenizerError
from lep.hub import local_folder
from lep.publish import check_output, publishing
from lep.settings import TokenizerSettings
from lep.tokenizer.count import (
    COUNTS_SUFFIX,
    WordCounts,
    WordCutter,
    check_counts_place,
    count_words,
    write_counts,
)
from lep.tokenizer.extend import METHODS, Extension, check_method
from lep.tokenizer.idmap import ID_MAP_FILE, IdMap
from lep.tokenizer.load import check_loaders, load_tokenizer, write_tokenizer
from lep.tokenizer.parts import Parts
from lep.tokenizer.prune import kept_tokens, pruned, token_counts
from lep.tokenizer.train import ALGORITHMS, replacement, replacement_cutter
from lep.tokenizer.vocabulary import Vocabulary

CHANGES_FILE = "changes.json"
REPORTED_TEXTS, REPORTED_CHARACTERS = 200, 20_000
Paths = Iterable[str | Path]


def extend_tokenizer(
    base: str | Path,
    corpus: Paths,
    new_tokens: int,
    output: Path,
    *,
    script: str = "auto",
    method: str = "continue",
) -> dict[str, Any]:
    """Write the tokenizer of `base` with exactly `new_tokens` more tokens to `output`.

    With `continue`, text without the script is tokenised as before (`extend_bpe`); `merge` is the paper's way.
    `corpus` lists text files, folders, and files of counts (`lep tokenizer count`).

    `changes.json` beside it lists the new tokens and what they save on the corpus, `id_map.json` what became of each
    id. Before the folder takes its name, texts are encoded and decoded with it and compared, and every loader must
    give the same ids. Returns the content of `changes.json`.
    """
    _check_count("number of new tokens", new_tokens)
    check_method(method)
    check_output(output)
    corpus, folder = list(corpus), local_folder(base, weights=False)
    tokenizer = load_tokenizer(folder).backend_tokenizer
    parts = Parts.of(tokenizer)
    words = count_words(
        tokenizer, corpus, "any" if method == "merge" and script == "auto" else script
    )
    extension = METHODS[method](parts, words, new_tokens)
    return _publish(
        _tokenizer(extension.parts),
        folder,
        output,
        corpus,
        {"verb": "extend", "method": method, **_learned(extension)},
    )


def prune_tokenizer(
    base: str | Path, corpus: Paths, vocab_size: int, output: Path, *, protect: Paths = ()
) -> dict[str, Any]:
    """Write the tokenizer of `base` without its least used tokens, `vocab_size` of them left, to `output`.

    Every token that the texts under `protect` use is kept. See `extend_tokenizer` for what else is written.
    """
    _check_count("vocabulary size", vocab_size)
    check_output(output)
    corpus, folder = list(corpus), local_folder(base, weights=False)
    tokenizer = load_tokenizer(folder).backend_tokenizer
    parts = _pruned(tokenizer, corpus, vocab_size, list(protect), in_place=False)
    return _publish(
        _tokenizer(parts), folder, output, corpus, {"verb": "prune", "kept_tokens": vocab_size}
    )


def optimize_tokenizer(
    base: str | Path,
    corpus: Paths,
    keep: int,
    vocab_size: int,
    output: Path,
    *,
    script: str = "auto",
    in_place: bool = False,
    protect: Paths = (),
) -> dict[str, Any]:
    """Prune to `keep` tokens by use on the corpus, then extend to exactly `vocab_size`.

    With `in_place` the size does not change: new tokens take the ids of the dropped ones, every other id stays.
    """
    _check_count("number of kept tokens", keep)
    check_output(output)
    corpus, folder = list(corpus), local_folder(base, weights=False)
    tokenizer = load_tokenizer(folder).backend_tokenizer
    size = len(Vocabulary.of(tokenizer))
    if in_place and vocab_size != size:
        raise TokenizerError(
            f"in place the size stays {size:,}, but --vocab-size is {vocab_size:,}: give {size}"
        )
    if keep >= vocab_size:
        raise TokenizerError(
            f"{keep:,} tokens shall stay of {vocab_size:,}: no room is left for new ones"
        )
    smaller = _pruned(tokenizer, corpus, keep, list(protect), in_place=in_place)
    words = count_words(tokenizer, corpus, script)
    extension = METHODS["continue"](smaller, words, vocab_size - keep)
    return _publish(
        _tokenizer(extension.parts),
        folder,
        output,
        corpus,
        {"verb": "optimize", "in_place": in_place, "kept_tokens": keep, **_learned(extension)},
    )


def train_tokenizer(
    base: str | Path, corpus: Paths, algorithm: str, vocab_size: int, output: Path
) -> dict[str, Any]:
    """Write a new vocabulary learned on the corpus, with the special tokens and the template of `base`."""
    check_output(output)
    corpus, folder = list(corpus), local_folder(base, weights=False)
    tokenizer = load_tokenizer(folder).backend_tokenizer
    words = count_words(replacement_cutter(tokenizer), corpus, "any")
    if words.script is not None:
        raise CorpusError(
            f"the files of counts hold {words.script} words alone, and a new vocabulary is learned from all: count "
            "again with --fresh"
        )
    trained = replacement(tokenizer, words, vocab_size, algorithm=algorithm)
    return _publish(trained, folder, output, corpus, {"verb": "train", "algorithm": algorithm})


def make_tokenizer(
    base: str | Path, corpus: Paths, output: Path, settings: TokenizerSettings
) -> dict[str, Any]:
    """The verb that the settings ask for: `extend_tokenizer`, `optimize_tokenizer` or `train_tokenizer`."""
    script, method, size = settings.script, settings.method, settings.size(0)
    if method == "optimize":
        return optimize_tokenizer(base, corpus, settings.keep or 0, size, output, script=script)
    if method in ALGORITHMS:
        return train_tokenizer(base, corpus, method, size, output)
    return extend_tokenizer(
        base, corpus, settings.new_tokens or 0, output, script=script, method=method
    )


def count_corpus(
    base: str | Path, corpus: Paths, output: Path, *, script: str = "auto", fresh: bool = False
) -> WordCounts:
    """Write the word counts of one shard of a corpus to `output`; counts of shards stand for their text together.

    `fresh`: for `train_tokenizer`, of all words, cut as a new vocabulary cuts them.
    """
    if output.exists():
        raise OutputError(f"the output {output} exists already: delete it or choose another place")
    check_counts_place(output)
    tokenizer = load_tokenizer(local_folder(base, weights=False)).backend_tokenizer
    if fresh:
        tokenizer, script = replacement_cutter(tokenizer), "any"
    found = count_words(tokenizer, corpus, script)
    write_counts(output, found, WordCutter.of(tokenizer))
    return found


def _pruned(
    tokenizer: Tokenizer, corpus: Paths, keep: int, protect: list[str | Path], *, in_place: bool
) -> Parts:
    parts = Parts.of(tokenizer)
    size = sum(name is not None for name in parts.names)
    if keep > size:
        raise TokenizerError(
            f"{keep:,} tokens shall stay, but there are only {size:,}: ask for fewer"
        )
    counts = token_counts(tokenizer, stream_texts(corpus), len(parts.names))
    texts = stream_texts(protect) if protect else ()
    protected = token_counts(tokenizer, texts, len(parts.names)) > 0
    return pruned(parts, kept_tokens(parts, counts, keep, protected), in_place=in_place)


def _learned(extension: Extension) -> dict[str, Any]:
    return {
        "new_tokens": len(extension.new),
        "script": extension.script,
        "excluded": extension.excluded,
        "tokens": [token.decode(errors="replace") for token in extension.new],
    }


def _publish(
    after: Tokenizer, folder: Path, output: Path, corpus: list[str | Path], facts: dict
) -> dict[str, Any]:
    before = load_tokenizer(folder).backend_tokenizer
    paths = [path for path in corpus if not str(path).endswith(COUNTS_SUFFIX)]
    texts = (
        [text[:REPORTED_CHARACTERS] for text in islice(stream_texts(paths), REPORTED_TEXTS)]
        if paths
        else []
    )
    id_map = IdMap.between(Vocabulary.of(before), Vocabulary.of(after))
    record = facts | {
        "size_before": len(id_map.target),
        "size": id_map.target_size,
        "kept": len(id_map.kept),
        "moved": len(id_map.moved),
        "dropped": len(id_map.dropped),
        "new": len(id_map.new),
        "corpus_sample": {
            "characters": sum(map(len, texts)),
            "tokens_before": _tokens(before, texts),
            "tokens_after": _tokens(after, texts),
        },
    }
    spec = json.loads(after.to_str())
    _check_whole(before, after)
    for text in texts:
        _check_round_trip(before, after, text)
    with publishing(output) as partial:
        write_tokenizer(spec, folder, partial)
        (partial / CHANGES_FILE).write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        id_map.save(partial / ID_MAP_FILE)
        check_loaders(partial, [text[:2000] for text in texts[:20]])
    return record


def _tokenizer(parts: Parts) -> Tokenizer:
    return parts.vocabulary.tokenizer


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise LepError(f"the {name} is {count}: give at least 1")


def _check_whole(before: Tokenizer, after: Tokenizer) -> None:
    """Raise `TokenizerError` where ids stay unused that were so before; new ones must not be."""
    unused = []
    for tokenizer in (before, after):
        ids = set(tokenizer.get_vocab(with_added_tokens=True).values())
        unused.append(set(range(max(ids) + 1)) - ids)
    if unused[1] - unused[0]:
        raise AssertionError(f"ids came to be unused: {sorted(unused[1] - unused[0])[:8]}")
    if unused[1]:
        raise TokenizerError(
            f"{len(unused[0]):,} ids of the base are unused, and new tokens fill them first: {len(unused[1]):,} would "
            f"still be unused, ask for at least {len(unused[0]):,} new tokens"
        )


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> int:
    return sum(
        len(encoded.ids) for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)
    )


def _check_round_trip(before: Tokenizer, after: Tokenizer, text: str) -> None:
    """What the tokenizer gave back before it gives back now, or better: the text itself."""
    expected, got = (
        t.decode(t.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
        for t in (before, after)
    )
    if got not in (expected, text):
        raise TokenizerError(
            f"the new tokenizer would not give back {text[:60]!r}, which the old one does: its normaliser or decoder "
            "is of a kind that is not supported"
        )
