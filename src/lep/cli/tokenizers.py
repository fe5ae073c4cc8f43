"""Commands that build and compare tokenizers."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lep.cli.common import (
    Corpus,
    Model,
    Output,
    Protect,
    Script,
    VocabSize,
    app,
    default,
    say,
    texts_of,
)
from lep.publish import check_folder
from lep.settings import TokenizerSettings

tokenizer_app = typer.Typer(help="Build tokenizers.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")

SCRIPT = default(TokenizerSettings, "script")


@tokenizer_app.command("extend")
def tokenizer_extend(
    base: Model,
    corpus: Corpus,
    new_tokens: Annotated[int, typer.Option(help="Tokens to add.")],
    output: Output,
    script: Script = SCRIPT,
    method: Annotated[str, typer.Option(help="continue, or merge: the paper's way.")] = default(
        TokenizerSettings, "method"
    ),
) -> None:
    """Add tokens learned on a corpus; text without the script is tokenised as before."""
    from lep.tokenizer.write import extend_tokenizer

    _say_changes(
        extend_tokenizer(base, list(corpus), new_tokens, output, script=script, method=method)
    )


@tokenizer_app.command("prune")
def tokenizer_prune(
    base: Model, corpus: Corpus, vocab_size: VocabSize, output: Output, protect: Protect = None
) -> None:
    """Drop the tokens that a corpus uses least."""
    from lep.tokenizer.write import prune_tokenizer

    _say_changes(
        prune_tokenizer(base, list(corpus), vocab_size, output, protect=list(protect or []))
    )


@tokenizer_app.command("optimize")
def tokenizer_optimize(
    base: Model,
    corpus: Corpus,
    keep: Annotated[int, typer.Option(help="Tokens to keep.")],
    vocab_size: VocabSize,
    output: Output,
    script: Script = SCRIPT,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="New tokens take the freed ids; same size.")
    ] = False,
    protect: Protect = None,
) -> None:
    """Prune to the most used tokens, then extend to an exact size."""
    from lep.tokenizer.write import optimize_tokenizer

    _say_changes(
        optimize_tokenizer(
            base,
            list(corpus),
            keep,
            vocab_size,
            output,
            script=script,
            in_place=in_place,
            protect=list(protect or []),
        )
    )


@tokenizer_app.command("train")
def tokenizer_train(
    base: Model,
    corpus: Corpus,
    algorithm: Annotated[str, typer.Option(help="bpe or unigram.")],
    vocab_size: VocabSize,
    output: Output,
) -> None:
    """Learn a new vocabulary; special tokens and chat template are those of the base."""
    from lep.tokenizer.write import train_tokenizer

    _say_changes(train_tokenizer(base, list(corpus), algorithm, vocab_size, output))


@tokenizer_app.command("count")
def tokenizer_count(
    base: Model,
    corpus: Corpus,
    output: Annotated[Path, typer.Option(help="File to write, NAME.counts.zst.")],
    script: Script = SCRIPT,
    fresh: Annotated[
        bool,
        typer.Option(help="For lep tokenizer train: all words, as a new vocabulary cuts them."),
    ] = False,
) -> None:
    """Count the words of one shard of a corpus; --corpus of extend (of train: --fresh) takes the files together."""
    from lep.tokenizer.write import count_corpus

    found = count_corpus(base, list(corpus), output, script=script, fresh=fresh)
    say(f"{len(found.counts):,} different words in {found.characters:,} characters: {output}")


@tokenizer_app.command("compare")
def tokenizer_compare(
    tokenizers: Annotated[
        list[str], typer.Argument(help="Tokenizers; the first is the reference.")
    ],
    text: Annotated[list[str], typer.Option(help="NAME=PATH of text; once for each language.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures here.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a page with curves here.")
    ] = None,
) -> None:
    """Compare tokenizers on texts: cost, reach, segmentation, speed."""
    from lep.tokenizer.compare import compare_tokenizers, comparison_table

    for place in (json_file, html_file):
        if place:
            check_folder(place)
    record = compare_tokenizers(tokenizers, texts_of(text) or {})
    if json_file:
        json_file.write_text(
            json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
    if html_file:
        from lep.report.page import write_comparison

        write_comparison(record, html_file)
    say(comparison_table(record))


def _say_changes(record: dict[str, Any]) -> None:
    """What became of a tokenizer, in two or three lines."""
    say(
        f"{record['size_before']:,} tokens before, {record['size']:,} after: {record['kept']:,} kept, "
        f"{record['moved']:,} moved, {record['new']:,} new, {record['dropped']:,} dropped"
    )
    if record.get("script"):
        say(
            f"new tokens are of the {record['script']} script; text without it is tokenised by the known tokens alone"
        )
    sample = record["corpus_sample"]
    if sample["characters"]:
        before, after = (
            sample["characters"] / sample[name] for name in ("tokens_before", "tokens_after")
        )
        say(f"symbols per token on the corpus: {before:.2f} before, {after:.2f} after")
    if record.get("excluded"):
        say(
            f"text with one of these characters may be tokenised differently: {' '.join(record['excluded'][:40])}"
        )
