"""Change the tokenizer of a model and publish it: the verbs of `lep tokenizer`."""

import heapq
import itertools
import json
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lep.corpus.files import Paths, several
from lep.corpus.prepare import unit_hash
from lep.corpus.read import stream_texts
from lep.errors import CorpusError, LepError, TokenizerError
from lep.files import write_json
from lep.hub import local_folder
from lep.publish import check_output, publishing, publishing_file
from lep.result import Result
from lep.settings import TokenizerSettings
from lep.tokenizer import count
from lep.tokenizer.chat import template_texts
from lep.tokenizer.extend import METHODS, Extension, extend_bpe
from lep.tokenizer.idmap import ID_MAP_FILE, IdMap
from lep.tokenizer.load import check_loaders, load_tokenizer, loader_note, write_tokenizer
from lep.tokenizer.parts import Parts
from lep.tokenizer.prune import kept_tokens, pruned, token_counts
from lep.tokenizer.train import ALGORITHMS, replacement, replacement_cutter
from lep.tokenizer.vocabulary import Vocabulary

CHANGES_FILE = "changes.json"
SAMPLE_TEXTS, SAMPLE_CHARACTERS = 200, 20_000  # drawn from the corpus, and of each at most
SHOWN_TOKENS, SHOWN_CHARACTERS = 10, 40  # in a printed result


@dataclass(frozen=True, kw_only=True)
class TokenizerChange(Result):
    """How many tokens a verb kept, moved to other ids, dropped and added, and what that saves.

    `options` names the verb and its options, `tokens` are the new tokens in the order learned,
    `excluded` the characters outside the script whose texts may now be tokenised differently;
    `corpus_sample` gives the texts of a random sample of the corpus, their characters, and their
    tokens before and after.
    """

    output: Path
    options: dict[str, Any]
    new_tokens: int = 0
    script: str | None = None
    excluded: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    size_before: int
    size: int
    kept: int
    moved: int
    dropped: int
    new: int
    corpus_sample: dict[str, int]
    loader_note: str | None = None  # where AutoTokenizer reads the source differently

    def record(self) -> dict[str, Any]:
        """The content of `changes.json`."""
        learned = ("new_tokens", "script", "excluded", "tokens")
        hidden = ("output", "options", "loader_note", *(() if self.tokens else learned))
        return self.options | {k: v for k, v in vars(self).items() if k not in hidden}

    def __str__(self) -> str:
        sizes = f"{self.size_before:,} tokens before, {self.size:,} after: {self.kept:,} kept"
        lines = [f"{sizes}, {self.moved:,} moved, {self.new:,} new, {self.dropped:,} dropped"]
        if self.tokens:
            lines.append("new tokens: " + "  ".join(map(repr, self.tokens[:SHOWN_TOKENS])))
        if self.script:
            lines.append(f"text without the {self.script} script is tokenised as before")
        if self.excluded:
            lines.append(f"except text with one of {' '.join(self.excluded[:SHOWN_CHARACTERS])}")
        texts, characters, *tokens = self.corpus_sample.values()
        if characters:
            before, after = (f"{characters / number:.2f}" for number in tokens)
            sample = f"{texts:,} texts drawn from the corpus ({characters:,} symbols)"
            lines.append(f"symbols per token on {sample}: {before} before, {after} after")
        lines += [self.loader_note] if self.loader_note else []
        return "\n".join([*lines, f"written to {self.output}"])


@dataclass(frozen=True)
class CorpusCounts(Result):
    """Word counts of a corpus, and the file that holds them."""

    words: count.WordCounts
    output: Path

    def __str__(self) -> str:
        words, characters = len(self.words.counts), self.words.characters
        kind = f" with {self.words.script} letters" if self.words.script else ""
        sample = f" (one in {2**self.words.halvings} of all)" if self.words.halvings else ""
        text = f"{characters:,} characters of text"
        return f"{words:,} different words{kind}{sample} from {text}: {self.output}"


