"""tokenizer.json from a SentencePiece model, by transformers' conversion."""

import json
from pathlib import Path
from typing import Any

import transformers

from lep.errors import TokenizerError, foreign
from lep.files import read_json
from lep.tokenizer.load import CONFIG, write_tokenizer
from lep.tokenizer.vocabulary import SPACE

LLAMA = "LlamaTokenizer"  # it put BOS before every text, until transformers 5 began to ask for it


def convert(source: Path, output: Path) -> str:
    """Write the tokenizer of a folder as tokenizer.json; the name of the class that did it.

    Raises `TokenizerError` where transformers cannot convert it.
    """
    settings = read_json(source / CONFIG, TokenizerError) if (source / CONFIG).exists() else {}
    name = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    known = name.isidentifier() and name.endswith("Tokenizer") and hasattr(transformers, name)
    name = name if known else "AutoTokenizer"
    with foreign(
        f"transformers ({name}) cannot convert the tokenizer.model of {source}",
        "pip install '.[spm]', or take the model with a tokenizer.json",
        TokenizerError,
    ):
        usual = {} if "add_bos_token" in settings or name != LLAMA else {"add_bos_token": True}
        tokenizer = getattr(transformers, name).from_pretrained(
            source, trust_remote_code=False, **usual
        )
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        write_tokenizer(_prefixed(spec), source, output, tokenizer)
    return name


def _prefixed(spec: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer with a space before every text, as SentencePiece puts it.

    transformers' conversion leaves it out where a text begins with a space.
    """
    cutter = spec["pre_tokenizer"] or {}
    if cutter.get("type") != "Metaspace" or cutter["prepend_scheme"] == "never":
        return spec
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    before = [spec["normalizer"]] if spec["normalizer"] else []
    normalizer = {"type": "Sequence", "normalizers": [*before, prepend, replace]}
    return spec | {"normalizer": normalizer, "pre_tokenizer": None}
