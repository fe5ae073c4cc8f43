"""How new rows are filled, their norms, and the source rows that training never reached."""

import shutil
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from lep.checkpoint.reader import Checkpoint
from lep.embedding import METHODS, calibrated, undertrained
from lep.embedding.norms import row_norms
from lep.mapping import VocabularyMapping
from lep.settings import InitSettings
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.transfer.family import Family
from lep.transfer.initialise import initialise
from lep.transfer.mappings import MAPPING_FILES, adapted_mappings, build_mapping, unused_rows

LENGTHS = [1, 2, 3, 0]  # bytes of four source tokens; the last is special


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("mean", ([0, 2, 2], [1 / 3] * 3)),
        ("length-weighted", ([0, 2, 2], [1 / 7, 3 / 7, 3 / 7])),
        ("first", ([0], [1.0])),
        ("last", ([2], [1.0])),
    ],
)
def test_worked_examples(method: str, expected: tuple[list[int], list[float]]) -> None:
    assert METHODS[method]([0, 2, 2], LENGTHS, Random(0)) == expected


def test_the_random_control_takes_any_ordinary_row() -> None:
    rows = [METHODS["random"]([0], LENGTHS, Random(seed))[0][0] for seed in range(60)]
    assert set(rows) == {0, 1, 2}
    assert METHODS["random"]([0], LENGTHS, Random(5)) == METHODS["random"]([1], LENGTHS, Random(5))


@pytest.mark.parametrize("method", METHODS)
def test_known_rows_are_copied_whatever_the_method(method: str, pair, tmp_path) -> None:
    settings = InitSettings(method=method, output_method="first", calibrate_norms=True)
    result = initialise(pair["base"], pair["tokenizer"], tmp_path / "out", settings)
    before, after = (load_file(p / "model.safetensors") for p in (pair["base"], tmp_path / "out"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(before[name], after[name][:500])
    assert (result.copied, result.mixed) == (500, 100)
    mappings = adapted_mappings(Checkpoint(pair["base"]), Checkpoint(tmp_path / "out"))
    torch.testing.assert_close(
        mappings["output"](before["lm_head.weight"]), after["lm_head.weight"]
    )
    assert (mappings["output"].offsets.diff()[500:] == 1).all()
    assert not mappings["output"].copies[500:].any()  # one source row, but another token
    assert (tmp_path / "out" / MAPPING_FILES["output"]).exists()


def test_new_rows_are_as_long_as_those_of_their_script(pair, tmp_path) -> None:
    initialise(
        pair["base"], pair["tokenizer"], tmp_path / "out", InitSettings(calibrate_norms=True)
    )
    base = Checkpoint(pair["base"])
    tokens = base.vocabulary.tokens
    cyrillic = [
        i
        for i, t in enumerate(tokens)
        if t and any("а" <= c <= "я" for c in t.content.decode(errors="ignore").lower())
    ]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        wanted = base.tensor(name)[cyrillic].norm(dim=1).median().item()
        norms = stored[name][500:].norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, wanted), rtol=2e-3, atol=0)


def test_nothing_alike_nothing_scaled() -> None:
    mapping = VocabularyMapping.from_rows([[0], [0, 1]], 2)
    assert calibrated(mapping, torch.randn(2, 3), torch.zeros(2, dtype=torch.bool)).equal(mapping)


def test_rows_that_training_never_reached() -> None:
    torch.manual_seed(0)
    table = torch.randn(100, 16)
    unused = torch.zeros(100, dtype=torch.bool)
    unused[:6] = True
    table[:6] = 3 + 0.01 * torch.randn(6, 16)
    table[40] = table[:6].mean(0)  # an unused token ends up near them
    table[50] = 0
    assert undertrained(table, unused).nonzero().flatten().tolist()[-2:] == [40, 50]
    table[:6] = torch.randn(6, 16)  # spread out, they show nothing
    assert undertrained(table, unused).nonzero().flatten().tolist() == [50]
    none = torch.zeros(100, dtype=torch.bool)
    assert undertrained(table, none).nonzero().flatten().tolist() == [50]
    torch.testing.assert_close(row_norms(table), table.norm(dim=1))


def test_untrained_rows_stay_out_of_fits(pair, adapted, tmp_path) -> None:
    shutil.copytree(pair["base"], tmp_path / "base")
    base = Checkpoint(tmp_path / "base")
    unused = unused_rows(base, 500)
    unused_bytes = unused.nonzero().flatten().tolist()
    assert all(
        base.vocabulary.tokens[i].content[0] in {0xC0, 0xC1, *range(0xF5, 256)}
        for i in unused_bytes
    )
    stored = load_file(tmp_path / "base" / "model.safetensors")
    victim = 300
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        stored[name][unused_bytes] = 5 + 1e-3 * torch.randn(len(unused_bytes), 32)
        stored[name][victim] = stored[name][unused_bytes].mean(0)
    save_file(stored, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    family = Family.open(tmp_path / "base", pair["instruct"], adapted)
    mapping = family.mappings["input"]
    rows = family.fit_rows("input")
    descendants = [
        t for t in range(600) if victim in mapping.select(torch.tensor([t])).indices.tolist()
    ]
    assert victim in descendants
    assert not rows[descendants].any()
    assert not rows[unused_bytes].any()
    assert rows.sum() > 400


def test_methods_fill_new_rows_from_the_pieces_of_their_tokens(pair) -> None:
    source = Checkpoint(pair["base"]).vocabulary
    target = Vocabulary.of(load_tokenizer(pair["tokenizer"]))
    pieces = source.pieces(target)
    for method in ("mean", "length-weighted", "first", "last"):
        mapping = build_mapping(source, target, 500, method)
        for row in mapping.new_rows().tolist():
            sources = mapping.select(torch.tensor([row])).indices.tolist()
            first, last = pieces[row][:1], pieces[row][-1:]
            assert sources == {"first": first, "last": last}.get(method, pieces[row])
    assert build_mapping(source, source, 500, "random").equal(build_mapping(source, source, 500))
