"""`VocabularyMapping` against its dense matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lep.mapping import VocabularyMapping
from lep.transfer.mappings import read_mapping, write_mapping


def dense(mapping: VocabularyMapping) -> torch.Tensor:
    """The mapping as a matrix, slow and obvious."""
    matrix = torch.zeros(mapping.target_size, mapping.source_size, dtype=torch.float64)
    for row in range(mapping.target_size):
        for entry in range(int(mapping.offsets[row]), int(mapping.offsets[row + 1])):
            matrix[row, mapping.indices[entry]] += mapping.weights[entry]
    return matrix


rows_strategy = st.lists(
    st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=12
)


@given(rows_strategy)
def test_equals_the_dense_product(rows: list[list[int]]) -> None:
    mapping = VocabularyMapping.from_rows(rows, source_size=10)
    table = torch.randn(10, 3, dtype=torch.float64)
    torch.testing.assert_close(mapping(table), dense(mapping) @ table)
    assert torch.allclose(dense(mapping).sum(1), torch.ones(len(rows), dtype=torch.float64))


@given(rows_strategy, st.data())
def test_selected_rows_are_those_rows(rows: list[list[int]], data: st.DataObject) -> None:
    mapping = VocabularyMapping.from_rows(rows, source_size=10)
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1)))
    table = torch.randn(10, 2, dtype=torch.float64)
    assert torch.equal(mapping.select(chosen)(table), mapping(table)[chosen])


def test_copies_in_the_middle_and_at_the_end() -> None:
    mapping = VocabularyMapping.from_rows([[0], [0, 1], [2]], 3)
    result = mapping.with_copies({3: 4, 2: 3}, 5).check()
    expected = [[1, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert dense(result).tolist() == expected
    assert result.copies.tolist() == [True, False, True, True]
    assert mapping.with_copies({}, 2).equal(mapping)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_identity_is_bit_exact(dtype: torch.dtype) -> None:
    table = torch.randn(50, 8).to(dtype)
    table[7] = -0.0
    identity = VocabularyMapping.from_rows([[i] for i in range(50)], source_size=50)
    assert torch.equal(identity(table).view(torch.uint8), table.view(torch.uint8))
    assert identity.kept()[0].tolist() == list(range(50))


def test_worked_example_of_the_paper() -> None:
    # Eq. 1-2: a token starts as the mean of its old tokens; a repeated one counts twice.
    table = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    mapping = VocabularyMapping.from_rows([[1], [0, 1], [0, 0, 1]], source_size=2)
    assert mapping(table).tolist() == [
        [3.0, 4.0],
        [2.0, 2.0],
        [pytest.approx(5 / 3), pytest.approx(4 / 3)],
    ]
    assert mapping.kept()[0].tolist() == [0]
    assert mapping.kept()[1].tolist() == [1]


def test_many_rows_cross_the_chunk_border(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lep.mapping.CHUNK_BYTES", 3 * 4 * 4)
    rows = [[i % 5, (i * 3) % 5] for i in range(11)]
    mapping = VocabularyMapping.from_rows(rows, source_size=5)
    table = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(mapping(table), dense(mapping) @ table)


def test_save_and_load(tmp_path) -> None:
    mapping = VocabularyMapping.from_rows([[0], [0, 1, 2]], source_size=3)
    write_mapping(mapping, tmp_path / "mapping.safetensors")
    for _ in range(5):
        write_mapping(mapping, tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == (
            tmp_path / "mapping.safetensors"
        ).read_bytes()
    loaded = read_mapping(tmp_path / "mapping.safetensors")
    table = torch.randn(3, 2)
    assert torch.equal(loaded(table), mapping(table))
    assert loaded.source_size == 3


def test_a_table_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="the table has 4 rows, the mapping expects 3"):
        VocabularyMapping.from_rows([[0]], source_size=3)(torch.zeros(4, 2))