def extend_tokenizer(
    base: str | Path,
    corpus: Paths,
    new_tokens: int,
    output: str | Path,
    *,
    script: str = "auto",
    method: str = "continue",
) -> TokenizerChange:
    """Write the tokenizer of `base` with exactly `new_tokens` more tokens to the folder `output`.

    `base` is a folder or hub id; `corpus` lists text files, folders, and files of counts
    (`count_corpus`). New tokens are of the `script` ("cyrillic"; "auto": that of the corpus;
    "any"). With the method `continue`, text without the script is tokenised as before
    (`extend_bpe`); `merge` is the method of Tikhomirov & Chernyshev 2024, section 3.1.

    `changes.json` beside the tokenizer lists the new tokens and what they save on the corpus;
    `id_map.json` says where each id went. Before the folder takes its name, a sample of the corpus
    must survive encoding and decoding, and every loader must give the same ids.

    Raises `LepError` for an unknown method or no tokens, `OutputError` when `output` exists,
    `CorpusError` when the corpus yields fewer tokens, `TokenizerError` for a tokenizer that cannot
    be extended.
    """
    if method not in METHODS:
        raise LepError(f"unknown method '{method}': choose one of {', '.join(METHODS)}")
    source = _Source.open(base, corpus, output, tokens=new_tokens)
    parts = Parts.of(source.tokenizer)
    script = "any" if (method, script) == ("merge", "auto") else script
    words = count.count_words(source.tokenizer, source.corpus, script)
    extension = METHODS[method](parts, words, new_tokens)
    return source.publish(extension.parts.tokenizer, extension, verb="extend", method=method)


def prune_tokenizer(
    base: str | Path, corpus: Paths, vocab_size: int, output: str | Path, *, protect: Paths = ()
) -> TokenizerChange:
    """Write the tokenizer of `base` with its `vocab_size` most used tokens to `output`.

    Every token that the texts under `protect` or the chat template use is kept. `extend_tokenizer`
    says what else is written and raised.
    """
    source = _Source.open(base, corpus, output, tokens=vocab_size)
    parts = source.pruned(vocab_size, protect, in_place=False)
    return source.publish(parts.tokenizer, verb="prune", kept_tokens=vocab_size)


def optimize_tokenizer(
    base: str | Path,
    corpus: Paths,
    keep: int,
    vocab_size: int,
    output: str | Path,
    *,
    script: str = "auto",
    in_place: bool = False,
    protect: Paths = (),
) -> TokenizerChange:
    """Prune to `keep` tokens by use on the corpus, then extend to exactly `vocab_size`.

    With `in_place` the size does not change: new tokens take the ids of the dropped ones, every
    other id stays. See `prune_tokenizer` and `extend_tokenizer`.
    """
    source = _Source.open(base, corpus, output, tokens=keep)
    size = len(Vocabulary.of(source.tokenizer))
    if in_place and vocab_size != size:
        problem = f"in place the size stays {size:,}, but --vocab-size is {vocab_size:,}"
        raise TokenizerError(f"{problem}: give {size}")
    if keep >= vocab_size:
        raise TokenizerError(f"--keep {keep:,} of {vocab_size:,} leaves no room for new tokens")
    smaller = source.pruned(keep, protect, in_place=in_place)
    words = count.count_words(source.tokenizer, source.corpus, script)
    extension = extend_bpe(smaller, words, vocab_size - keep)
    options = {"verb": "optimize", "in_place": in_place, "kept_tokens": keep}
    return source.publish(extension.parts.tokenizer, extension, **options)


def train_tokenizer(
    base: str | Path, corpus: Paths, algorithm: str, vocab_size: int, output: str | Path
) -> TokenizerChange:
    """Write a new vocabulary learned on the corpus (`bpe`, `unigram`); see `extend_tokenizer`.

    Special tokens and chat template are those of `base`.
    """
    source = _Source.open(base, corpus, output, tokens=vocab_size)
    words = count.count_words(replacement_cutter(source.tokenizer), source.corpus, "any")
    if words.script is not None:
        raise CorpusError(
            f"the files of counts hold {words.script} words only, but a new vocabulary needs all: "
            "count again with --fresh"
        )
    trained = replacement(source.tokenizer, words, vocab_size, algorithm=algorithm)
    return source.publish(trained, verb="train", algorithm=algorithm)


