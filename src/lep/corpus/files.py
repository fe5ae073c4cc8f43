"""Which files are a corpus: text files of known formats, in folders too, each once."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lep.corpus.completion import check_complete
from lep.errors import CorpusError, check_utf8, note

TXT_SUFFIXES = (".txt", ".txt.gz", ".txt.zst")
SUFFIXES = (*TXT_SUFFIXES, ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
SHEET = "sheet.json"  # beside a corpus: what happened to its documents
# Files beside text that nobody takes for text, so they are passed over without a word.
BESIDE = (SHEET, "sheet.md", "lep_stage.json", "readme.md", "readme", "license", "_success")
COMPRESSED, GROWTH = (".gz", ".zst", ".parquet"), 4  # how many times larger, when read
NAMED = 5  # of the files that are passed over
Paths = str | Path | Iterable[str | Path]  # a path alone, or several
Text = Mapping[str, Paths]  # by language


def several(paths: Paths) -> list[str | Path]:
    """A list of paths; a text is a path alone, not its letters.

    >>> several("text/ru"), several(["a.txt", "b.txt"])
    (['text/ru'], ['a.txt', 'b.txt'])
    """
    return [paths] if isinstance(paths, str | Path) else list(paths)


def all_paths(text: Text) -> list[str | Path]:
    """The paths of all languages."""
    return [path for paths in text.values() for path in several(paths)]


def corpus_files(paths: Paths) -> list[Path]:
    """All corpus files under `paths`, sorted within a folder; a file that is met again is left out.

    Hidden files and folders are not text. Files of a folder in other formats are passed over with a
    note. Raises `CorpusError` when there are none, and for a folder that tasks of `lep corpus` are
    still to complete.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, several(paths)):
        for file in _files(path):
            files.setdefault(file.resolve(), file)
    for resolved in files:
        check_utf8(str(resolved), CorpusError)
    return list(files.values())


def is_txt(file: Path) -> bool:
    """Whether a file is one document of plain text."""
    return file.name.lower().endswith(TXT_SUFFIXES)


def raw_bytes(file: Path) -> int:
    """About how many bytes a file has when it is read."""
    return file.stat().st_size * (GROWTH if file.suffix.lower() in COMPRESSED else 1)


def stem(file: Path) -> str:
    """The name of a corpus file up to the suffix of its format.

    >>> [stem(Path(name)) for name in ("a.b.jsonl.zst", "a.txt", "A.TXT.GZ", "wiki.parquet")]
    ['a.b', 'a', 'A', 'wiki']
    """
    suffix = r"\.txt" if is_txt(file) else r"\.jsonl|\.parquet$"
    return re.split(suffix, file.name, maxsplit=1, flags=re.IGNORECASE)[0]


def source_names(files: Sequence[Path]) -> dict[Path, str]:
    """The source of each file: a txt file's folder, another file's name.

    Files of one name in several folders have as many folders before it as tell them apart.

    >>> files = "a/wiki/0.parquet", "a/news/0.parquet", "b/c/1.txt"
    >>> list(source_names([*map(Path, files)]).values())
    ['wiki/0', 'news/0', 'c']
    """
    alike: dict[str, list[Path]] = {}
    for file in files:
        if not is_txt(file):
            alike.setdefault(stem(file), []).append(file)
    names = {file: file.parent.name for file in files if is_txt(file)}
    for name, same in alike.items():
        paths = [(*file.absolute().parent.parts[1:], name) for file in same]
        most = len({*paths})  # fewer than files: two formats in a folder are one source
        deepest = max(map(len, paths))
        depth = next(d for d in range(1, deepest + 1) if len({path[-d:] for path in paths}) == most)
        names |= {file: "/".join(path[-depth:]) for file, path in zip(same, paths, strict=True)}
    return {file: names[file] for file in files}


def file_stamps(paths: Paths) -> list[list[Any]]:
    """Path, size and time of files (or all files of folders), to notice changes without reading."""
    trees = (sorted(_walk(p)) if p.is_dir() else [p] for p in map(Path, several(paths)))
    files = [file for tree in trees for file in tree if file.is_file()]
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise CorpusError(f"there is no file or folder {path}: check the spelling")
    suffixes = ", ".join(SUFFIXES)
    if not path.is_dir():
        if not path.name.lower().endswith(SUFFIXES):
            raise CorpusError(f"corpus file {path} is none of {suffixes}: convert it first")
        return [path]
    check_complete(path)
    files, others = list[Path](), list[Path]()
    for file in sorted(_walk(path)):
        known = file.is_file() and file.name.lower().endswith(SUFFIXES)
        (files if known else others).append(file)
    if not files:
        raise CorpusError(f"corpus folder {path} holds no {suffixes} file: check the path")
    if names := [str(f.relative_to(path)) for f in others if f.name.lower() not in BESIDE]:
        note(f"passed over in {path}, because they are none of {suffixes}: {listed(names)}")
    return files


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _walk(folder: Path) -> Iterator[Path]:
    """All files under a folder that are not hidden; a linked folder is entered once."""
    entered = set[str]()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(n for n in folders if not n.startswith((".", "__MACOSX")))
        yield from (Path(parent, name) for name in names if not name.startswith("."))
