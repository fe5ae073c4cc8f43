"""What people bring as text: files that end early, marks and encodings, links, other formats."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from tokenizers import Tokenizer

from lep.corpus.files import corpus_files, file_stamps
from lep.corpus.read import read_documents, read_messages, read_records, stream_texts
from lep.errors import CorpusError, LepWarning
from lep.tokenizer.count import WordCounts, WordCutter, read_counts, write_counts

RECORDS = [{"text": f"Предложение номер {i}."} for i in range(2_000)]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
TEXTS = [record["text"] for record in RECORDS]
SKIPPABLE = (0x184D2A53).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"


def texts(path: Path) -> list[str]:
    return [document.text for document in read_documents([path])]


def parquet(path: Path, records: list[dict], **options) -> bytes:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, **options)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".zst", zstandard.compress), (".gz", gzip.compress)]
)
def test_compressed_files_are_whole_or_refused(suffix, compress, tmp_path) -> None:
    path, frame = tmp_path / f"a.jsonl{suffix}", compress(LINES)
    path.write_bytes(frame + frame)  # as `cat` joins files
    assert texts(path) == TEXTS + TEXTS
    for cut in (1, 4, len(frame) // 2):
        for content in (b"", frame[:-cut], frame + frame[:-cut]):
            path.write_bytes(content)
            with pytest.raises(CorpusError, match=rf"a.jsonl{suffix} ends early.* again"):
                texts(path)
    for rubbish in (b"x", b"\n" * 10_000):
        path.write_bytes(frame + rubbish)
        with pytest.raises(CorpusError, match=rf"not a readable {suffix[1:]} file .*compress it"):
            texts(path)
    path.write_bytes(frame[:100] + bytes(8) + frame[108:])
    with pytest.raises(CorpusError, match=f"a.jsonl{suffix} "):
        texts(path)


def test_zstd_frames_that_hold_no_text_are_skipped(tmp_path) -> None:
    frame = zstandard.compress(LINES)
    (tmp_path / "a.jsonl.zst").write_bytes(SKIPPABLE + frame + SKIPPABLE + frame)
    assert texts(tmp_path / "a.jsonl.zst") == TEXTS + TEXTS
    (tmp_path / "a.jsonl.zst").write_bytes(frame + SKIPPABLE[:-1])
    with pytest.raises(CorpusError, match="ends early"):
        texts(tmp_path / "a.jsonl.zst")


def test_parquet_and_jsonl_that_end_early_are_named(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    content = parquet(path, RECORDS, row_group_size=500)
    assert texts(path) == TEXTS
    for cut in (1, 100, len(content) // 2, len(content)):
        path.write_bytes(content[:-cut])
        with pytest.raises(CorpusError, match=r"a.parquet is not a readable parquet file .*again"):
            texts(path)
    (tmp_path / "b.jsonl").write_bytes(LINES[:-9])
    with pytest.raises(CorpusError, match=r"line 2000: not JSON .*: the file ends early, copy it"):
        texts(tmp_path / "b.jsonl")
    (tmp_path / "c.txt").write_bytes("конец".encode()[:-1])
    with pytest.raises(CorpusError, match=r"not UTF-8 .*cut off, copy it again"):
        texts(tmp_path / "c.txt")


def test_counts_that_lack_words_are_refused(byte_level: Tokenizer, tmp_path) -> None:
    path, cutter = tmp_path / "a.counts.zst", WordCutter.of(byte_level)
    words = WordCounts(Counter({f"слово{i}": i for i in range(1, 50)}), "Cyrillic", 1_000)
    with path.open("wb") as file:
        write_counts(file, words, cutter)
    assert read_counts(path, cutter) == words
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CorpusError, match="ends early"):
        read_counts(path, cutter)
    lines = zstandard.ZstdDecompressor().stream_reader(whole).read().splitlines(keepends=True)
    path.write_bytes(zstandard.compress(b"".join(lines[:-1])))
    with pytest.raises(CorpusError, match="holds 48 words, and was written with 49: it ends early"):
        read_counts(path, cutter)
    facts = json.loads(lines[0])
    del facts["words"]  # as written before there was this number
    path.write_bytes(zstandard.compress(b"".join([json.dumps(facts).encode(), b"\n", *lines[1:]])))
    assert read_counts(path, cutter) == words


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.zst"])
def test_a_byte_order_mark_is_no_text(name, tmp_path) -> None:
    text = "один два" if ".txt" in name else '{"text": "один два"}'
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(compress(text.encode("utf-8-sig")))
    assert texts(tmp_path / name) == ["один два"]
    assert "".join(stream_texts([tmp_path / name])) == "один два"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        (tmp_path / name).write_bytes(compress(text.encode(encoding)))
        with pytest.raises(CorpusError, match=f"{name} is UTF-16 or no text: try iconv"):
            texts(tmp_path / name)


def test_marks_within_joined_files_are_no_text(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n' * 2)
    assert texts(tmp_path / "a.jsonl") == ["a", "a"]


def test_only_line_ends_end_a_line(tmp_path) -> None:
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x00h"
    lines = [json.dumps({"text": odd}, ensure_ascii=False), json.dumps({"text": "два"})]
    (tmp_path / "a.jsonl").write_bytes("\r\n".join(lines).encode())
    assert [record["text"] for _, record in read_records(tmp_path / "a.jsonl")] == [odd, "два"]
    (tmp_path / "b.txt").write_bytes(f"{odd}\r\n{odd}\r{odd}\n".encode())
    assert texts(tmp_path / "b.txt") == [f"{odd}\n{odd}\n{odd}\n"]
    message = {"messages": [{"role": "user", "content": odd}]}
    (tmp_path / "c.jsonl").write_text(json.dumps(message, ensure_ascii=False), encoding="utf-8")
    assert read_messages(tmp_path / "c.jsonl") == [message]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Text, with what lies about beside text."""
    folder = tmp_path / "text"
    names = ["a.txt", "b.JSONL", "sub/c.Txt", ".hidden.txt", ".ipynb_checkpoints/a.txt", "._a.txt"]
    names += ["__MACOSX/a.txt", "sub/._c.txt", "e.jsonl.xz", "f.csv", "README.md", "sheet.json"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "b"}' if "JSONL" in name else name, encoding="utf-8")
    return folder


