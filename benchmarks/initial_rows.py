"""Rows of new tokens from the states of a model that reads them in pieces, and from a donor model.

The arms `hidden`, `split` and `omp` of initialisations.py, which says what they are.
"""

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import regex
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from lep.checkpoint.reader import Checkpoint
from lep.corpus.prepare import unit_hash
from lep.corpus.read import read_documents
from lep.inference.likelihood import start_token
from lep.inference.models import load_model
from lep.tokenizer.vocabulary import Vocabulary
from lep.transfer.mappings import saved_mappings

LAYERS = (0.07, 0.13, 0.2, 0.3)  # of the depth: where a state may be taken
SHARES = (0.25, 0.5, 1.0)  # of what states add to the mean
SHORTEST_WORD, CONTEXTS, BATCH, RIDGE = 3, 2, 16, 1e-2
NOT_LATIN = regex.compile(r"[^\P{L}\p{Latin}]")
Mark = tuple[int, int, int]  # first position of a token's pieces, the last one, the token
Sample = tuple[list[int], list[Mark]]
# New rows by the name of what is to be chosen, each (new tokens, h) float32; and facts.
Candidates = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True)
class Experiment:
    """The model, its new vocabulary, and the text."""

    arguments: argparse.Namespace
    model: Path
    mean: Path  # the model with the new tokenizer and means of pieces

    @cached_property
    def before(self) -> Checkpoint:
        return Checkpoint(self.model)

    @cached_property
    def after(self) -> Checkpoint:
        return Checkpoint(self.mean)

    @cached_property
    def new(self) -> Tensor:
        """The rows of new tokens, (n,) int64."""
        mappings = saved_mappings(self.after)
        assert mappings
        return mappings["input"].new_rows()

    @cached_property
    def pieces(self) -> dict[int, list[int]]:
        """The old tokens that spell each token, by its id in the new vocabulary."""
        return dict(enumerate(self.before.vocabulary.pieces(self.after.vocabulary)))

    @cached_property
    def known_rows(self) -> Tensor:
        """The input table before, (V, h) float32."""
        return self.before.tensor(self.before.tables.input).float()

    @cached_property
    def mean_rows(self) -> Tensor:
        return self.after.tensor(self.after.tables.input)[self.new].float()

    @cached_property
    def usual_norm(self) -> float:
        norms = self.known_rows.norm(dim=1)
        return float(norms[norms > 0].median())

    def scaled(self, rows: Tensor) -> dict[str, Tensor]:
        """The rows as they are, and their directions with each of two norms."""
        units = normalize(rows, dim=1)
        return {
            "norm as it is": rows,
            "norm of known rows": units * self.usual_norm,
            "norm of the mean": units * self.mean_rows.norm(dim=1, keepdim=True),
        }

    def text(self, language: str, part: str) -> list[Path]:
        return [self.arguments.corpus / f"{language}.{part}.jsonl"]


def new_samples(experiment: Experiment, tokens: int) -> list[Sample]:
    """Text of the new language in old tokens, about `tokens`, and where new ones end in it.

    Passages are taken for tokens that were not in enough of them yet; a token that is in none is
    read alone.
    """
    new, start = set(experiment.new.tolist()), start_token(experiment.before.tokenizer)
    counts: Counter[int] = Counter()
    samples: list[Sample] = []
    total = 0
    for text in _passages(experiment.text(experiment.arguments.new, "train")):
        ids = experiment.after.tokenizer(text, add_special_tokens=False)["input_ids"]
        if sum(token in new and counts[token] < CONTEXTS for token in {*ids}) < 3:
            continue
        sample: Sample = ([start], [])
        for token in ids:
            first = len(sample[0])
            sample[0].extend(experiment.pieces[token])
            if token in new:
                sample[1].append((first, len(sample[0]) - 1, token))
                counts[token] += 1
        samples.append(sample)
        total += len(sample[0])
        if total >= tokens:
            break
    alone = [token for token in sorted(new) if not counts[token]]
    lone = [[start, *experiment.pieces[token]] for token in alone]
    return samples + [
        (ids, [(1, len(ids) - 1, token)]) for ids, token in zip(lone, alone, strict=True)
    ]


