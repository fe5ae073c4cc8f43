"""Exports that are folders: another program's converter writes, and its runtime proves them."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lep.checkpoint.config import CONFIG
from lep.checkpoint.pretrained import GENERATION
from lep.errors import CheckpointError, LepError
from lep.exports.agreement import ANSWER_TOKENS, behaviour, check_agreement
from lep.exports.apart import apart
from lep.exports.job import Exported, Job, check_ids, composed, composes
from lep.files import read_json, write_json
from lep.publish import check_output, publishing
from lep.tokenizer.load import TOKENIZER, write_tokenizer

COMPOSES = (
    "composes characters (NFC), as transformers does for this type of model, and tokenizer.json "
    "does not: other text has the ids of composed text there"
)
WAY_OUT = "serve the folder as it is (vLLM, transformers)"
LEFT_OUT = (".py", ".md")  # code, and a card that is the converter's template
TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class Program:
    """A program with a converter and a runtime.

    `runner` is a module of ours for a process of its own. `convert MODEL FOLDER TYPE` converts;
    `read FOLDER` answers a question, see `Program.write`.
    """

    to: str
    name: str
    module: str  # that must be installed, and is named by its extra
    package: str
    runner: str

    @property
    def version(self) -> str:
        return f"{self.name} {version(self.package)}"

    def check(self, output: Path) -> None:
        """Raise `LepError` where the package is missing, `OutputError` where the output exists."""
        if find_spec(self.module) is None:
            raise LepError(
                f"lep export --to {self.to} needs a package that is not installed "
                f"({self.package}): pip install '.[{self.to}]'"
            )
        check_output(output)

    def write(
        self,
        job: Job,
        finish: Callable[[Path], None],
        notes: list[str],
        question: dict[str, Any] | None = None,
        settings: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> Exported:
        """Convert, let `finish` correct what the converter cannot know, and prove.

        `settings` turns config.json into what the converter reads.
        The runtime reads the folder as its users do. It must give the ids of all texts, the
        original's log-probabilities and greedy answers, and have as many rows.
        """
        job.check_ends(self.name)
        with publishing(job.output) as folder:
            with tempfile.TemporaryDirectory() as temporary:
                staged = Path(temporary) / "model"
                stage(job, staged, settings)
                self._convert(job, staged, folder, question or {})
            carry(job, folder)
            finish(folder)
            agreement, composing = self._prove(job, folder)
        return Exported(
            output=job.output,
            to=self.to,
            type=job.type,
            tokens=job.rows,
            tokenizer=TOKENIZER,
            texts=len(job.texts),
            proven_by=self.version,
            agreement=agreement,
            stops=job.stops,
            notes=[*notes, *composing],
        )

    def _prove(self, job: Job, folder: Path) -> tuple[str, list[str]]:
        """How near it is, and a note where the program composes characters by itself."""
        fault = f"{self.name} cannot read what its converter made of {job.source.folder}"
        expected = behaviour(job)
        question = {
            "texts": list(job.texts),
            "prompts": expected.prompts,
            "likeliest": expected.likeliest,
            "ends": job.ends,
            "type": job.type,
            "tokens": ANSWER_TOKENS,
        }
        read = apart(self.runner, "read", folder, question=question, fault=fault, way_out=WAY_OUT)
        composing = read.get("composes", False) and not composes(job.tokenizer)
        texts = composed(job.texts) if composing else job.texts
        check_ids(job.tokenizer, texts, read["ids"], self.version, WAY_OUT)
        if read["rows"] != job.rows or set(read["ends"]) != set(job.ends):
            raise CheckpointError(
                f"{self.version} has {read['rows']:,} rows and ends at the ids {read['ends']}, the "
                f"model has {job.rows:,} and ends at {job.ends}; nothing was written: {WAY_OUT}"
            )
        values, answers = read["log_probabilities"], read["answers"]
        agreement = check_agreement(expected, values, answers, job.type, WAY_OUT)
        return agreement, [f"{self.name} {COMPOSES}"] if composing else []

    def _convert(self, job: Job, staged: Path, folder: Path, question: dict[str, Any]) -> None:
        """Convert into a new folder, as converters want one, and take its files, but no code."""
        fault = f"{job.source.folder} cannot be converted to {self.name}"
        given, inner = {"type": job.type} | question, folder / "converted"
        apart(self.runner, "convert", staged, inner, question=given, fault=fault, way_out=WAY_OUT)
        for path in inner.iterdir():
            if path.suffix not in LEFT_OUT:
                path.rename(folder / path.name)
        shutil.rmtree(inner)


def stage(
    job: Job, folder: Path, settings: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> None:
    """A model folder with what a converter may see: weights, settings, tokenizer, no code."""
    folder.mkdir()
    source = job.source
    weights = [source.folder / shard for shard in set(source.shard_of.values())]
    for path in (*weights, *filter(None, [source.index])):
        (folder / path.name).symlink_to(path.resolve())
    write_json(folder / CONFIG, settings(source.config), indent=2)
    carry(job, folder)


def carry(job: Job, folder: Path) -> None:
    """Write the tokenizer so that every loader gives the same ids, the end tokens, the terms."""
    source = job.source.folder
    spec = read_json(source / TOKENIZER) | {"truncation": None, "padding": None}
    write_tokenizer(spec, source, folder, job.tokenizer)
    path = source / GENERATION
    generation = read_json(path, CheckpointError) if path.exists() else {}
    write_json(folder / GENERATION, generation | {"eos_token_id": job.ends}, indent=2)
    for path in (path for pattern in TERMS for path in source.glob(pattern) if path.is_file()):
        shutil.copyfile(path, folder / path.name)
