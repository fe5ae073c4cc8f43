"""Tiny models and tokenizers for the tests, and the command line in this process."""

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import psutil
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()
hypothesis.settings.register_profile("any machine", deadline=None)  # busy ones too
hypothesis.settings.load_profile("any machine")
gc.disable()  # until all is imported (`pytest_collection_finish`)

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "lab" / "text" / "train"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|> ' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]


def pytest_collection_finish() -> None:
    """Leave out of every later collection of garbage what torch and transformers hold for good."""
    gc.freeze()
    gc.enable()


def sample_texts(language: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((SAMPLE / language).glob("*.txt"))]


def byte_level_tokenizer(texts: list[str], size: int, specials: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer like Llama 3's in kind."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(
        Regex(r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def byte_fallback_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """A SentencePiece-like BPE tokenizer with byte fallback, like Mistral's in kind."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    spec = json.loads(trained.to_str())
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += spec["model"]["vocab"]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys(names))}
    merges = [tuple(merge) for merge in spec["model"]["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def save_model(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    hidden: int = 32,
    tied: bool = False,
    template: str | None = None,
    padding_rows: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "50GB",
    like: LlamaForCausalLM | None = None,
    noise: float = 0.0,
) -> LlamaForCausalLM:
    """Write a random two-layer Llama (or `like` plus noise) with a tokenizer."""
    torch.manual_seed(seed)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + padding_rows,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    if like is not None:
        for new, old in zip(model.parameters(), like.parameters(), strict=True):
            rows = min(len(new), len(old))
            new.data[:rows] = old.data[:rows] + noise * new.data[:rows]
    if template:
        ends = [tokenizer.token_to_id("<|end|>"), fast.eos_token_id]
        model.generation_config = GenerationConfig(
            bos_token_id=fast.bos_token_id, eos_token_id=ends, max_new_tokens=16, do_sample=False
        )
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    fast.save_pretrained(folder)
    return model


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model in one file."""
    return load_file(folder / "model.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The names of the tensors that differ."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def kill_when(command: list[str], ready, tries: int = 1200, **options) -> None:
    """Start a command, and kill it and all that it started with SIGKILL as soon as `ready()`."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    for _ in range(tries):
        if ready():
            break
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    reached = ready()
    for part in [*psutil.Process(process.pid).children(recursive=True), process]:
        part.kill()
    process.wait()
    assert reached, "it never became ready to be killed"


@pytest.fixture(scope="session")
def english() -> list[str]:
    return sample_texts("en")


@pytest.fixture(scope="session")
def russian() -> list[str]:
    return sample_texts("ru")


@pytest.fixture(scope="session")
def byte_level(english: list[str], russian: list[str]) -> Tokenizer:
    return byte_level_tokenizer(english + russian[:4], 500, SPECIALS)


@pytest.fixture(scope="session")
def byte_fallback(english: list[str], russian: list[str]) -> Tokenizer:
    return byte_fallback_tokenizer(english + russian[:4], 500)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory, byte_level: Tokenizer) -> dict[str, Path]:
    """Base, instruct (the base plus noise, with a chat template), and the extended tokenizer."""
    from lep.tokenizer.write import extend_tokenizer

    folder = tmp_path_factory.mktemp("pair")
    base = save_model(folder / "base", byte_level)
    save_model(folder / "instruct", byte_level, seed=1, like=base, noise=0.3, template=TEMPLATE)
    extend_tokenizer(folder / "base", [SAMPLE / "ru"], 100, folder / "tokenizer")
    return {name: folder / name for name in ("base", "instruct", "tokenizer")}


@pytest.fixture(scope="session")
def adapted(pair: dict[str, Path]) -> Path:
    """The base model with the extended tokenizer, its tables moved as training would."""
    from lep.checkpoint.reader import Checkpoint
    from lep.checkpoint.writer import write_checkpoint
    from lep.tokenizer.load import copy_tokenizer
    from lep.transfer.initialise import initialise

    folder, adapted = (pair["base"].parent / name for name in ("initialised", "adapted"))
    initialise(pair["base"], pair["tokenizer"], folder)
    source = Checkpoint(folder)
    torch.manual_seed(5)
    tables = {name: source.tensor(name) for name in source.tables.names}
    moved = {name: table + 0.01 * torch.randn_like(table) for name, table in tables.items()}
    write_checkpoint(source, moved, adapted)
    copy_tokenizer(folder, adapted)
    return adapted


@pytest.fixture
def here(capsys, monkeypatch):
    """The command line in this process, which is faster than a new Python for each command."""
    from lep.cli import main

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["lep", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        text = "".join(capsys.readouterr())
        assert (left.value.code or 0) == code, text
        return text

    return run
