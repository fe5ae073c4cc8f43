"""The streams of a mixture: text, answers and practice as pieces, and pieces as training blocks."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.corpus.blocks import packed, token_pieces
from lep.corpus.files import Paths, corpus_files
from lep.corpus.mixture import Piece, endless, interleaved
from lep.corpus.read import read_messages
from lep.errors import CorpusError, note
from lep.publish import check_space
from lep.settings import STREAMS, JointSettings
from lep.training.data import batch_of, documents_for, generated, tokens_of
from lep.training.results import StreamRecord
from lep.training.samples import encode_records

ANSWER_FILE = "kept.jsonl"  # in the folders of lep answer and lep practice
OPTIONS = {  # of each stream
    "answers": "answers",
    "old_answers": "answers",
    "practice": "practice_tasks",
    "old_text": "old_text",
}
# Weight of a token in the loss where new rows train. Those of old tokens are frozen, and so the
# loss of old text is small, -log(1 - p) for the probability p of all new tokens, and hardly heard.
WEIGHTS = {"old_text": 10.0, "old_answers": 10.0}
LEAST_PIECE = 128  # tokens of text that see each other, however small a step is
OPEN_BLOCKS = 16  # few, so that pieces of all streams stay together
READ_AT_ONCE = 1_000  # blocks
MOST_PASSES = 8  # over answers or tasks that are fewer than their usual share
BYTES_OF_TOKEN = 4  # on the disk
LOSS, MASS = "loss of ", "new token mass"  # in the log
FEATURES = Features(
    {name: List(Value("int32")) for name in ("input_ids", "lengths", "prompt_tokens", "streams")}
)


def conversations(
    checkpoint: Checkpoint, settings: JointSettings, new_rows: set[int], block: int
) -> dict[str, list[Piece]]:
    """Answers and practice tasks by stream: old answers if no token of theirs is in `new_rows`.

    A note counts those that are longer than a block, which are left out. Raises `CorpusError` for
    conversations that cannot be used.
    """
    pieces: dict[str, list[Piece]] = {}
    for option in ("answers", "practice_tasks"):
        if path := getattr(settings, option):
            records = read_messages(_file(path))
            samples, longer = encode_records(checkpoint, records, block)
            if longer:
                note(f"{longer:,} of {len(records):,} {option} are longer than {block} tokens")
            for sample in samples:
                old = new_rows and new_rows.isdisjoint(sample.ids)
                name = "old_answers" if old else "answers" if option == "answers" else "practice"
                piece = Piece(sample.ids, sample.prompt_tokens, name)
                pieces.setdefault(name, []).append(piece)
    return pieces


def files_of(settings: JointSettings) -> list[Path]:
    """The files that a mixture reads besides the text of the new language."""
    conversations = [_file(p) for p in (settings.answers, settings.practice_tasks) if p]
    return corpus_files([*settings.old_text, *conversations])


def _file(path: str) -> Path:
    """A jsonl file of conversations, or that of a folder of lep answer or lep practice."""
    folder = Path(path)
    return folder / ANSWER_FILE if (folder / ANSWER_FILE).is_file() else folder


def shares_of(settings: JointSettings, streams: Iterable[str]) -> dict[str, float]:
    """The share of each stream that there is, relative to the others.

    Raises `CorpusError` for a share of an unknown stream or of one that is empty.
    """
    there = {"text", *streams}
    for name, share in settings.shares.items():
        if name not in STREAMS:
            raise CorpusError(
                f"shares names the stream '{name}': the streams are {', '.join(STREAMS)}"
            )
        if share and name not in there:
            option = OPTIONS[name]
            given = getattr(settings, option)
            reason = f"{option} ({given}) holds none" if given else f"no {option} is given"
            raise CorpusError(
                f"the stream {name} has a share of {share:g} and would be empty: {reason}; give "
                f"{option}, or leave {name} out of shares"
            )
    shares = {name: settings.shares.get(name, STREAMS[name]) for name in STREAMS if name in there}
    shares = {name: share for name, share in shares.items() if share}
    if not shares:
        raise CorpusError("all shares are 0: give at least one stream a share")
    whole = sum(shares.values())
    return {name: share / whole for name, share in shares.items()}


def mixed_blocks(
    checkpoint: Checkpoint,
    corpus: Paths,
    settings: JointSettings,
    new_rows: set[int],
    block: int,
    folder: Path,
    key: str,
) -> Dataset:
    """A whole training as memory-mapped blocks of at most `block` token ids.

    Each block lists its pieces: their lengths, the tokens at their beginning that are not learned,
    and their streams, as numbers in `STREAMS`. Streams that end before the training are repeated.
    """
    pieces = conversations(checkpoint, settings, new_rows, block)
    shares = shares_of(settings, [*pieces, *(["old_text"] if settings.old_text else [])])
    if settings.epochs and "text" not in shares:
        raise CorpusError("epochs are passes over text, whose share is 0: give tokens instead")
    if settings.tokens:
        lengths = {n: sum(map(len, p)) for n, p in pieces.items() if n not in settings.shares}
        shares = within_passes(shares, lengths, settings.tokens)
    paths: dict[str, Paths] = {"text": corpus, "old_text": list(settings.old_text)}
    texts = {
        name: _text_pieces(
            checkpoint, paths[name], settings, shares[name], block, folder / name, key
        )
        for name in paths
        if name in shares
    }
    pass_tokens = tokens_of(texts["text"]) / shares["text"] if settings.epochs else 0
    tokens = settings.budget(round(pass_tokens))
    check_space(folder, BYTES_OF_TOKEN * tokens)
    sources = _Sources(texts, pieces, settings.seed)
    numbers = {name: number for number, name in enumerate(STREAMS)}

    def generate() -> Iterator[dict[str, Any]]:
        streams = {name: endless(partial(sources.once, name)) for name in shares}
        mixed = interleaved(streams, shares, tokens)
        for inside in packed(mixed, block, OPEN_BLOCKS):
            yield {
                "input_ids": [token for piece in inside for token in piece.ids],
                "lengths": [len(piece) for piece in inside],
                "prompt_tokens": [piece.prompt_tokens for piece in inside],
                "streams": [numbers[piece.stream] for piece in inside],
            }

    return generated(generate, FEATURES, folder / "blocks", f"{key}-blocks")


def within_passes(
    shares: dict[str, float], lengths: dict[str, int], tokens: int
) -> dict[str, float]:
    """Shares for which no stream is read more than `MOST_PASSES` times in so many tokens.

    `lengths` are the tokens of the streams that may be short. What they do not fill goes to the
    other streams, in proportion; where there is no other stream, shares stay as they are.
    """
    most = {name: MOST_PASSES * length / tokens for name, length in lengths.items()}
    given, short = shares, dict[str, float]()
    while over := {n: most[n] for n, s in shares.items() if n in most and s > most[n]}:
        short |= over
        others = sum(share for name, share in given.items() if name not in short)
        if not others:
            return given
        left = (1 - sum(short.values())) / others
        shares = {n: short.get(n, share * left) for n, share in given.items()}
    for name, share in short.items():
        if share >= given[name]:  # it was to get what another stream leaves
            continue
        note(
            f"the stream {name} has only {lengths[name]:,} tokens and is read {MOST_PASSES} times: "
            f"its share is {share:.1%} instead of {given[name]:.0%}, the other streams get the rest"
        )
    return shares


def _text_pieces(
    checkpoint: Checkpoint,
    paths: Paths,
    settings: JointSettings,
    share: float,
    block: int,
    folder: Path,
    key: str,
) -> Dataset:
    """The documents of a text as pieces, none longer than the text's share of a step."""
    step = share * batch_of(settings) if settings.tokens else block
    longest = min(block, max(LEAST_PIECE, int(step)))
    tokens = max(1, round(share * settings.tokens)) if settings.tokens else None

    def generate() -> Iterator[dict[str, Any]]:
        documents = documents_for(checkpoint, paths, tokens)
        for ids in token_pieces(documents, checkpoint.tokenizer, longest):
            yield {"input_ids": ids}

    features = Features({"input_ids": List(Value("int32"))})
    return generated(generate, features, folder, f"{key}-{folder.name}")