def test_other_files_of_a_folder_are_named_and_hidden_ones_are_no_text(folder) -> None:
    with pytest.warns(LepWarning, match=r"passed over in .*text.*: e.jsonl.xz, f.csv$"):
        assert texts(folder) == ["a.txt", "b", "sub/c.Txt"]
    assert texts(folder / ".hidden.txt") == [".hidden.txt"]  # on request


def test_linked_files_and_folders_count_once(folder) -> None:
    (folder / "e.jsonl.xz").unlink()
    (folder / "f.csv").unlink()
    other = folder.parent / "other"
    other.mkdir()
    (other / "z.txt").write_text("z", encoding="utf-8")
    (folder / "linked").symlink_to(other)
    (folder / "linked again").symlink_to(other)
    (folder / "loop").symlink_to(folder)
    (other / "back").symlink_to(folder)
    (folder / "a again.txt").symlink_to(folder / "a.txt")
    files = corpus_files([folder, folder / "a.txt", other, folder / "linked" / "z.txt"])
    assert sorted(file.resolve().name for file in files) == ["a.txt", "b.JSONL", "c.Txt", "z.txt"]
    assert len({stamp[0] for stamp in file_stamps([folder])}) == 6  # with README.md and sheet.json
    before = file_stamps([folder])
    (other / "z.txt").write_text("longer", encoding="utf-8")
    assert file_stamps([folder]) != before


def test_broken_links_and_pipes_are_named(folder) -> None:
    for name in ("e.jsonl.xz", "f.csv"):
        (folder / name).unlink()
    (folder / "gone.txt").symlink_to(folder / "nothing.txt")
    os.mkfifo(folder / "pipe.txt")
    with pytest.warns(LepWarning, match=r": gone.txt, pipe.txt$"):
        assert texts(folder) == ["a.txt", "b", "sub/c.Txt"]
    with pytest.raises(CorpusError, match=r"pipe.txt is no regular file"):
        texts(folder / "pipe.txt")


def test_files_without_text_are_named(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "b.jsonl").touch()
    (tmp_path / "c.txt").write_text(" \n", encoding="utf-8")
    with pytest.warns(LepWarning, match=r"there is no text in .*b.jsonl, .*c.txt"):
        assert texts(tmp_path) == ["a"]


def test_the_command_line_says_it_in_a_line(folder, tmp_path) -> None:
    (folder / "a.txt").write_text("Слова и ещё слова. " * 20, encoding="utf-8")
    command = [sys.executable, "-m", "lep", "corpus", folder, "--output", tmp_path / "corpus"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    notes = [line for line in run.stderr.splitlines() if "passed over" in line]
    assert len(notes) == 1
    assert notes[0].startswith("note: passed over in ")


def test_the_data_of_a_task_lie_in_one_file(tmp_path) -> None:
    from lep.benchmark.tasks.data import _read

    folder = tmp_path / "rwsd"
    folder.mkdir()
    (folder / "test.jsonl.partial").write_text("{}\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"rwsd has no test\.jsonl"):
        _read("rwsd", "test", ("hub", None), str(tmp_path))
    (folder / "test.JSONL.zst").write_bytes(zstandard.compress(b'{"a": 1}\n'))
    assert _read("rwsd", "test", ("hub", None), str(tmp_path)) == [{"a": 1}]
    (folder / "test.jsonl").write_text('{"a": 2}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"has test.JSONL.zst and test.jsonl: leave one of them"):
        _read("rwsd", "test", ("hub", None), str(tmp_path))
