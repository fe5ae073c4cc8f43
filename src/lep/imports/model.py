"""`lep import`: what people have, as an ordinary model folder with a proven tokenizer."""

import os
import shutil
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from lep.checkpoint.config import read_config
from lep.checkpoint.pretrained import GENERATION
from lep.checkpoint.reader import ADAPTER_CONFIG, Checkpoint
from lep.checkpoint.writer import carried_files
from lep.errors import CheckpointError, LepError
from lep.exports.job import Job
from lep.exports.sample import sample
from lep.files import read_json, write_json
from lep.hub import GGUF, PICKLED_MODEL, local_folder
from lep.imports.proof import compare, prove
from lep.imports.sandbox import confined
from lep.imports.vocabulary import checked
from lep.publish import check_output, publishing
from lep.result import Result
from lep.settings import ImportSettings
from lep.tokenizer.load import (
    LOADER_TEXTS,
    SENTENCEPIECE,
    TOKENIZER,
    check_loaders,
    copy_tokenizer,
    load_tokenizer,
)

FACTS = ("types", "parameters")  # of the report about a GGUF file
RECORD = Path("lep") / "import.json"
DTYPE_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
PLAIN = ("F32", "F16", "BF16")  # types of numbers that were not quantised
NOT_ENFORCED = (
    "this system cannot sandbox a process (Linux can, with Landlock and seccomp): only the "
    "libraries' own care kept the file from running code"
)


@dataclass(frozen=True)
class Imported(Result):
    """A model folder made of other formats, and how its tokenizer was proven."""

    output: Path
    source: Path
    tokens: int
    tensors: dict[str, int]  # their number by the type that they had
    parameters: dict[str, int]  # the same, of their numbers
    texts: int  # that have the same ids; 0 where the tokenizer was copied
    proven_by: str
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.tensors.items())
        lines = [f"{self.tokens:,} tokens, tensors: {kinds or 'copied'}: {self.output}"]
        if self.texts:
            line = f"ids equal on {self.texts:,} of {self.texts:,} texts, by {self.proven_by}"
            lines.append(line)
        return "\n".join([*lines, *self.notes])


def import_model(
    source: str | Path, output: str | Path, settings: ImportSettings | None = None, **options: Any
) -> Imported:
    """Make an ordinary model folder of a GGUF file, or of a folder with old formats.

    `source` is a GGUF file, or a folder with pickled weights (pytorch_model.bin), a SentencePiece
    tokenizer (tokenizer.model) without tokenizer.json, or both. It is read in a process without
    network that writes only into the new folder. More than 200 texts must have the ids of the
    source: in llama.cpp itself where the package xllamacpp is installed, otherwise by a second
    reading of the file; in SentencePiece for a tokenizer.model.

    Raises `OutputError` where the output exists, `CheckpointError` for a source that is damaged or
    of an unknown kind, `TokenizerError` for a tokenizer with other ids.
    """
    settings = ImportSettings.given(settings, options)
    source, output = Path(source), Path(output)
    check_output(output)
    if source.is_file() and source.match(PICKLED_MODEL):
        source = source.parent
    if source.is_file():
        return _file(source, output, settings.type or "bf16")
    if source.is_dir():
        return _folder(local_folder(source), output, settings.type)
    raise CheckpointError(f"there is no file or folder {source}: download it first")


def _file(source: Path, output: Path, kind: str) -> Imported:
    """A GGUF file."""
    if find_spec("gguf") is None:
        raise LepError("lep import FILE.gguf needs the package gguf: pip install '.[gguf]'")
    with publishing(output) as folder:
        report = confined("gguf", source, folder, type=kind)
        tokenizer = load_tokenizer(folder)
        texts = list(sample(tokenizer))
        proven_by = prove(tokenizer, checked(report.get("metadata") or {}, source), texts)
        check_loaders(folder, LOADER_TEXTS, tokenizer)
        model = Checkpoint(folder).check()
        _write_ends(folder, Job(model, output, kind, texts).ends)
        types, sizes = ({str(k): int(n) for k, n in report[f].items()} for f in FACTS)
        notes = [*_quality(types, sizes, kind), *_enforced(report)]
        tokens = len(model.vocabulary)
        result = Imported(output, source, tokens, types, sizes, len(texts), proven_by, notes)
        _record(folder, result)
    return result


