"""Two published ways to train new rows, for `real.py`: Token Distillation and ALM.

The losses are theirs, as their own code has them; data, optimizer, schedule and rate are those of
the other arms, so that the losses alone differ. The original model is the teacher: it is the same
model on the old segmentation, since its own rows and its body are frozen.

* Token Distillation (arXiv:2505.20133): the squared distance of the last layer's states where both
  segmentations end, plus cross-entropy, scaled to be as large (aNTP); snippets of 50 tokens, chosen
  so that rare tokens come first. In a tied model one row serves input and output.
* ALM (arXiv:2503.20083): binary cross-entropy of chunk likelihoods, -[e^x y + (1 - e^x)
  log(1 - e^y)] with x and y the teacher's and the student's log-likelihood over 100; neighbouring
  chunks are one until the teacher expects a space with probability 0.1. Plus cross-entropy, its
  weights of tokens scaled to the same norm. On text and on the original's answers, half each.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lep.checkpoint.reader import Checkpoint
from lep.corpus.prepare import unit_hash
from lep.corpus.read import read_documents, read_messages
from lep.files import write_json
from lep.inference.likelihood import start_token
from lep.inference.next_byte import byte_offsets
from lep.publish import publishing
from lep.settings import NewRowsSettings
from lep.tokenizer.chat import chat_ids
from lep.training.loss import Details, linear_cross_entropy
from lep.training.optimizer import scale_epsilon
from lep.training.rates import relative_rates
from lep.training.samples import learned_ids
from lep.training.trainable_rows import new_token_rows, split_tables, stored_tables, table_layers
from lep.training.trainer import load_to_train, uses_bf16, write_trained

SNIPPET, BLOCK = 50, 256  # tokens
DOCUMENTS = 4_000  # that are read
TEMPERATURE, TINY, SPACE_PROBABILITY = 100.0, 1e-6, 0.1
BETAS, WARMUP, CLIP, SAVE_STEPS = (0.9, 0.98), 0.05, 1.0, 20


@dataclass(frozen=True)
class Sample:
    """One text in both segmentations.

    `ends` has the token of `old` that ends where a token of `new` does, from the one before the
    first learned token on.
    """

    new: list[int]
    old: list[int]
    first: int  # learned token of `new`
    ends: list[int]

    @property
    def labels(self) -> list[int]:
        return self.new[self.first :]


@dataclass(frozen=True)
class Corpus:
    """The start model's tokenizer, the original's, and what both read."""

    start: Checkpoint
    original: Checkpoint
    text: list[Path]
    answers: Path

    def aligned(self, new: list[int], old: list[int], first: int) -> Sample | None:
        """None where a token of the new segmentation ends inside of an old one."""
        places = {b: i for i, b in enumerate(byte_offsets(self.original.vocabulary, old))}
        ends = [places.get(b, 0) - 1 for b in byte_offsets(self.start.vocabulary, new)[first:]]
        return Sample(new, old, first, ends) if all(end >= 0 for end in ends) else None

    def texts(self, size: int) -> Iterator[Sample]:
        """Pieces of documents of about so many new-segmentation tokens, in an order by hash."""
        begin = [start_token(self.start.tokenizer)]
        documents = sorted(islice(read_documents(self.text), DOCUMENTS), key=_order)
        for document in documents:
            encoded = self.start.tokenizer(
                document.text, add_special_tokens=False, return_offsets_mapping=True
            )
            ids, places = encoded["input_ids"], encoded["offset_mapping"]
            for i in range(0, len(ids) - size + 1, size):
                text = document.text[places[i][0] : places[i + size - 1][1]]
                new, old = (
                    checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
                    for checkpoint in (self.start, self.original)
                )
                if sample := self.aligned(begin + new, begin + old, 1):
                    yield sample

    def conversations(self) -> Iterator[Sample]:
        for record in read_messages(self.answers):
            new, old = (learned_ids(c.tokenizer, record) for c in (self.start, self.original))
            if new is None or old is None:
                continue
            question = chat_ids(self.start.tokenizer, record["messages"][:-1], ask=True)
            if sample := self.aligned(new, old, len(question)):
                yield sample


def _order(document: Any) -> float:
    return unit_hash(document.id)


def snippets(corpus: Corpus, rows: set[int], tokens: int) -> list[Sample]:
    """Snippets of so many tokens together; those with new tokens that no other has come first."""
    pool = list(islice(corpus.texts(SNIPPET), 20 * tokens // SNIPPET))
    counts, chosen, wanted = Counter[int](), list[Sample](), 1
    while pool and SNIPPET * len(chosen) < tokens:
        rest = []
        for sample in pool:
            inside = rows.intersection(sample.new)
            if any(counts[index] < wanted for index in inside) and SNIPPET * len(chosen) < tokens:
                chosen.append(sample)
                counts.update(inside)
            else:
                rest.append(sample)
        if len(rest) == len(pool):
            break
        pool, wanted = rest, wanted + 1
    return chosen


def blocks_and_answers(corpus: Corpus, tokens: int) -> list[Sample]:
    """Text and answers, half of the tokens each; answers are repeated as often as that needs."""
    answers = list(corpus.conversations())
    each = tokens // 2
    text = list(islice(corpus.texts(BLOCK), each // BLOCK))
    repeats = each // max(1, sum(len(sample.new) for sample in answers)) + 1
    chosen, size = list[Sample](), 0
    for sample in answers * repeats:
        if size >= each:
            break
        chosen.append(sample)
        size += len(sample.new)
    return text + chosen


@dataclass(frozen=True)
class Student:
    """The model whose new rows train; on old ids, it is the teacher."""

    model: Any
    table: Any  # the output's
    space: Tensor  # old tokens that begin with white space, (n,) int64

    def states(self, ids: list[list[int]]) -> Tensor:
        """Last hidden states, (n, longest, h)."""
        padded = pad_sequence([torch.tensor(each) for each in ids], batch_first=True)
        decoder = self.model.get_decoder()
        return decoder(input_ids=padded, use_cache=False).last_hidden_state.float()

    def cross_entropy(self, hidden: Tensor, labels: Tensor, details: Details) -> Tensor:
        """Weighted sum in nats over the new vocabulary; fills in `details.values`."""
        tables, labels = [self.table.kept, self.table.trained()], self.table.position[labels]
        if torch.is_autocast_enabled("cpu"):
            hidden = hidden.to(torch.get_autocast_dtype("cpu"))
        with torch.autocast("cpu", enabled=False):
            return linear_cross_entropy(hidden, labels, tables, None, details)

    def nats(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Nats of each token, (n,), without gradients."""
        details = weighed(torch.ones(len(labels)))
        with torch.no_grad():
            self.cross_entropy(hidden.detach(), labels, details)
        return details.values[:, 0]


