"""Hostile inputs: each is a folder of files and a command line that reads them."""

import gzip
import itertools
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
import zstandard
from safetensors.torch import load_file, save_file

Prepare = Callable[[Path], object]

INSPECT = "inspect model"
VERIFY = "verify model model"
INIT = "init --model model --tokenizer tokenizer --output out"
EXTEND = "tokenizer extend --base model --corpus text.txt --new-tokens 9 --output out"
TRAIN = (
    "tokenizer train --base model --corpus text.txt --vocab-size 400 --algorithm bpe --output out"
)
COMPARE = "tokenizer compare model --text ru=text.txt"
COUNT = "tokenizer count --base model --corpus text.txt --output out.counts.zst"
PROPAGATE = "propagate --base base --instruct model --adapted adapted --output out"
PACK = "pack --base base --adapted model --output out.pack"
APPLY = "apply pack --model model --output out"
OWN = "prompts --original model --text en=text.txt --output out --own-prompts 1 --prompt-tokens 4"
ANSWER = "answer --original model --prompts prompts.jsonl --output out --max-new-tokens 4"
TUNE = "tune --model model --data prompts.jsonl --output out --copy-tasks 0 --rank 1"
TUNE += " --batch-size 2 --micro-batch-size 2 --max-length 200"
CALIBRATE = "calibrate --model model --answers answers --output out --copy-tasks 0"
PRETRAIN = "pretrain --model model --corpus text.txt --output out --tokens 200 --block-size 32"
EVALUATE = (
    "evaluate model --text ru=text.txt --output out --items 2 --characters 200 --bootstrap 10"
)
CORPUS = "corpus input --output out"
PLAN = "plan recipe.yaml"
RUN = "run recipe.yaml --output out"


@dataclass(frozen=True)
class Case:
    """A command line in a folder that holds copies of `needs`, after `prepare` changed them."""

    name: str
    command: str
    needs: tuple[str, ...]
    prepare: Prepare
    environment: dict[str, str] = field(default_factory=dict)


def replaced(path: Path, content: bytes | str) -> None:
    """Write a file anew, not through a link."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(
        content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    )


def changed(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the value of a JSON file; `change` returns a new value or changes it in place."""
    value = json.loads(path.read_bytes())
    result = change(value)
    replaced(path, json.dumps(value if result is None else result))


DEEP = "[" * 100_000 + "]" * 100_000
FILES: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: replaced(p, b""),
    "half": lambda p: replaced(p, p.read_bytes()[: p.stat().st_size // 2]),
    "list": lambda p: replaced(p, "[1, 2]"),
    "null": lambda p: replaced(p, "null"),
    "text": lambda p: replaced(p, '"text"'),
    "object": lambda p: replaced(p, "{}"),
    "deep": lambda p: replaced(p, DEEP),
    "deep inside": lambda p: replaced(p, '{"a": ' + "[" * 1_500 + "]" * 1_500 + "}"),
    "deeper keys": lambda p: replaced(p, '{"a":' * 5_000 + "1" + "}" * 5_000),
    "digits": lambda p: replaced(p, '{"vocab_size": ' + "9" * 5_000 + "}"),
    "surrogate": lambda p: replaced(p, '{"model_type": "llama", "note": "\\ud800"}'),
    "surrogate key": lambda p: replaced(p, '{"\\udfff": 1, "model_type": "llama"}'),
    "latin": lambda p: replaced(p, '{"é": 1}'.encode("latin-1")),
    "utf-16": lambda p: replaced(p, p.read_bytes().decode("latin-1").encode("utf-16")),
    "zeros": lambda p: replaced(p, bytes(4_096)),
    "escape": lambda p: replaced(p, '{"model_type": "\\u001b[2J\\u001b]0;x\\u0007"}'),
    "number": lambda p: replaced(p, "1e999"),
    "folder": lambda p: (p.unlink(), p.mkdir()),
    "fifo": lambda p: (p.unlink(), os.mkfifo(p)),
    "secret": lambda p: (p.unlink(), p.symlink_to(p.parents[1] / "secret.json")),
    "circle": lambda p: (p.unlink(), p.symlink_to(p)),
    "device": lambda p: (p.unlink(), p.symlink_to("/dev/zero")),
}
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "minus": -1,
    "zero": 0,
    "huge": 2**63,
    "hugest": 10**40,
    "float": 1.5,
    "nan": float("nan"),
    "text": "x",
    "path": "../../x",
    "surrogate": "\ud800",
    "list": [],
    "lists": [[1], "a", None],
    "object": {},
    "nested": {"a": {"b": [1, {"c": 2}]}},
}


def broken_files() -> Iterator[Case]:
    """Every file of a model broken in every way, each read by some verb."""
    files = {
        "config.json": ("model", [INIT, INSPECT, EVALUATE, VERIFY]),
        "generation_config.json": ("model", [ANSWER, INIT, PROPAGATE]),
        "tokenizer.json": ("model", [COMPARE, INIT, EXTEND, TRAIN]),
        "tokenizer_config.json": ("model", [INIT, ANSWER, EXTEND]),
        "model.safetensors": ("model", [INSPECT, INIT, VERIFY]),
        "model.safetensors.index.json": ("sharded", [INSPECT, INIT]),
        "lep/mapping.safetensors": (
            "adapted",
            [PROPAGATE.replace("adapted adapted", "adapted model")],
        ),
        "lep/init.json": ("adapted", [PACK]),
        "adapter/adapter_config.json": ("unmerged", [EVALUATE]),
        "adapter/adapter_model.safetensors": ("unmerged", [EVALUATE]),
        "id_map.json": ("tokenizer", [COMPARE]),
        "changes.json": ("tokenizer", [COMPARE]),
    }
    for file, (source, commands) in files.items():
        verbs = itertools.cycle(commands)
        for way, change in FILES.items():
            yield Case(
                f"{file} {way}",
                next(verbs),
                (source,),
                lambda f, n=file, c=change: c(f / "model" / n),
            )