@dataclass(frozen=True)
class _Sources:
    """Pieces of each stream: of text on the disk, of conversations in memory."""

    texts: dict[str, Dataset]
    conversations: dict[str, list[Piece]]
    seed: int

    def once(self, name: str, number: int) -> Iterator[Piece]:
        """All pieces of a stream, in the random order of its pass of this number."""
        seed = self.seed * 1_000_003 + [*STREAMS].index(name) * 10_007 + number
        if name in self.texts:
            for row in self.texts[name].shuffle(seed, keep_in_memory=True):
                yield Piece(row["input_ids"], 1, name)
        else:
            pieces = self.conversations[name]
            yield from random.Random(seed).sample(pieces, len(pieces))


@dataclass(frozen=True)
class Mixture:
    """What a mixture holds: by stream its tokens and those that are learned; by token id how often
    it is learned.
    """

    tokens: dict[str, int]
    learned: dict[str, int]
    counts: Counter[int]

    @classmethod
    def of(cls, blocks: Dataset) -> "Mixture":
        names, tokens, learned = [*STREAMS], Counter[str](), Counter[str]()
        counts = Counter[int]()
        for batch in blocks.iter(READ_AT_ONCE):
            for ids, *pieces in zip(
                *(batch[k] for k in ("input_ids", "lengths", "prompt_tokens", "streams")),
                strict=True,
            ):
                start = 0
                for length, prompt, stream in zip(*pieces, strict=True):
                    tokens[names[stream]] += length
                    learned[names[stream]] += length - prompt
                    counts.update(ids[start + prompt : start + length])
                    start += length
        there = [name for name in STREAMS if tokens[name]]
        return cls({n: tokens[n] for n in there}, {n: learned[n] for n in there}, counts)

    def records(self, history: list[dict[str, float]]) -> dict[str, StreamRecord]:
        """The record of each stream, with the losses of a Trainer's log."""
        whole = sum(self.tokens.values())
        return {
            name: StreamRecord(
                tokens, tokens / whole, self.learned[name], logged(history, LOSS + name)
            )
            for name, tokens in self.tokens.items()
        }

    def rarer_than(self, times: int, rows: Iterable[int]) -> int:
        """How many of the rows are learned less often than so many times."""
        return sum(self.counts[row] < times for row in rows)

    def median_count(self, rows: Iterable[int]) -> float | None:
        """How often a row is learned, in the median; None without rows."""
        counts = [self.counts[row] for row in rows]
        return median(counts) if counts else None


