"""Verbs that build and compare tokenizers."""

from pathlib import Path
from typing import Any, Literal

import typer

import lep
from lep.cli.verb import Values, app, verb
from lep.publish import publish_texts
from lep.settings import Texts, TokenizerSettings

tokenizer = typer.Typer(help="Build and compare tokenizers.", no_args_is_help=True)
app.add_typer(tokenizer, name="tokenizer")
Extension = Literal["continue", "merge"]
Algorithm = Literal["bpe", "unigram"]


@verb(tokenizer, like=TokenizerSettings, method="How to extend; merge is the paper's way.")
def extend(
    base: str, corpus: list[str], new_tokens: int, output: Path, script: str, method: Extension
) -> Any:
    """Add tokens learned on a corpus; text in other scripts is tokenised as before."""
    return lep.extend_tokenizer(base, corpus, new_tokens, output, script=script, method=method)


@verb(tokenizer, like=TokenizerSettings)
def prune(base: str, corpus: list[str], vocab_size: int, output: Path, protect: Values = ()) -> Any:
    """Drop the tokens that a corpus uses least."""
    return lep.prune_tokenizer(base, corpus, vocab_size, output, protect=protect)


@verb(tokenizer, like=TokenizerSettings)
def optimize(
    base: str,
    corpus: list[str],
    keep: int,
    vocab_size: int,
    output: Path,
    script: str,
    in_place: bool = False,
    protect: Values = (),
) -> Any:
    """Prune to the most used tokens, then extend to an exact size."""
    options = {"script": script, "in_place": in_place, "protect": protect}
    return lep.optimize_tokenizer(base, corpus, keep, vocab_size, output, **options)


@verb(tokenizer, like=TokenizerSettings)
def train(base: str, corpus: list[str], algorithm: Algorithm, vocab_size: int, output: Path) -> Any:
    """Learn a new vocabulary; special tokens and chat template are those of the base."""
    return lep.train_tokenizer(base, corpus, algorithm, vocab_size, output)


@verb(tokenizer, like=TokenizerSettings, output="File to write, NAME.counts.zst.")
def count(base: str, corpus: list[str], output: Path, script: str, fresh: bool = False) -> Any:
    """Count the words of a part of a corpus; extend and train take such files as --corpus."""
    return lep.count_corpus(base, corpus, output, script=script, fresh=fresh)


@verb(tokenizer, text="NAME=PATH: text to tokenise (default: none; one is needed).")
def compare(
    tokenizers: list[str],
    /,
    text: Texts,
    json_file: Path | None = None,
    html_file: Path | None = None,
) -> Any:
    """Compare tokenizers on text: cost, reach, segmentation, speed."""
    comparison = lep.compare_tokenizers(tokenizers, text)
    texts = {json_file: comparison.as_json()} if json_file else {}
    if html_file:
        from lep.report.page import comparison_page

        texts[html_file] = comparison_page(comparison)
    publish_texts(texts)
    return comparison