def odd_values() -> Iterator[Case]:
    """Fields of JSON files with values of odd types and sizes."""
    fields: dict[str, tuple[str, list[str], list[str]]] = {
        "config.json": (
            "model",
            [
                "model_type",
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "max_position_embeddings",
                "tie_word_embeddings",
                "rope_parameters",
                "architectures",
                "dtype",
                "eos_token_id",
                "bos_token_id",
                "pad_token_id",
                "quantization_config",
                "text_config",
                "auto_map",
                "_attn_implementation",
                "hidden_act",
                "rms_norm_eps",
                "sub_configs",
                "get_text_config",
                "intermediate_size",
                "layer_types",
                "head_dim",
                "use_cache",
                "transformers_version",
            ],
            [INIT, EVALUATE, INSPECT, ANSWER],
        ),
        "generation_config.json": (
            "model",
            [
                "eos_token_id",
                "pad_token_id",
                "do_sample",
                "temperature",
                "no_repeat_ngram_size",
                "num_beams",
                "suppress_tokens",
                "bad_words_ids",
                "sequence_bias",
                "max_new_tokens",
                "cache_implementation",
                "repetition_penalty",
                "forced_eos_token_id",
                "watermarking_config",
                "stop_strings",
            ],
            [ANSWER, INIT],
        ),
        "tokenizer_config.json": (
            "model",
            [
                "eos_token",
                "bos_token",
                "pad_token",
                "model_max_length",
                "padding_side",
                "chat_template",
                "tokenizer_class",
                "added_tokens_decoder",
                "extra_special_tokens",
                "auto_map",
                "tokenizer_file",
                "clean_up_tokenization_spaces",
                "add_prefix_space",
                "model_input_names",
            ],
            [ANSWER, INIT, COMPARE],
        ),
        "adapter/adapter_config.json": (
            "unmerged",
            [
                "peft_type",
                "r",
                "lora_alpha",
                "target_modules",
                "megatron_core",
                "rank_pattern",
                "bias",
            ],
            [EVALUATE],
        ),
    }
    for file, (source, names, commands) in fields.items():
        verbs = itertools.cycle(commands)
        values = itertools.cycle(VALUES.items())
        for name in names:
            for title, value in itertools.islice(values, 2):
                yield Case(
                    f"{file} {name} {title}",
                    next(verbs),
                    (source,),
                    lambda f, n=file, k=name, v=value: changed(
                        f / "model" / n, lambda j: {**j, k: v}
                    ),
                )


def tokenizers() -> Iterator[Case]:
    """tokenizer.json with odd parts."""

    def put(path: str, value: Any) -> Callable[[Any], None]:
        *above, last = path.split(".")

        def change(spec: Any) -> None:
            for part in above:
                spec = spec[int(part) if part.isdigit() else part]
            spec[int(last) if last.isdigit() else last] = value

        return change

    changes: dict[str, Callable[[Any], Any]] = {
        f"{path} {title}": put(path, VALUES[title])
        for path, titles in {
            "model": ("null", "object", "list"),
            "model.type": ("text", "minus"),
            "model.vocab": ("null", "list", "object"),
            "model.vocab.e": ("minus", "huge", "text", "float"),
            "model.merges": ("lists", "text", "object"),
            "model.merges.0": ("list", "text", "zero"),
            "added_tokens": ("null", "lists", "object"),
            "added_tokens.0.id": ("minus", "huge", "text"),
            "added_tokens.0.content": ("null", "surrogate", "list"),
            "normalizer": ("nested", "text"),
            "pre_tokenizer": ("nested", "text"),
            "decoder": ("nested", "true"),
            "post_processor": ("nested", "lists"),
            "truncation": ("nested", "text"),
            "version": ("null", "huge"),
        }.items()
        for title in titles
    }
    changes |= {
        "ids of four thousand million": put("model.vocab.e", 4_000_000_000),
        "ids of twenty million": put("model.vocab.e", 20_000_000),
        "empty added token": put("added_tokens.0.content", ""),
        "escapes in a token": put("added_tokens.0.content", "\x1b[2J\x07"),
        "pattern that backtracks": put(
            "pre_tokenizer",
            {
                "type": "Split",
                "pattern": {"Regex": "(a|a)*$|(" * 40 + ")" * 40},
                "behavior": "Isolated",
                "invert": False,
            },
        ),
        "normaliser that grows": put(
            "normalizer",
            {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
                ]
                * 6,
            },
        ),
        "precompiled garbage": put(
            "normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
        ),
        "template of tokens that are not there": put(
            "post_processor",
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<nope>", "type_id": 0}}],
                "pair": [],
                "special_tokens": {
                    "<nope>": {"id": "<nope>", "ids": [99_999_999], "tokens": ["<nope>"]}
                },
            },
        ),
        "merges of unknown tokens": put("model.merges", [["\u0430\u0431\u0432", "zzz"]] * 3),
        "WordPiece": put(
            "model",
            {
                "type": "WordPiece",
                "vocab": {"a": 0, "[UNK]": 1},
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
            },
        ),
        "Unigram without tokens": put("model", {"type": "Unigram", "vocab": [], "unk_id": 0}),
        "Unigram with an unknown id": put(
            "model", {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}
        ),
        "Unigram of infinities": put(
            "model",
            {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", float("nan")]], "unk_id": 0},
        ),
    }
    verbs = itertools.cycle([COMPARE, EXTEND, INIT, TRAIN, COUNT, ANSWER])
    for name, change in changes.items():
        yield Case(
            f"tokenizer {name}",
            next(verbs),
            ("model",),
            lambda f, c=change: changed(f / "model" / "tokenizer.json", c),
        )