def make_tokenizer(
    base: str | Path,
    corpus: Paths,
    output: str | Path,
    settings: TokenizerSettings | None = None,
    *,
    protect: Paths = (),
    **options: Any,
) -> TokenizerChange:
    """Extend, optimise or train a tokenizer, as the method of the settings says.

    `in-place` keeps every token that the texts under `protect` use.
    """
    settings = TokenizerSettings.given(settings, options)
    script, method, size = settings.script, settings.method, settings.size(0)
    if method == "in-place":
        size = len(Vocabulary.of(load_tokenizer(base).backend_tokenizer))
        kept = size - (settings.new_tokens or 0)
        return optimize_tokenizer(
            base, corpus, kept, size, output, script=script, in_place=True, protect=protect
        )
    if method == "optimize":
        return optimize_tokenizer(base, corpus, settings.keep or 0, size, output, script=script)
    if method in ALGORITHMS:
        return train_tokenizer(base, corpus, method, size, output)
    return extend_tokenizer(base, corpus, size, output, script=script, method=method)


def count_corpus(
    base: str | Path,
    corpus: Paths,
    output: str | Path,
    *,
    script: str = "auto",
    fresh: bool = False,
) -> CorpusCounts:
    """Write the word counts of one shard of a corpus to the file `output` (NAME.counts.zst).

    The counts of all shards, given to `extend_tokenizer` together, stand for their text. Counts
    for `train_tokenizer` are `fresh`: of all words, cut as a new vocabulary cuts them.
    """
    output = Path(output)
    if not output.name.endswith(suffix := count.COUNTS_SUFFIX):
        raise TokenizerError(f"the file of counts is {output}: its name must end in {suffix}")
    with publishing_file(output) as file:
        tokenizer = load_tokenizer(base).backend_tokenizer
        if fresh:
            tokenizer, script = replacement_cutter(tokenizer), "any"
        words = count.count_words(tokenizer, corpus, script)
        count.write_counts(file, words, count.WordCutter.of(tokenizer))
    return CorpusCounts(words, output)


def adopt_tokenizer(
    base: str | Path, tokenizer: Tokenizer, corpus: Paths, output: str | Path, **options: Any
) -> TokenizerChange:
    """Write a tokenizer that is there already in the place of the base's.

    Folder, records and checks are those of `extend_tokenizer`; `options` say where it is from.
    """
    source, parts = _Source.open(base, corpus, output, tokens=1), Parts.of(tokenizer)
    new = IdMap.between(Vocabulary.of(source.tokenizer), parts.vocabulary).new
    contents = {token.content: i for i in new if (token := parts.vocabulary.tokens[i])}
    return source.publish(tokenizer, Extension(parts, contents, None, []), **options)