def old_samples(experiment: Experiment, tokens: int, *, split: bool) -> list[Sample]:
    """Text of the old language, about `tokens`, and where its words of one token end in it.

    With `split`, every other one is read in pieces of one to three letters, and counts only then.
    """
    vocabulary, rng = experiment.before.vocabulary, random.Random(0)
    contents = [content or b"" for content in vocabulary.contents]
    word = regex.compile(rf" \p{{L}}{{{SHORTEST_WORD},}}")
    words = [bool(word.fullmatch(c.decode(errors="replace"))) for c in contents]
    start = start_token(experiment.before.tokenizer)
    samples: list[Sample] = []
    total = 0
    for text in _passages(experiment.text(experiment.arguments.old, "train")):
        ids = experiment.before.tokenizer(text, add_special_tokens=False)["input_ids"]
        sample: Sample = ([start], [])
        for token, following in zip(ids, [*ids[1:], None], strict=True):
            ends = following is None or not contents[following][:1].isalpha()
            whole = words[token] and ends
            pieces = [token]
            if whole and split and rng.random() < 0.5:
                pieces = split_word(vocabulary, contents[token].decode(), rng)
            if whole and (len(pieces) > 1 or not split):
                sample[1].append((len(sample[0]), len(sample[0]) + len(pieces) - 1, token))
            sample[0].extend(pieces)
        samples.append(sample)
        total += len(sample[0])
        if total >= tokens:
            break
    return samples


def split_word(vocabulary: Vocabulary, word: str, rng: random.Random) -> list[int]:
    """The tokens of parts of one to three characters."""
    pieces: list[int] = []
    while word:
        size = rng.randint(1, 3)
        pieces += vocabulary.spell(word[:size].encode())
        word = word[size:]
    return pieces