def headers() -> Iterator[Case]:
    """Safetensors headers that lie."""

    def header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        spec = json.loads(raw[8 : 8 + length])
        result = change(spec)
        text = json.dumps(spec if result is None else result).encode("utf-8", "surrogatepass")
        replaced(path, struct.pack("<Q", len(text)) + text + raw[8 + length :])

    def entry(**values: Any) -> Callable[[dict[str, Any]], None]:
        return lambda spec: next(v for k, v in spec.items() if k[0] != "_").update(values)

    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "dtype number": entry(dtype=3),
        "dtype unknown": entry(dtype="F7"),
        "dtype list": entry(dtype=["F32"]),
        "shape negative": entry(shape=[-1, 32]),
        "shape bool": entry(shape=[True, 32]),
        "shape text": entry(shape="32"),
        "shape huge": entry(shape=[2**62, 2**62]),
        "shape none": entry(shape=None),
        "shape nested": entry(shape=[[1], [2]]),
        "shape float": entry(shape=[1.0, 32.0]),
        "shape of thousands": entry(shape=[1] * 5_000),
        "offsets text": entry(data_offsets=["0", "64"]),
        "offsets negative": entry(data_offsets=[-64, 0]),
        "offsets one": entry(data_offsets=[0]),
        "offsets three": entry(data_offsets=[0, 4, 8]),
        "offsets bool": entry(data_offsets=[False, True]),
        "offsets huge": entry(data_offsets=[0, 10**30]),
        "offsets null": entry(data_offsets=None),
        "offsets reversed": entry(data_offsets=[64, 0]),
        "entry list": lambda s: {**s, "lm_head.weight": [1]},
        "entry null": lambda s: {**s, "lm_head.weight": None},
        "entry empty": lambda s: {**s, "lm_head.weight": {}},
        "metadata list": lambda s: {**s, "__metadata__": [1]},
        "metadata of numbers": lambda s: {**s, "__metadata__": {"format": 3}},
        "metadata null": lambda s: {**s, "__metadata__": None},
        "metadata of tensorflow": lambda s: {**s, "__metadata__": {"format": "tf"}},
        "name surrogate": lambda s: {
            "\ud800" if k == "lm_head.weight" else k: v for k, v in s.items()
        },
        "name with an escape": lambda s: {
            "\x1b[2J" if k == "lm_head.weight" else k: v for k, v in s.items()
        },
        "deep": lambda s: {**s, "x": json.loads("[" * 900 + "]" * 900)},
        "no tensors": lambda s: {},
        "list": lambda s: [1],
    }
    verbs = itertools.cycle([INSPECT, INIT, VERIFY, EVALUATE])
    for name, change in changes.items():
        yield Case(
            f"header {name}",
            next(verbs),
            ("model",),
            lambda f, c=change: header(f / "model" / "model.safetensors", c),
        )
    for name, change in list(changes.items())[:8]:
        yield Case(
            f"mapping header {name}",
            PROPAGATE.replace("--instruct model", "--instruct base").replace(
                "adapted adapted", "adapted model"
            ),
            ("base", "adapted"),
            lambda f, c=change: header(f / "model" / "lep" / "mapping.safetensors", c),
        )
    for name, length in {"negative": 2**64 - 1, "all": 10**12, "short": 1}.items():
        yield Case(
            f"header length {name}",
            next(verbs),
            ("model",),
            lambda f, n=length: replaced(
                f / "model" / "model.safetensors",
                struct.pack("<Q", n) + (f / "model" / "model.safetensors").read_bytes()[8:],
            ),
        )
    tensors: dict[str, dict[str, torch.Tensor]] = {
        "mapping out of range": {"indices": torch.tensor([99_999_999])},
        "mapping negative": {"indices": torch.tensor([-5])},
        "mapping of floats": {"indices": torch.tensor([1.0])},
        "mapping offsets": {"offsets": torch.tensor([0, 99])},
        "mapping offsets down": {"offsets": torch.tensor([5, 0])},
        "mapping weights": {"weights": torch.tensor([float("nan")])},
        "mapping source size": {"source_size": torch.tensor(2**62)},
        "mapping empty": {},
    }
    for name, parts in tensors.items():

        def damage(folder: Path, parts: dict[str, torch.Tensor] = parts) -> None:
            path = folder / "model" / "lep" / "mapping.safetensors"
            whole = load_file(path) if parts else {}
            path.unlink()
            save_file(whole | parts, path)

        command = "propagate --base base --instruct base --adapted model --output out"
        yield Case(name, command, ("base", "adapted"), damage)


def indexes() -> Iterator[Case]:
    """Indices of shards that lie."""
    maps: dict[str, Any] = {
        f"weight_map {name}": lambda j, v=value: {**j, "weight_map": v}
        for name, value in VALUES.items()
    }
    for title, shard in {
        "outside": "../base/model.safetensors",
        "absolute": "/etc/passwd",
        "number": 3,
        "empty": "",
        "dot": ".",
        "missing": "nope.safetensors",
        "config": "config.json",
        "long": "x" * 300,
        "zero": "a\0b",
    }.items():
        maps[f"shard {title}"] = lambda j, s=shard: {
            **j,
            "weight_map": {**j["weight_map"], "lm_head.weight": s},
        }
    maps["metadata list"] = lambda j: {**j, "metadata": [1]}
    maps["size text"] = lambda j: {**j, "metadata": {"total_size": "x"}}
    verbs = itertools.cycle([INSPECT, INIT])
    for name, change in maps.items():
        yield Case(
            f"index {name}",
            next(verbs) if "size" not in name and "metadata" not in name else INIT,
            ("sharded",),
            lambda f, c=change: changed(f / "model" / "model.safetensors.index.json", c),
        )