def weighed(weights: Tensor) -> Details:
    count = len(weights)
    return Details(torch.zeros(count, dtype=torch.int64), weights, torch.zeros(count, 2))


def _learned(batch: list[Sample]) -> tuple[Tensor, Tensor]:
    """Row and position of each learned token in the batch of new ids, (n,) each."""
    places = [(i, j) for i, s in enumerate(batch) for j in range(s.first, len(s.new))]
    rows, positions = torch.tensor(places).T
    return rows, positions


def token_distillation(student: Student, batch: list[Sample]) -> Tensor:
    rows, positions = _learned(batch)
    hidden = student.states([sample.new for sample in batch])
    with torch.no_grad():
        expected = student.states([sample.old for sample in batch])
    ends = torch.tensor([end for sample in batch for end in sample.ends[1:]])
    distance = (hidden[rows, positions] - expected[rows, ends]).square().mean()
    labels = torch.tensor([index for sample in batch for index in sample.labels])
    details = weighed(torch.full((len(labels),), 1 / len(labels)))
    nats = student.cross_entropy(hidden[rows, positions - 1], labels, details)
    return distance + nats * (distance.detach() / nats.detach())


def alm(student: Student, batch: list[Sample]) -> Tensor:
    rows, positions = _learned(batch)
    labels = torch.tensor([index for sample in batch for index in sample.labels])
    before = student.states([sample.new for sample in batch])[rows, positions - 1]
    chunk, teacher = _teacher_chunks(student, batch)
    leaf = student.nats(before, labels).requires_grad_()
    count = int(chunk.max()) + 1
    x = teacher / TEMPERATURE - TINY
    y = -torch.zeros(count).index_add(0, chunk, leaf) / TEMPERATURE - TINY
    loss = -(x.exp() * y + (1 - x.exp()) * torch.log(-torch.expm1(y))).mean()
    (weights,) = torch.autograd.grad(loss, leaf)
    plain = torch.full_like(weights, 1 / len(weights))
    weights = weights + plain * (weights.norm() / plain.norm())
    return student.cross_entropy(before, labels, weighed(weights))


@torch.no_grad()
def _teacher_chunks(student: Student, batch: list[Sample]) -> tuple[Tensor, Tensor]:
    """The chunk of each learned token, (n,) int64, and the teacher's log-likelihood of each chunk.

    Chunks never go beyond a text. Of the old vocabulary alone: the teacher has no new tokens.
    """
    states, table = student.states([sample.old for sample in batch]), student.table.kept.float()
    chunk, likelihoods = list[int](), list[float]()
    for row, sample in enumerate(batch):
        before = sample.ends[0]
        with torch.autocast("cpu", enabled=False):  # differences of logits, to more than bf16
            logits = states[row, before : len(sample.old)] @ table.T
        logs = logits.log_softmax(1)
        own = logs[:-1].gather(1, torch.tensor(sample.old[before + 1 :])[:, None])[:, 0]
        spaces = logs[:, student.space].logsumexp(1).exp()
        is_whole = True
        for begin, end in pairwise(sample.ends):
            if is_whole:
                likelihoods.append(0.0)
            likelihoods[-1] += float(own[begin - before : end - before].sum())
            chunk.append(len(likelihoods) - 1)
            is_whole = float(spaces[end - before]) > SPACE_PROBABILITY
    return torch.tensor(chunk), torch.tensor(likelihoods)