def _passages(paths: list[Path], characters: int = 200) -> Iterator[str]:
    """One from each document, from its middle, in an order fixed by hash."""
    for document in sorted(read_documents(paths), key=lambda d: (unit_hash(d.id), d.id)):
        middle = max(0, len(document.text) // 2 - characters)
        passage = document.text[middle : middle + characters]
        if " " in passage:
            yield passage.split(" ", 1)[1]  # not from within a word


@dataclass(frozen=True)
class States:
    """States at the last pieces of tokens, after some layers."""

    tokens: list[int]  # (n,)
    pieces: list[list[int]]
    by_layer: dict[int, Tensor]  # (n, h) float32


@torch.inference_mode()
def states(model: Any, samples: list[Sample], layers: list[int]) -> States:
    """The states after each of `layers`, which count from 1; those after the last do not run."""
    decoder = model.get_decoder()
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    ordered = sorted((s for s in samples if s[1]), key=lambda sample: -len(sample[0]))
    every, decoder.layers = decoder.layers, decoder.layers[: max(layers)]
    current: dict[int, Tensor] = {}

    def keeping(layer: int) -> Callable[..., None]:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            current[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    hooks = [every[layer - 1].register_forward_hook(keeping(layer)) for layer in layers]
    try:
        for first in range(0, len(ordered), BATCH):
            batch = ordered[first : first + BATCH]
            inputs = pad_sequence([torch.tensor(ids) for ids, _ in batch], batch_first=True)
            decoder(input_ids=inputs.to(model.device), use_cache=False)
            rows = [row for row, (_, marks) in enumerate(batch) for _ in marks]
            columns = [last for _, marks in batch for _, last, _ in marks]
            for layer in layers:
                kept[layer].append(current[layer][rows, columns].float().cpu())
    finally:
        decoder.layers = every
        for hook in hooks:
            hook.remove()
    marks = [(ids, mark) for ids, marks in ordered for mark in marks]
    return States(
        [token for _, (_, _, token) in marks],
        [ids[first : last + 1] for ids, (first, last, _) in marks],
        {layer: torch.cat(parts) for layer, parts in kept.items()},
    )


class LinearMap:
    """Least squares with a constant, columns scaled to unit variance, and a small ridge."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        inputs, targets = inputs.double(), targets.double()
        self.center, self.scale = inputs.mean(0), inputs.std(0).clamp_min(1e-12)
        self.offset = targets.mean(0)
        x = (inputs - self.center) / self.scale
        penalty = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
        self.weight = torch.linalg.solve(x.T @ x + penalty, x.T @ (targets - self.offset))

    def __call__(self, inputs: Tensor) -> Tensor:
        x = (inputs.double() - self.center) / self.scale
        return (x @ self.weight + self.offset).float()


def from_states(experiment: Experiment, *, split: bool, added: bool = False) -> Candidates:
    """Rows from the states of each layer; with `added`, what they add to the mean of the pieces."""
    a = experiment.arguments
    model, _ = load_model(experiment.model)
    depth = len(model.get_decoder().layers)
    layers = sorted({max(1, round(share * depth)) for share in LAYERS})
    known = states(model, old_samples(experiment, a.state_tokens, split=split), layers)
    new = states(model, new_samples(experiment, a.state_tokens), layers)
    del model
    targets = experiment.known_rows[known.tokens]
    known_means, new_means = (means(experiment, of) for of in (known, new))
    index = {token: row for row, token in enumerate(experiment.new.tolist())}
    of_row = torch.tensor([index[token] for token in new.tokens])
    counts = torch.bincount(of_row, minlength=len(index))[:, None]
    candidates, fits = {}, {}
    for layer in layers:
        inputs, state = known.by_layer[layer], new.by_layer[layer]
        if split:
            inputs, state = torch.cat([inputs, known_means], 1), torch.cat([state, new_means], 1)
        fitted = LinearMap(inputs, targets - known_means * added)
        predicted = fitted(inputs) + known_means * added
        fits[layer] = float(torch.cosine_similarity(predicted, targets).mean())
        sums = torch.zeros_like(experiment.mean_rows).index_add_(0, of_row, fitted(state))
        rows = sums / counts
        if added:
            for share in SHARES:
                candidates[f"layer {layer}, {share}"] = experiment.mean_rows + share * rows
        else:
            for norm, scaled in experiment.scaled(rows).items():
                candidates[f"layer {layer}, {norm}"] = scaled
    words, contexts = len(known.tokens), len(new.tokens)
    return candidates, {"cosine": fits, "words": words, "contexts": contexts}


def means(experiment: Experiment, of: States) -> Tensor:
    """The means of the pieces' rows, (n, h) float32."""
    return torch.stack([experiment.known_rows[pieces].mean(0) for pieces in of.pieces])


def pursuit(targets: Tensor, atoms: Tensor, nonzero: int) -> tuple[Tensor, Tensor]:
    """Indices and coefficients, both (n, nonzero), of atoms (m, h) that sum to targets (n, h).

    Orthogonal matching pursuit: the atom that is most like what is left, then all coefficients
    anew.
    """
    units = normalize(atoms, dim=1)
    picked = torch.empty(len(targets), 0, dtype=torch.int64)
    rest, coefficients = targets.clone(), targets[:, :0]
    for _ in range(nonzero):
        best = (rest @ units.T).abs().scatter_(1, picked, -1).argmax(1, keepdim=True)
        picked = torch.cat([picked, best], 1)
        basis = atoms[picked]  # (n, k, h)
        gram = basis @ basis.mT
        size = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        gram = gram + 1e-6 * size * torch.eye(gram.shape[1])
        coefficients = torch.linalg.solve(gram, (basis @ targets[:, :, None]))[:, :, 0]
        rest = targets - (coefficients[:, None] @ basis)[:, 0]
    return picked, coefficients


def from_donor(experiment: Experiment) -> Candidates:
    """Rows after the donor's."""
    a = experiment.arguments
    if not a.donor:
        raise SystemExit("omp needs a model that has some of the new tokens: give --donor FOLDER")
    donor, rng = Checkpoint(a.donor).check(), random.Random(0)
    table, vocabulary = donor.tensor(donor.tables.input), experiment.before.vocabulary
    shared = [
        (index, row)
        for index, token in enumerate(vocabulary.tokens)
        if token and not token.added and (row := donor.vocabulary.find(token)) is not None
    ]
    foreign = [pair for pair in shared if NOT_LATIN.search(_text(vocabulary, pair[0]))]
    others = sorted({*shared} - {*foreign})
    anchors = foreign + rng.sample(others, max(0, min(len(others), a.anchors - len(foreign))))
    at_model, at_donor = (torch.tensor(side) for side in zip(*anchors, strict=True))
    new = [experiment.after.vocabulary.tokens[token] for token in experiment.new.tolist()]
    donor_rows = {
        row: index
        for row, token in enumerate(new)
        if token and (index := donor.vocabulary.find(token)) is not None
    }
    if not donor_rows:
        raise SystemExit(f"{a.donor} has none of the new tokens: give another model as --donor")
    rows, atoms = experiment.mean_rows.clone(), table[at_donor].float()
    errors = []
    for part in torch.tensor([*donor_rows]).split(256):
        targets = table[[donor_rows[row] for row in part.tolist()]].float()
        picked, coefficients = pursuit(targets, atoms, a.nonzero)
        rebuilt = (coefficients[:, :, None] * atoms[picked]).sum(1)
        errors.append((rebuilt - targets).norm(dim=1) / targets.norm(dim=1))
        rows[part] = (coefficients[:, :, None] * experiment.known_rows[at_model][picked]).sum(1)
    return experiment.scaled(rows), {
        "anchors": len(anchors),
        "not Latin": len(foreign),
        "tokens of the donor": len(donor_rows),
        "error": float(torch.cat(errors).mean()),
        "norm": float(rows[[*donor_rows]].norm(dim=1).median()),
        "norm of known rows": experiment.usual_norm,
    }


def _text(vocabulary: Vocabulary, index: int) -> str:
    return (vocabulary.contents[index] or b"").decode(errors="ignore")