LINES: dict[str, bytes | str] = {
    "empty": "",
    "blank": "\n\n\n",
    "broken": '{"text": "a"\n',
    "list": "[1]\n",
    "number": "5\n",
    "nothing": '{"text": null}\n',
    "number for text": '{"text": 5}\n',
    "list for text": '{"text": ["a"]}\n',
    "empty text": '{"text": ""}\n',
    "deep": DEEP + "\n",
    "deep field": '{"text": "a", "x": ' + DEEP + "}\n",
    "nested 900": '{"text": "слово", "x": ' + "[" * 900 + "]" * 900 + "}\n",
    "digits": '{"text": "a", "id": ' + "9" * 5_000 + "}\n",
    "surrogate": '{"text": "\\ud800 слово", "id": "\\udfff"}\n' * 3,
    "surrogate pair of raw bytes": b'{"text": "\xed\xa0\x80"}\n',
    "latin": '{"text": "é"}\n'.encode("latin-1"),
    "utf-16": '{"text": "a"}\n'.encode("utf-16"),
    "zeros": bytes(100_000),
    "odd id": '{"text": "слово слово", "id": {"a": [1]}, "group": [1], "author": {}}\n',
    "escape": '{"\\u001b[2J": 1}\n',
    "nan": '{"text": NaN}\n',
    "messages text": '{"messages": "a"}\n',
    "messages empty": '{"messages": []}\n',
    "messages numbers": '{"messages": [1, 2]}\n',
    "messages content list": '{"messages": [{"role": "user", "content": [1]}]}\n',
    "messages no role": '{"messages": [{"content": "a"}]}\n',
    "messages surrogate": '{"messages": [{"role": "user", "content": "\\ud800"}, '
    '{"role": "assistant", "content": "\\udc00"}]}\n',
    "messages odd role": '{"messages": [{"role": "\\u001b[2J", "content": "a"}, '
    '{"role": "assistant", "content": "b"}]}\n',
    "messages deep": '{"messages": [{"role": "user", "content": "a", "x": '
    + "[" * 900
    + "]" * 900
    + '}, {"role": "assistant", "content": "b"}]}\n',
    "messages extra": '{"messages": [{"role": "user", "content": "a", "tool_calls": 5}, '
    '{"role": "assistant", "content": "b", "tool_calls": [{"x": null}]}]}\n',
}


def lines() -> Iterator[Case]:
    """Lines of jsonl files."""
    corpora = [
        CORPUS.replace("input", "x.jsonl"),
        EXTEND.replace("text.txt", "x.jsonl"),
        PRETRAIN.replace("text.txt", "x.jsonl"),
        EVALUATE.replace("text.txt", "x.jsonl"),
    ]
    chats = [TUNE.replace("prompts", "x"), ANSWER.replace("prompts", "x")]
    verbs, talks = itertools.cycle(corpora), itertools.cycle(chats)
    for name, content in LINES.items():
        commands = [next(talks)] if name.startswith("messages") else [next(verbs), next(talks)]
        for command in commands:
            yield Case(
                f"jsonl {name}, {command.split()[0]}",
                command,
                ("model",),
                lambda f, c=content: replaced(f / "x.jsonl", c),
            )