LOSSES: dict[str, Callable[[Student, list[Sample]], Tensor]] = {
    "token-distillation": token_distillation,
    "alm": alm,
}


def train(corpus: Corpus, name: str, output: Path, *, tokens: int, batch: int, seed: int) -> None:
    """Train the new rows with a loss of `LOSSES` on so many tokens, and write the model.

    `batch` is in tokens; the rates of the tables are those of `lep adapt`. An interrupted training
    continues.
    """
    checkpoint, settings = corpus.start, NewRowsSettings(tokens=tokens)
    model = load_to_train(checkpoint, settings).requires_grad_(False).eval()
    in_bf16 = torch.autocast("cpu", torch.bfloat16, enabled=uses_bf16(settings))
    rows = new_token_rows(checkpoint)
    tables = split_tables(model, rows)
    contents = corpus.original.vocabulary.contents
    spaces = [index for index, content in enumerate(contents) if content and content[:1].isspace()]
    student = Student(model, table_layers(model)["output"].table, torch.tensor(spaces))
    new = set(rows["input"].tolist())
    is_distilled = name == "token-distillation"
    samples = snippets(corpus, new, tokens) if is_distilled else blocks_and_answers(corpus, tokens)
    random.Random(seed).shuffle(samples)
    steps = list(_steps(samples, batch))
    with TemporaryDirectory() as folder:
        rates = relative_rates(checkpoint, rows, settings, samples[0].new, Path(folder)) or {}
    groups = [{"params": [*t.parameters()], "lr": rates[kind].rate} for kind, t in tables.items()]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0)
    optimizer.register_step_pre_hook(scale_epsilon)
    share = partial(rate_share, steps=len(steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    run = Run(tables, optimizer, schedule, output.with_suffix(".state"))
    run.load()
    for step in steps[run.done :]:
        with in_bf16:
            loss = LOSSES[name](student, step)
        run.step(loss)
    run.save()
    with publishing(output) as folder:
        write_trained(checkpoint, stored_tables(checkpoint, rows, model), folder)
        count = sum(len(sample.new) for sample in samples)
        record = {"tokens": count, "steps": len(steps), "seconds": round(run.seconds, 1)}
        write_json(folder / "lep" / "anchor.json", record | {"losses": run.losses}, indent=1)
    run.file.unlink(missing_ok=True)


def rate_share(step: int, steps: int) -> float:
    """The share of the peak rate in a step: a short rise, and a cosine to nothing."""
    rise = math.ceil(WARMUP * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (steps - rise + 1)))


def _steps(samples: list[Sample], tokens: int) -> Iterator[list[Sample]]:
    """Samples of about so many tokens together, in their order."""
    step, size = list[Sample](), 0
    for sample in samples:
        step.append(sample)
        size += len(sample.new)
        if size >= tokens:
            yield step
            step, size = [], 0
    if step:
        yield step


class Run:
    """Tables, optimizer and schedule of a training, kept in a file."""

    def __init__(self, tables: dict[str, Any], optimizer: Any, schedule: Any, file: Path) -> None:
        self.tables, self.optimizer, self.schedule, self.file = tables, optimizer, schedule, file
        self.losses = list[float]()
        self.seconds = 0.0
        self.began = time.monotonic()

    @property
    def done(self) -> int:
        return len(self.losses)

    def step(self, loss: Tensor) -> None:
        loss.backward()
        trained = [p for table in self.tables.values() for p in table.parameters()]
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.losses.append(loss.item())
        if self.done % SAVE_STEPS == 0:
            self.save()

    def save(self) -> None:
        now = time.monotonic()
        self.seconds, self.began = self.seconds + now - self.began, now
        parts = {kind: table.state_dict() for kind, table in self.tables.items()}
        others = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        numbers = {"losses": self.losses, "seconds": self.seconds}
        partial = self.file.with_suffix(".part")
        torch.save({"tables": parts, **others, **numbers}, partial)
        partial.rename(self.file)

    def load(self) -> None:
        if not self.file.exists():
            return
        saved = torch.load(self.file, weights_only=True)
        for kind, table in self.tables.items():
            table.load_state_dict(saved["tables"][kind])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.losses, self.seconds = saved["losses"], saved["seconds"]