def stream_weights(train: str) -> Tensor:
    """The weight of a token in the loss by the number of its stream, (streams,) float32."""
    weights = WEIGHTS if train == "new_rows" else {}
    return torch.tensor([weights.get(name, 1.0) for name in STREAMS])


def logged(history: list[dict[str, float]], name: str) -> list[tuple[int, float]]:
    """Step and value of each entry of a Trainer's log."""
    return [(int(entry["step"]), entry[name]) for entry in history if name in entry]


class StreamSums:
    """Nats and learned tokens of each stream since the last report, and the probability that new
    tokens take on old text.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(len(STREAMS), 3, dtype=torch.float64)

    def add(self, streams: Tensor, details: Tensor) -> None:
        """Add tokens (n,) by the number of their stream; `details` (n, 2): nats, probability."""
        rows = torch.cat([details, torch.ones_like(details[:, :1])], 1).double().cpu()
        self.sums.index_add_(0, streams.cpu(), rows)

    def report(self, reduce: Any) -> dict[str, float]:
        """Mean nats a learned token, of all and by stream, and the probability of new tokens.

        Begins anew. `reduce` adds the sums of all processes.
        """
        sums = np.asarray(reduce(self.sums))
        self.sums = torch.zeros_like(self.sums)
        nats, _, count = sums.sum(0)
        entries = {"loss": float(nats / count)} if count else {}
        entries |= {
            LOSS + name: float(nats / count)
            for name, (nats, _, count) in zip(STREAMS, sums, strict=True)
            if count
        }
        _, mass, count = sums[[*STREAMS].index("old_text")]
        return entries | ({MASS: float(mass / count)} if count else {})