def stored() -> Iterator[Case]:
    """Compressed files and tables."""
    line = b'{"text": "' + "слово ".encode() * 20 + b'"}\n'
    whole = zstandard.compress(line * 200)

    def bomb(path: Path, suffix: str) -> None:
        """Three thousand million characters in one line."""
        block = b"a" * (1 << 20)
        with path.open("wb") as raw:
            stream: Any = (
                gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1)
                if suffix == "gz"
                else zstandard.ZstdCompressor(level=1).stream_writer(raw)
            )
            stream.write(b'{"text": "')
            for _ in range(3_000):
                stream.write(block)
            stream.close()

    def parquet(path: Path, **columns: Any) -> None:
        pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")

    def parquet_bomb(path: Path) -> None:
        values = pyarrow.DictionaryArray.from_arrays(
            pyarrow.array([0] * 3_000, pyarrow.int32()), pyarrow.array(["a" * 1_000_000])
        )
        pyarrow.parquet.write_table(pyarrow.table({"text": values}), path, compression="zstd")

    files: dict[str, tuple[str, Callable[[Path], object]]] = {
        "zst garbage": ("x.jsonl.zst", lambda p: replaced(p, b"garbage" * 99)),
        "zst empty": ("x.jsonl.zst", lambda p: replaced(p, b"")),
        "zst half": ("x.jsonl.zst", lambda p: replaced(p, whole[: len(whole) // 2])),
        "zst with a tail": ("x.jsonl.zst", lambda p: replaced(p, whole + b"garbage")),
        "zst window": (
            "x.jsonl.zst",
            lambda p: replaced(p, b"\x28\xb5\x2f\xfd\x00\xf8" + b"\0" * 40),
        ),
        "zst bomb": ("x.jsonl.zst", lambda p: bomb(p, "zst")),
        "zst text bomb": ("x.txt.zst", lambda p: bomb(p, "zst")),
        "gz garbage": ("x.jsonl.gz", lambda p: replaced(p, b"\x1f\x8b" + b"garbage" * 99)),
        "gz half": ("x.jsonl.gz", lambda p: replaced(p, gzip.compress(line * 200)[:60])),
        "gz checksum": ("x.jsonl.gz", lambda p: replaced(p, gzip.compress(line)[:-8] + bytes(8))),
        "gz bomb": ("x.jsonl.gz", lambda p: bomb(p, "gz")),
        "parquet garbage": ("x.parquet", lambda p: replaced(p, b"PAR1" + b"x" * 999 + b"PAR1")),
        "parquet empty": ("x.parquet", lambda p: replaced(p, b"")),
        "parquet numbers": ("x.parquet", lambda p: parquet(p, text=[1, 2])),
        "parquet bytes": ("x.parquet", lambda p: parquet(p, text=[b"\xff\xfe"])),
        "parquet no text": ("x.parquet", lambda p: parquet(p, content=["a"])),
        "parquet nested": ("x.parquet", lambda p: parquet(p, text=[{"a": [1]}])),
        "parquet no rows": ("x.parquet", lambda p: parquet(p, text=pyarrow.array([], "string"))),
        "parquet bomb": ("x.parquet", parquet_bomb),
        "parquet not text": (
            "x.parquet",
            lambda p: parquet(
                p,
                text=pyarrow.StringArray.from_buffers(
                    1, pyarrow.py_buffer(struct.pack("<ii", 0, 2)), pyarrow.py_buffer(b"\xff\xfe")
                ),
            ),
        ),
        "txt zeros": ("x.txt", lambda p: replaced(p, bytes(3_000_000))),
        "txt one line": ("x.txt", lambda p: replaced(p, b"a" * 3_000_000)),
        "txt newlines": ("x.txt", lambda p: replaced(p, b"\n" * 3_000_000)),
        "txt combining": ("x.txt", lambda p: replaced(p, "а" + "\u0301" * 200_000)),
        "txt spaces": ("x.txt", lambda p: replaced(p, b" " * 1_000_000 + b"a")),
        "txt fifo": ("x.txt", os.mkfifo),
        "txt folder": ("x.txt", Path.mkdir),
        "txt circle": ("x.txt", lambda p: p.symlink_to(p)),
        "txt device": ("x.txt", lambda p: p.symlink_to("/dev/zero")),
        "txt escape in its name": ("x\x1b[2J.txt", lambda p: replaced(p, b"")),
        "txt name of bytes": ("x\udcff.txt", lambda p: replaced(p, b"")),
        "txt newline in its name": ("x\nerror: y.txt", lambda p: replaced(p, b"")),
    }
    verbs = itertools.cycle([CORPUS, EXTEND, PRETRAIN, COMPARE, COUNT])
    for name, (file, make) in files.items():
        for command in [CORPUS, EXTEND] if "bomb" in name or "one line" in name else [next(verbs)]:
            yield Case(
                f"{name}, {command.split()[0]}",
                command.replace("text.txt", "\x00")
                .replace("input", "\x00")
                .replace("\x00", "INPUT"),
                ("model",),
                lambda f, n=file, m=make: m(f / n),
                {"INPUT": file},
            )
    facts = {"cutter": "x", "script": "Cyrillic", "characters": 9, "halvings": 0}
    counts = {
        "other cutter": [facts, ["а", 1]],
        "odd facts": [{"cutter": 1, "script": [], "characters": "a", "halvings": 10**9}, ["а", 1]],
        "no facts": [["а", 1]],
        "odd counts": [facts, ["а", "x"]],
        "odd words": [facts, [5, 1]],
        "odd lines": [facts, 7],
        "nothing": [],
    }
    for name, content in counts.items():
        raw = "".join(json.dumps(each) + "\n" for each in content).encode()
        yield Case(
            f"counts {name}",
            EXTEND.replace("text.txt", "x.counts.zst"),
            ("model",),
            lambda f, c=raw: replaced(f / "x.counts.zst", zstandard.compress(c)),
        )
    for name, change in {
        "halvings": {"halvings": 10**9},
        "halvings text": {"halvings": "x"},
        "script": {"script": 5},
        "script that is none": {"script": "\\p{L}"},
        "characters": {"characters": None},
    }.items():

        def recount(folder: Path, change: dict[str, Any] = change) -> None:
            first, *rest = (
                zstandard.ZstdDecompressor()
                .stream_reader((folder / "words.counts.zst").read_bytes())
                .read()
                .splitlines()
            )
            text = (
                json.dumps(json.loads(first) | change).encode() + b"\n" + b"\n".join(rest) + b"\n"
            )
            replaced(folder / "x.counts.zst", zstandard.compress(text))

        yield Case(
            f"counts {name}",
            EXTEND.replace("text.txt", "x.counts.zst"),
            ("model", "words.counts.zst"),
            recount,
        )


def repacked(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]) -> None:
    """Change the tensors of a pack, and its description: `change` may return another one."""
    tensors = load_file(path)
    about = json.loads(zstandard.decompress(tensors["about"].numpy().tobytes()))
    result = change(tensors, about)
    about = about if result is None else result
    raw = about if isinstance(about, bytes) else zstandard.compress(json.dumps(about).encode())
    if "about" in tensors:
        tensors["about"] = torch.frombuffer(bytearray(raw or b"\0"), dtype=torch.uint8)
    path.unlink()
    save_file({name: each.contiguous() for name, each in tensors.items()}, path)


def pack_changes() -> dict[str, Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]]:
    """What may be wrong in a language pack."""

    def packed(content: bytes) -> torch.Tensor:
        return torch.frombuffer(bytearray(zstandard.compress(content)), dtype=torch.uint8)

    def zeros() -> bytes:
        """Four thousand million zeros in a few hundred kilobytes."""
        out = zstandard.ZstdCompressor(level=1).compressobj()
        parts = [out.compress(bytes(1 << 20)) for _ in range(4_000)]
        return b"".join([*parts, out.flush()])

    changes: dict[str, Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]] = {
        f"about {key} {title}": lambda t, a, k=key, v=value: {**a, k: v}
        for key in ("format", "base", "source_rows", "source_ids", "source_vocabulary", "tables")
        for title, value in itertools.islice(VALUES.items(), 0, None, 3)
    }
    changes |= {
        "about list": lambda t, a: [1],
        "about deep": lambda t, a: zstandard.compress(DEEP.encode()),
        "about digits": lambda t, a: zstandard.compress(b'{"format": ' + b"9" * 5_000 + b"}"),
        "about garbage": lambda t, a: b"garbage",
        "about bomb": lambda t, a: zeros(),
        "no about": lambda t, a: (t.pop("about"), None)[1],
        "hidden": lambda t, a: {**a, "tables": {k: {"hidden": 10**12} for k in a["tables"]}},
        "hidden text": lambda t, a: {**a, "tables": {k: {"hidden": "x"} for k in a["tables"]}},
        "other tables": lambda t, a: {**a, "tables": {"../x": {"hidden": 32}}},
        "no tokenizer": lambda t, a: (t.pop("tokenizer/tokenizer.json"), None)[1],
        "tokenizer bomb": lambda t, a: t.update(
            {"tokenizer/tokenizer.json": torch.frombuffer(bytearray(zeros()), dtype=torch.uint8)}
        ),
        "tokenizer garbage": lambda t, a: t.update(
            {"tokenizer/tokenizer.json": packed(b"garbage")}
        ),
        "tokenizer outside": lambda t, a: t.update({"tokenizer/../../../x": packed(b"garbage")}),
        "tokenizer floats": lambda t, a: t.update({"tokenizer/tokenizer.json": torch.zeros(3)}),
        "template": lambda t, a: t.update({"tokenizer/chat_template.jinja": packed(b"{{ 1/0 }}")}),
        "rows far": lambda t, a: t.update({"learned/input/rows": t["learned/input/rows"] + 10**9}),
        "rows negative": lambda t, a: t.update(
            {"learned/input/rows": t["learned/input/rows"] - 10**9}
        ),
        "rows floats": lambda t, a: t.update(
            {"learned/input/rows": t["learned/input/rows"].float()}
        ),
        "values nan": lambda t, a: t.update(
            {"learned/input/values": t["learned/input/values"] * float("nan")}
        ),
        "values bool": lambda t, a: t.update(
            {"learned/input/values": t["learned/input/values"] > 0}
        ),
        "values integers": lambda t, a: t.update(
            {"learned/input/values": t["learned/input/values"].long()}
        ),
        "sample nan": lambda t, a: t.update(
            {"sample/input/values": t["sample/input/values"] * float("nan")}
        ),
        "sample none": lambda t, a: t.update(
            {
                "sample/input/rows": t["sample/input/rows"][:0],
                "sample/input/values": t["sample/input/values"][:0],
            }
        ),
        "sample scalar": lambda t, a: t.update({"sample/input/rows": torch.tensor(1)}),
        "mapping indices": lambda t, a: t.update(
            {"mapping/input/indices": t["mapping/input/indices"] + 10**9}
        ),
        "mapping offsets": lambda t, a: t.update(
            {"mapping/input/offsets": t["mapping/input/offsets"].flip(0)}
        ),
        "mapping weights": lambda t, a: t.update(
            {"mapping/input/weights": t["mapping/input/weights"][:5]}
        ),
        "mapping copies": lambda t, a: t.update(
            {"mapping/input/copies": t["mapping/input/copies"].long()}
        ),
        "mapping empty": lambda t, a: t.update(
            {"mapping/input/offsets": torch.tensor([], dtype=torch.int64)}
        ),
    }
    return changes