def _folder(source: Path, output: Path, kind: str | None) -> Imported:
    """A folder with old formats of weights, tokenizer, or both."""
    has_weights = any(source.glob("*.safetensors"))
    is_pickled = not has_weights and any(source.glob(PICKLED_MODEL))
    is_model = not (source / TOKENIZER).exists() and (source / SENTENCEPIECE).exists()
    _check_folder(source, has_weights=has_weights, is_pickled=is_pickled, is_model=is_model)
    if kind and not is_pickled:
        raise LepError(f"--type is for GGUF files and pickled weights: leave it out for {source}")
    with publishing(output) as folder:
        copy_tokenizer(source, folder)
        for file in carried_files(source):
            shutil.copyfile(file, folder / file.name)
        _copy_config(source, folder, kind)
        tensors, notes, texts, proven_by = {}, [], 0, ""
        if is_pickled:
            report = confined("pickles", source, folder, type=kind)
            tensors = {"pickled": int(report["tensors"])}
            notes += _enforced(report)
        else:
            _link_weights(source, folder)
        if is_model:
            texts, proven_by, more = _sentencepiece(source, folder)
            notes += [note for note in more if note not in notes]
        tokenizer = load_tokenizer(folder)
        if is_model:
            check_loaders(folder, LOADER_TEXTS, tokenizer)
        tokens = len(Checkpoint(folder).check().vocabulary)
        result = Imported(output, source, tokens, tensors, {}, texts, proven_by, notes)
        _record(folder, result)
    return result


def _check_folder(source: Path, *, has_weights: bool, is_pickled: bool, is_model: bool) -> None:
    """Raise `LepError` for a folder that is not to be imported."""
    if (source / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{source} has an adapter ({ADAPTER_CONFIG}), no whole model: merge it with peft first"
        )
    if not has_weights and not is_pickled:
        files = sorted(source.glob(f"*{GGUF}"))
        advice = f"give the file {files[0]}" if files else "give a model with its weights"
        raise CheckpointError(f"{source} has no safetensors and no {PICKLED_MODEL}: {advice}")
    if not is_pickled and not is_model:
        raise LepError(f"{source} is an ordinary model folder: give it to any verb as it is")
    if is_model and (missing := [n for n in ("google.protobuf",) if not _is_installed(n)]):
        raise LepError(
            f"{SENTENCEPIECE} needs a package that is not installed ({missing[0]}): pip install "
            "'.[spm]'"
        )


def _sentencepiece(source: Path, folder: Path) -> tuple[int, str, list[str]]:
    """Convert tokenizer.model; how many texts have the ids of SentencePiece, and by what."""
    report = confined("sentencepiece", source, folder)
    tokenizer = load_tokenizer(folder)
    texts = [(text, False) for text, is_plain in sample(tokenizer) if is_plain]
    ids = confined("sentencepiece_ids", source, folder, texts=[text for text, _ in texts])["ids"]
    compare(tokenizer, texts, ids, SENTENCEPIECE)
    return len(texts), "SentencePiece", _enforced(report)


def _write_ends(folder: Path, ends: list[int]) -> None:
    """Let an answer end where the file and the template end it."""
    settings = read_json(folder / GENERATION, CheckpointError)
    changed = {"eos_token_id": ends} if ends else {}
    write_json(folder / GENERATION, settings | changed, indent=2)


def _quality(types: dict[str, int], sizes: dict[str, int], kind: str) -> list[str]:
    """What the numbers lost before, and what they lose now."""
    quantised = [name for name in sizes if name not in PLAIN]
    if quantised:
        count, weights = (sum(each[name] for name in quantised) for each in (types, sizes))
        return [
            f"{count:,} of {sum(types.values()):,} tensors ({weights:,} of "
            f"{sum(sizes.values()):,} weights) were quantised to {', '.join(quantised)}: the "
            "quality that this took cannot come back; take the original weights if you can get "
            "them"
        ]
    wider = [name for name in ("F16", "F32") if sizes.get(name, 0) > sum(sizes.values()) / 2]
    if wider and kind != "f32" and wider[0].lower() != kind:
        return [f"most numbers were {wider[0]} and are rounded: --type {wider[0].lower()} is exact"]
    return []


def _enforced(report: dict[str, Any]) -> list[str]:
    return [] if report.get("enforced") else [NOT_ENFORCED]


def _copy_config(source: Path, folder: Path, kind: str | None) -> None:
    config = read_config(source)
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    write_json(
        folder / "config.json", config | ({key: DTYPE_NAMES[kind]} if kind else {}), indent=2
    )


def _link_weights(source: Path, folder: Path) -> None:
    """The weights that are safetensors already, linked where the disk is the same."""
    for file in chain(source.glob("*.safetensors"), source.glob("*.safetensors.index.json")):
        try:
            os.link(file.resolve(), folder / file.name)
        except OSError:
            shutil.copyfile(file, folder / file.name)


def _record(folder: Path, result: Imported) -> None:
    """What was imported, for those who read the folder later."""
    (folder / RECORD).parent.mkdir()
    facts = asdict(result) | {"source": result.source.name}
    del facts["output"]
    write_json(folder / RECORD, facts, indent=1)


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