@dataclass(frozen=True)
class _Source:
    """The tokenizer that a verb changes, the corpus that it learns from, and its output."""

    folder: Path
    loaded: PreTrainedTokenizerFast
    corpus: list[str | Path]
    output: Path

    @classmethod
    def open(cls, base: str | Path, corpus: Paths, output: str | Path, *, tokens: int) -> "_Source":
        if tokens < 1:
            raise LepError(f"the number of tokens is {tokens}: give at least 1")
        check_output(output := Path(output))
        folder = local_folder(base, weights=False)
        return cls(folder, load_tokenizer(folder), several(corpus), output)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.loaded.backend_tokenizer

    def pruned(self, keep: int, protect: Paths, *, in_place: bool) -> Parts:
        """The parts with the `keep` most used tokens, and those of the chat template."""
        parts = Parts.of(self.tokenizer)
        known, ids = len(parts.names) - parts.names.count(None), len(parts.names)
        if keep > known:
            problem = f"{keep:,} tokens are to stay, but only {known:,} exist"
            raise TokenizerError(f"{problem}: ask for fewer")
        counts = token_counts(self.tokenizer, stream_texts(self.corpus), ids)
        texts = stream_texts(paths) if (paths := several(protect)) else ()
        texts = itertools.chain(template_texts(self.loaded), texts)
        protected = token_counts(self.tokenizer, texts, ids) > 0
        return pruned(parts, kept_tokens(parts, counts, keep, protected), in_place=in_place)

    def publish(
        self, tokenizer: Tokenizer, extension: Extension | None = None, **options: Any
    ) -> TokenizerChange:
        """Check the new tokenizer on a sample of the corpus and write it."""
        texts = self._sample()
        before, after = Vocabulary.of(self.tokenizer), Vocabulary.of(tokenizer)
        _check_unused(before, after)
        tokens_before, decoded_before = _round_trips(self.tokenizer, texts)
        tokens_after, decoded_after = _round_trips(tokenizer, texts)
        for text, old, new in zip(texts, decoded_before, decoded_after, strict=True):
            if new not in (old, text):
                problem = f"the new tokenizer would not give back {text[:60]!r} as the old one does"
                raise TokenizerError(f"{problem}: its normaliser or decoder is not supported")
        id_map = IdMap.between(before, after)
        sample = {"texts": len(texts), "characters": sum(map(len, texts))}
        sample |= {"tokens_before": tokens_before, "tokens_after": tokens_after}
        change = TokenizerChange(
            output=self.output,
            options=options,
            **_learned(extension) if extension else {},
            size_before=before.count,
            size=after.count,
            kept=len(id_map.kept),
            moved=len(id_map.moved),
            dropped=len(id_map.dropped),
            new=len(id_map.new),
            corpus_sample=sample,
            loader_note=loader_note(self.folder, self.loaded),
        )
        with publishing(self.output) as partial:
            spec = json.loads(tokenizer.to_str())
            write_tokenizer(spec, self.folder, partial, moved=id_map.moved)
            write_json(partial / CHANGES_FILE, change.record(), indent=1)
            id_map.save(partial / ID_MAP_FILE)
            check_loaders(partial, [text[:2000] for text in texts[:20]])
        return change

    def _sample(self) -> list[str]:
        """Texts drawn from the whole corpus, each with the same probability, in its order."""
        paths = [path for path in self.corpus if not str(path).endswith(count.COUNTS_SUFFIX)]
        texts = (text[:SAMPLE_CHARACTERS] for text in stream_texts(paths)) if paths else ()
        numbered = ((unit_hash(f"sample/{i}"), i, text) for i, text in enumerate(texts))
        drawn = heapq.nsmallest(SAMPLE_TEXTS, numbered)
        return [text for _, _, text in sorted(drawn, key=itemgetter(1))]


def _learned(extension: Extension) -> dict[str, Any]:
    tokens = [token.decode(errors="backslashreplace") for token in extension.new]
    script, excluded = extension.script, extension.excluded
    return {"new_tokens": len(tokens), "script": script, "excluded": excluded, "tokens": tokens}


def _check_unused(before: Vocabulary, after: Vocabulary) -> None:
    """Raise `TokenizerError` if ids are still unused."""
    old, new = ({i for i, t in enumerate(v.tokens) if t is None} for v in (before, after))
    assert new <= old, f"ids came to be unused: {sorted(new - old)[:8]}"
    if new:
        raise TokenizerError(
            f"{len(old):,} ids of the base are unused, and new tokens fill them first: ask for at "
            f"least {len(old):,} new tokens, or {len(new):,} would still be unused"
        )


def _round_trips(tokenizer: Tokenizer, texts: list[str]) -> tuple[int, list[str]]:
    """The number of tokens of the texts, and each text decoded again."""
    ids = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    return sum(map(len, ids)), tokenizer.decode_batch(ids, skip_special_tokens=False)