def packs() -> Iterator[Case]:
    """Language packs."""
    for name, change in pack_changes().items():
        yield Case(
            f"pack {name}", APPLY, ("model", "pack"), lambda f, c=change: repacked(f / "pack", c)
        )
    for way in ("empty", "half", "zeros", "folder", "fifo", "device", "circle"):
        yield Case(f"pack {way}", APPLY, ("model", "pack"), lambda f, c=FILES[way]: c(f / "pack"))


TEMPLATES = {
    "division": "{{ 1 / 0 }}",
    "raises": "{{ raise_exception('no \x1b[2J') }}",
    "syntax": "{% for %}",
    "unknown filter": "{{ messages | nope }}",
    "attribute": "{{ messages[0].__class__.__mro__ }}",
    "code": "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "type": "{{ messages + 1 }}",
    "index": "{{ messages[99]['role'] }}",
    "key": "{{ messages[0]['nope']['nope'] }}",
    "endless": "{% for i in range(10000000000) %}a{% endfor %}",
    "nested loops": "{% for i in range(9999) %}" * 3 + "a" + "{% endfor %}" * 3,
    "power": "{{ 9 ** 9 ** 9 }}",
    "long text": "{{ 'a' * 3000000000 }}",
    "megabytes": "{{ 'слово ' * 3000000 }}{{ messages }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "surrogate": "{{ '\\ud800' }}",
    "nothing": "",
    "blank": "{{ '' }}",
    "include": "{% include '/etc/passwd' %}",
    "escape": "\x1b[2J{{ messages[0]['content'] }}",
    "does not continue": "{{ messages | length }}{{ range(10) | random }}",
    "deep": "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "many": "{{ messages }}" * 50_000,
    "date": "{{ strftime_now(5) }}",
    "sort": "{{ messages | sort(attribute='x') | groupby('y') | list }}",
    "generation": "{% generation %}{% endgeneration %}{{ messages[0].content }}",
}


def templates() -> Iterator[Case]:
    """Chat templates, which are programs."""
    verbs = itertools.cycle([ANSWER, TUNE, EVALUATE])
    for name, text in TEMPLATES.items():

        def write(folder: Path, text: str = text) -> None:
            replaced(folder / "model" / "chat_template.jinja", text)

        yield Case(f"template {name}", next(verbs), ("instruct",), write)
        yield Case(f"template {name}, cut", OWN, ("instruct",), write)
    odd = {
        "list": [{"name": "../../x", "template": "{{ 1 }}"}],
        "names": [{"name": "a", "template": "b"}],
        "object": {"a": 1},
        "numbers": [1, 2],
    }
    for name, value in odd.items():

        def configure(folder: Path, value: Any = value) -> None:
            (folder / "model" / "chat_template.jinja").unlink(missing_ok=True)
            changed(
                folder / "model" / "tokenizer_config.json", lambda j: {**j, "chat_template": value}
            )

        yield Case(f"template config {name}", next(verbs), ("instruct",), configure)
    for name, link in {
        "outside": "../../secret.json",
        "device": "/dev/zero",
        "folder": "/",
    }.items():

        def linked(folder: Path, link: str = link) -> None:
            (folder / "model" / "additional_chat_templates").mkdir()
            (folder / "model" / "additional_chat_templates" / "a.jinja").symlink_to(link)

        yield Case(f"template link {name}", INIT, ("instruct",), linked)


RECIPE = """name: r
base: base
instruct: model
language: ru
text: {ru: text.txt, en: text.txt}
tokenizer: {new_tokens: 5}
pretrain: {tokens: 100}
"""


