"""What small hostile files may cost: each is refused by name before the memory is taken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lep.corpus.read import read_documents
from lep.errors import CorpusError

ADDRESS_SPACE_BYTES, SECONDS = 2_000_000_000, 20
CHILD = """
import importlib, json, resource, sys
from pathlib import Path
module, name, *paths = sys.argv[2:]
function = getattr(importlib.import_module(module), name)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in paths:
    try:
        for _ in function(path if name.startswith("read_re") else [path]):
            pass
        print(json.dumps("read"))
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


def replies(module: str, name: str, *paths: Path) -> list[str]:
    """What a function says of each path in a process that may take 2 GB more."""
    arguments = [str(ADDRESS_SPACE_BYTES), module, name, *map(str, paths)]
    command = [sys.executable, "-c", CHILD, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_small_files_of_much_text_are_refused(tmp_path) -> None:
    names = ("a.jsonl.zst", "b.txt.zst", "c.txt", "d.parquet")
    one_line, much, plain, values = (tmp_path / name for name in names)
    with one_line.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as out:
        out.write(b'{"text": "')
        for _ in range(300):
            out.write(b"a" * 1_000_000)
    with much.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as out:
        for _ in range(300):
            out.write(b"many lines\n" * 100_000)
    plain.touch()
    os.truncate(plain, 300_000_000)
    text = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 1_000, "int32"), pyarrow.array(["a" * 3_000_000])
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), values, compression="zstd")
    files = (one_line, much, values)
    assert all(file.stat().st_size < 50_000 for file in files)
    line, document, rows, zeros = replies("lep.corpus.read", "read_documents", *files, plain)
    assert "a line of " in line
    assert "set LEP_MAX_LINE_BYTES higher" in line
    assert "set LEP_MAX_EXPANSION higher" in document
    assert "set LEP_MAX_EXPANSION higher" in rows
    assert "no text" in zeros


@pytest.mark.slow
def test_run_lengths_of_nested_values_are_seen_beforehand(tmp_path) -> None:
    empty = pyarrow.nulls(110_000_000)
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([0, len(empty)], "int32"), empty)
    table = pyarrow.table({"text": ["a"], "more": lists})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 1_000
    (reply,) = replies("lep.corpus.read", "read_documents", tmp_path / "a.parquet")
    assert "set LEP_MAX_EXPANSION higher" in reply


def test_a_limit_is_a_setting(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("один\nдва\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "один"}\n{"text": "два"}\n', encoding="utf-8")
    for variable, most, name in (("DOCUMENT", 16, "a.txt"), ("LINE", 20, "b.jsonl")):
        monkeypatch.setenv(f"LEP_MAX_{variable}_BYTES", str(most - 1))
        with pytest.raises(CorpusError, match=f"set LEP_MAX_{variable}_BYTES higher"):
            list(read_documents([tmp_path / name]))
        monkeypatch.setenv(f"LEP_MAX_{variable}_BYTES", str(most))
        assert list(read_documents([tmp_path / name]))
