"""Commands that build and compare tokenizers."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

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

    say(str(extend_tokenizer(base, corpus, new_tokens, output, script=script, method=method)))


@tokenizer_app.command("prune")
def tokenizer_prune(
    base: Model, corpus: Corpus, vocab_size: VocabSize, output: Output, protect: Protect = None
) -> None:
    """Drop the tokens that a corpus uses least."""
    from lep.tokenizer.write import prune_tokenizer

    say(str(prune_tokenizer(base, corpus, vocab_size, output, protect=protect or [])))


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

    result = optimize_tokenizer(
        base,
        corpus,
        keep,
        vocab_size,
        output,
        script=script,
        in_place=in_place,
        protect=protect or [],
    )
    say(str(result))


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

    say(str(train_tokenizer(base, corpus, algorithm, vocab_size, output)))


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

    say(str(count_corpus(base, corpus, output, script=script, fresh=fresh)))


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
    from lep.tokenizer.compare import compare_tokenizers

    for path in (json_file, html_file):
        if path:
            check_folder(path)
    comparison = compare_tokenizers(tokenizers, texts_of(text) or {})
    if json_file:
        json_file.write_text(
            json.dumps(asdict(comparison), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
    if html_file:
        from lep.report.tokenizers import write_comparison

        write_comparison(comparison, html_file)
    say(str(comparison))