def recipes() -> Iterator[Case]:
    """Recipes."""
    texts: dict[str, str | bytes] = {
        "itself": "a: &a [*a]\n",
        "itself as object": "a: &a {b: *a}\n",
        "bomb": "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)),
        "deep": "a: " + "[" * 3_000,
        "deep closed": "a: " + "[" * 900 + "]" * 900,
        "deep blocks": "".join(" " * i + "a:\n" for i in range(900)),
        "complex key": "? [a, b]\n: c\n",
        "merge key": "<<: [1, 2]\n",
        "python": "a: !!python/object/apply:os.system ['touch pwned']\n",
        "bytes": b"\xff\xfe\x00",
        "utf-16": RECIPE.encode("utf-16"),
        "empty": "",
        "list": "- a\n",
        "scalar": "a",
        "two documents": RECIPE + "---\n" + RECIPE,
        "long": RECIPE + "note: " + "a" * 3_000_000,
        "many keys": "".join(f"k{i}: 1\n" for i in range(30_000)),
        "name outside": RECIPE.replace("name: r", "name: ../../x"),
        "name absolute": RECIPE.replace("name: r", "name: /tmp/x"),
        "name empty": RECIPE.replace("name: r", 'name: ""'),
        "name dot": RECIPE.replace("name: r", "name: ."),
        "name long": RECIPE.replace("name: r", "name: " + "x" * 300),
        "name escape": RECIPE.replace("name: r", 'name: "\\e[2J"'),
        "name null": RECIPE.replace("name: r", "name: null"),
        "language outside": RECIPE.replace("ru", "../../x"),
        "language absolute": RECIPE.replace("ru", "/tmp/x"),
        "language empty": RECIPE.replace("ru:", '"":'),
        "language long": RECIPE.replace("ru", "x" * 300),
        "heldout outside": RECIPE + "heldout: {../x: text.txt}\n",
        "eval text outside": RECIPE.replace(
            "{tokens: 100}", "{tokens: 100, eval_text: {../x: [text.txt]}}"
        ),
        "seed huge": RECIPE + "select: {seed: 99999999999999999999}\n",
        "seed negative": RECIPE + "init: {seed: -5}\n",
        "seed digits": RECIPE + "select: {seed: " + "9" * 5_000 + "}\n",
        "tokens huge": RECIPE.replace("tokens: 100", "tokens: " + "9" * 30),
        "new tokens huge": RECIPE.replace("new_tokens: 5", "new_tokens: " + "9" * 30),
        "variable": RECIPE.replace("base: base", "base: ${NOPE}"),
        "base outside": RECIPE.replace("base: base", "base: ../../../../etc"),
        "text device": RECIPE.replace("text.txt", "/dev/zero"),
        "grid label outside": RECIPE + "grid: {axes: {../a: {../b: {}}}}\n",
        "grid of many": RECIPE
        + "grid: {axes: {"
        + ", ".join(f"a{i}: {{x: {{}}, y: {{}}}}" for i in range(40))
        + "}}\n",
        "grid seeds": RECIPE + "grid: {seeds: [-1]}\n",
        "evaluate task": RECIPE + "evaluate: {benchmark: {tasks: [../x]}}\n",
        "judge": RECIPE + "calibrate: {judge: ../x}\n",
        "nan": RECIPE.replace("{tokens: 100}", "{tokens: 100, learning_rate: .nan}"),
        "infinite": RECIPE.replace("{tokens: 100}", "{tokens: 100, learning_rate: inf}"),
        "escape key": RECIPE + '"\\e[2J": 1\n',
    }
    verbs = itertools.cycle([RUN, PLAN])
    for name, text in texts.items():
        yield Case(
            f"recipe {name}",
            next(verbs),
            ("base", "model"),
            lambda f, t=text: replaced(f / "recipe.yaml", t),
        )
    for way in ("folder", "fifo", "device", "circle"):

        def make(folder: Path, way: str = way) -> None:
            replaced(folder / "recipe.yaml", RECIPE)
            FILES[way](folder / "recipe.yaml")

        yield Case(f"recipe {way}", next(verbs), ("base", "model"), make)


NAMES = {
    "outside": "../x",
    "absolute": "/x",
    "empty": "",
    "dot": ".",
    "dots": "..",
    "slash": "a/b",
    "long": "x" * 300,
    "escape": "\x1b[2J",
    "newline": "a\nb",
    "backslash": "a\\b",
}


def names() -> Iterator[Case]:
    """Names on the command line that become names of files."""
    commands = [
        COMPARE.replace("ru=", "NAME="),
        EVALUATE.replace("ru=", "NAME="),
        PRETRAIN + " --eval-text NAME=text.txt",
        TUNE + " --text NAME=text.txt",
    ]
    verbs = itertools.cycle(commands)
    for name, value in NAMES.items():
        yield Case(f"name {name}", next(verbs), ("model",), lambda f: None, {"NAME": value})


def folders() -> Iterator[Case]:
    """What lies in a model's folder beside the model."""

    def put(name: str, content: str | bytes) -> Prepare:
        return lambda f: replaced(f / "model" / name, content)

    def link(name: str, target: str) -> Prepare:
        def make(folder: Path) -> None:
            (folder / "model" / name).unlink(missing_ok=True)
            (folder / "model" / name).symlink_to(target)

        return make

    root = '{"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]}'
    cases: dict[str, tuple[Prepare, list[str]]] = {
        "root adapter": (put("adapter_config.json", root), [INIT, ANSWER, EVALUATE, INSPECT]),
        "code": (put("modeling_x.py", "open('pwned', 'w')"), [INIT]),
        "custom generate": (put("custom_generate/generate.py", "open('pwned', 'w')"), [ANSWER]),
        "linked licence": (link("LICENSE", "../secret.json"), [INIT]),
        "linked settings": (link("extra.json", "../secret.json"), [INIT, PROPAGATE]),
        "linked template": (link("chat_template.jinja", "../secret.json"), [INIT, ANSWER]),
        "linked code": (link("x.py", "../secret.json"), [INIT]),
        "linked lep": (link("lep", "../answers"), [INIT]),
        "linked weights": (link("model.safetensors", "/dev/zero"), [INIT, INSPECT]),
        "weights that are no file": (
            lambda f: FILES["fifo"](f / "model" / "model.safetensors"),
            [INIT, INSPECT],
        ),
        "pickled adapter": (
            lambda f: (
                replaced(f / "model" / "adapter" / "adapter_config.json", root),
                replaced(f / "model" / "adapter" / "adapter_model.bin", b"\x80\x04N."),
            ),
            [EVALUATE, ANSWER],
        ),
        "pickled weights": (
            lambda f: (
                (f / "model" / "model.safetensors").unlink(),
                replaced(f / "model" / "pytorch_model.bin", b"\x80\x04N."),
            ),
            [INIT],
        ),
        "megatron": (
            lambda f: changed(
                f / "model" / "adapter" / "adapter_config.json",
                lambda j: {**j, "megatron_config": {"a": 1}, "megatron_core": "antigravity"},
            ),
            [EVALUATE],
        ),
    }
    for value in ("kernels-community/flash-attn", "evil/kernel", {"": "evil/kernel"}):
        cases[f"kernel {value}"] = (
            lambda f, v=value: changed(
                f / "model" / "config.json", lambda j: {**j, "_attn_implementation": v}
            ),
            [EVALUATE, INIT],
        )
    for method in ("bitsandbytes", "gptq", "fp8", "quanto", "nope"):
        cases[f"quantisation {method}"] = (
            lambda f, m=method: changed(
                f / "model" / "config.json",
                lambda j: {**j, "quantization_config": {"quant_method": m, "bits": 4}},
            ),
            [EVALUATE],
        )
    for name, (prepare, commands) in cases.items():
        source = "unmerged" if name == "megatron" else "instruct"
        for command in commands:
            yield Case(f"{name}, {command.split()[0]}", command, (source,), prepare)


def answers() -> Iterator[Case]:
    """Folders of answers, which others may have made."""
    for file in ("kept.jsonl", "answers.jsonl", "answers.json"):
        for way in ("empty", "half", "list", "deep", "digits", "surrogate key", "fifo", "folder"):
            yield Case(
                f"answers {file} {way}",
                CALIBRATE,
                ("instruct", "answers"),
                lambda f, n=file, c=FILES[way]: c(f / "answers" / n),
            )


def runs() -> Iterator[Case]:
    """Run folders, which others may have made."""
    for file in ("run.json", "instruct/scores.json", "instruct/records.jsonl"):
        for way in ("empty", "half", "list", "object", "deep", "digits", "surrogate key", "fifo"):
            yield Case(
                f"run {file} {way}",
                "report run",
                ("run",),
                lambda f, n=file, c=FILES[way]: c(f / "run" / n),
            )
    for title, value in VALUES.items():
        yield Case(
            f"run models {title}",
            "report run",
            ("run",),
            lambda f, v=value: changed(
                f / "run" / "run.json", lambda j: {**j, "instruct_models": v}
            ),
        )


def judged(url: str) -> Iterator[Case]:
    """Judges behind a server, by the name of the reply that the server gives (`REPLIES`)."""
    for name in REPLIES:
        yield Case(
            f"judge {name}",
            ANSWER + f" --judge {name.replace(' ', '-')}@{url}/{name.replace(' ', '-')}",
            ("instruct",),
            lambda f: None,
            {"OPENAI_API_KEY": SECRET},
        )
    for name in ("list of models", "models deep", "not JSON", "html", "unauthorised", "reset"):
        yield Case(
            f"server {name}",
            EVALUATE.replace("evaluate model", f"evaluate model@{url}/{name.replace(' ', '-')}")
            + " --window-characters 60",
            ("instruct",),
            lambda f: None,
            {"OPENAI_API_KEY": SECRET},
        )


SECRET = "sk-very-secret-key"
# Status, headers, body; a body of None closes the connection.
REPLIES: dict[str, tuple[int, dict[str, str], bytes | None]] = {
    "not JSON": (200, {}, b"<html>"),
    "empty": (200, {}, b""),
    "list": (200, {}, b"[]"),
    "number": (200, {}, b"5"),
    "null": (200, {}, b"null"),
    "no choices": (200, {}, b'{"choices": []}'),
    "odd choices": (200, {}, b'{"choices": {"0": 1}}'),
    "content number": (200, {}, b'{"choices": [{"message": {"content": 5}}]}'),
    "content list": (200, {}, b'{"choices": [{"message": {"content": [{"text": "5"}]}}]}'),
    "content object": (200, {}, b'{"choices": [{"message": {"content": {"a": 1}}}]}'),
    "content surrogate": (200, {}, b'{"choices": [{"message": {"content": "\\ud800"}}]}'),
    "content escape": (200, {}, b'{"choices": [{"message": {"content": "\\u001b[2J"}}]}'),
    "deep": (200, {}, DEEP.encode()),
    "digits": (200, {}, b'{"choices": ' + b"9" * 5_000 + b"}"),
    "html": (404, {}, b"<html>\x1b[2J</html>"),
    "bad request": (400, {}, b'{"error": "4"}'),
    "unauthorised": (401, {}, b"bad key " + SECRET.encode() + b" \x1b[2J"),
    "forbidden": (403, {}, b"Bearer " + SECRET.encode()),
    "redirect": (302, {"Location": "file:///etc/passwd"}, b""),
    "redirect to itself": (302, {"Location": "/redirect-to-itself"}, b""),
    "reset": (200, {}, None),
    "wrong length": (200, {"Content-Length": "99"}, b"{}"),
    "wrong encoding": (200, {"Content-Encoding": "gzip"}, b"garbage"),
    "retry": (503, {"Retry-After": "3600"}, b""),
    "latin": (200, {"Content-Type": "application/json; charset=latin-1"}, b'{"a": "\xe9"}'),
    "bomb": (200, {"Content-Encoding": "gzip"}, b"BOMB"),
    "list of models": (200, {}, b'{"data": [1, 2]}'),
    "models deep": (200, {}, DEEP.encode()),
}


def all_cases(url: str) -> list[Case]:
    makers = (
        broken_files,
        odd_values,
        tokenizers,
        headers,
        indexes,
        lines,
        stored,
        packs,
        templates,
        recipes,
        names,
        folders,
        answers,
        runs,
    )
    return [*itertools.chain.from_iterable(make() for make in makers), *judged(url)]


def copied(world: Path, case: Case, folder: Path) -> None:
    """Put what a case needs into its folder; the model that it is about is `model`."""
    folder.mkdir()
    (folder / "secret.json").write_text('{"secret": "of the house"}')
    for name in ("text.txt", "long.txt", "prompts.jsonl"):
        shutil.copy(world / name, folder / name)
    models = [n for n in case.needs if (world / n / "config.json").exists()]
    words = case.command.split()
    others = {n for n in ("base", "adapted", "tokenizer", "answers") if n in words}
    for name in {*case.needs, *others} - {"model"}:
        if (world / name).is_dir():
            shutil.copytree(world / name, folder / name)
        else:
            shutil.copy(world / name, folder / name)
    subject = next((n for n in reversed(case.needs) if n in (*models, "tokenizer")), "instruct")
    if not (folder / "model").exists():
        shutil.copytree(world / (subject if subject != "model" else "instruct"), folder / "model")
