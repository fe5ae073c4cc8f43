"""Train the lab pair: a small Llama-architecture base model and the instruct model tuned from it.

    python lab/make_pair.py --data DATA --output lab/pair [--work runs/lab]

DATA holds `train/en` and `train/ru` (jsonl.zst, jsonl or txt). The pair stands in for a real
base/instruct pair in the demo, the tests and the experiments: it is lopsided (four fifths English,
one fifth Russian), uses a chat format and solves tasks that can be scored exactly. An interrupted
stage resumes; a finished one is skipped.
"""

import argparse
import json
import math
import random
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
    set_seed,
)

from lep.corpus.prepare import Split, prepare
from lep.corpus.read import Document, read_documents, write_records
from lep.corpus.tasks import PROMPTS, TaskItem, make_tasks, sentences
from lep.training.trainer import TrainedOnlyTrainer, run

LANGUAGES = ("en", "ru")
VOCABULARY, CONTEXT, BLOCK = 4096, 1024, 512
SPECIALS = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
BASE_CHARACTERS = {"en": 26_000_000, "ru": 6_500_000}  # four fifths English, one fifth Russian
TUNING_CHARACTERS = 12_000_000
# Tuning rounds: tokens, peak learning rate, share of English, and the weight of each task. One-word
# answers need many samples because each has few tokens. The last round targets the hardest task:
# the last word of an English sentence.
SHARES = {"copy_sentence": 6, "copy_paragraph": 3, "first_word": 3, "last_word": 4, "word_after": 4}
LAST_SHARES = {
    "copy_sentence": 2,
    "copy_paragraph": 1,
    "first_word": 2,
    "last_word": 8,
    "word_after": 1,
}
ROUNDS = [
    (12_000_000, 1.5e-3, 0.5, SHARES),
    (10_000_000, 1.5e-3, 0.5, SHARES),
    (3_200_000, 1e-3, 0.65, LAST_SHARES),
]
CORPUS_CHARACTERS = {"en": 4_000_000, "ru": 34_000_000}  # for experiments with the pair
HELDOUT_SHARE, HELDOUT_CHARACTERS = 0.05, 1_000_000
SEED = 20
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PRE_TOKENS = r" ?\p{L}[\p{L}\p{M}]*| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
# Groups that the split must keep together but the id alone does not show: LLM answers by prompt,
# works by author.
GROUPS = {
    "instruct_ru_llm_arena": r"#(\d+)$",
    "drama_rusdracor": r"tei/([^-]+)-",
    "novels_eltec": r"_(\w+)\.xml$",
}


def group(source: str, record: dict[str, Any]) -> str:
    """The author, prompt or document to which a record belongs."""
    name = str(record.get("author") or record.get("id"))
    match = re.search(GROUPS.get(source, r"$^"), name)
    return match.group(1) if match else name


def split_corpus(data: Path, language: str, characters: int) -> Split:
    """The language's text, split by group with a fixed hash; a source gives at most a quarter."""
    documents = read_documents([data / "train" / language], group=group)
    return prepare(
        documents,
        heldout_share=HELDOUT_SHARE,
        limit_characters=characters,
        limit_heldout_characters=HELDOUT_CHARACTERS,
        source_share=0.25,
    )


def write_corpus(data: Path, folder: Path) -> None:
    """Write the split for the experiments; the pair's own training text comes first in `train`."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        split = split_corpus(data, language, CORPUS_CHARACTERS[language])
        for side, documents in (("train", split.train), ("heldout", split.heldout)):
            write_records(
                partial / f"{language}.{side}.jsonl",
                ({"id": d.id, "text": d.text} for d in documents),
            )
    partial.rename(folder)


def with_repeats(documents: list[Document], share: float = 0.3) -> Iterator[Document]:
    """Repeat a few sentences in some documents, so that this small model learns to copy early.

    It must copy before it is tuned. Large models learn this from the web; 10M tokens of books and
    encyclopaedias do not repeat themselves.
    """
    for document in documents:
        rng = random.Random(f"{SEED}/{document.id}")
        text = document.text
        if rng.random() < share and len(text) > 400:
            start = text.find(" ", rng.randrange(len(text) - 300)) + 1
            end = text.find(" ", min(start + rng.randrange(60, 300), len(text) - 1))
            span = text[start : end if end > 0 else None]
            text = text[: start + len(span)] + "\n" + span + "\n" + text[start + len(span) :]
        yield Document(document.id, text, document.source, document.group)


def train_tokenizer(texts: Iterator[str], output: Path) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on the base model's mixture of text."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRE_TOKENS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIALS, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    fast.save_pretrained(output)
    return fast


def tokenize_documents(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast, batch_documents: int = 256
) -> Iterator[list[int]]:
    """Token ids of each document, with the tokenizer's prefix (BOS) and one EOS at the end."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    batch: list[str] = []
    for document in chain(documents, [None]):
        if document is not None:
            batch.append(document.text)
        if batch and (document is None or len(batch) == batch_documents):
            for ids in tokenizer(batch)["input_ids"]:
                yield ids if ids[-len(end) :] == end and end else ids + end
            batch = []


def pack(token_lists: Iterable[list[int]], block_size: int) -> Iterator[np.ndarray]:
    """Concatenate token lists and cut them into blocks of `block_size`; the last may be shorter.

    >>> [b.tolist() for b in pack([[1, 2, 3], [4], [5, 6, 7]], 4)]
    [[1, 2, 3, 4], [5, 6, 7]]
    """
    buffer: list[int] = []
    for tokens in token_lists:
        buffer += tokens
        start = 0
        while len(buffer) - start >= block_size:
            yield np.asarray(buffer[start : start + block_size], dtype=np.int32)
            start += block_size
        del buffer[:start]
    if buffer:
        yield np.asarray(buffer, dtype=np.int32)


def base_blocks(
    splits: dict[str, Split], tokenizer: PreTrainedTokenizerFast
) -> list[dict[str, torch.Tensor]]:
    """All training blocks of the base model, with languages mixed in a fixed random order."""
    documents = [d for split in splits.values() for d in split.train]
    random.Random(SEED).shuffle(documents)
    blocks = [
        torch.from_numpy(b).long()
        for b in pack(tokenize_documents(with_repeats(documents), tokenizer), BLOCK)
    ]
    return [{"input_ids": b, "labels": b} for b in blocks if len(b) == BLOCK]


def tuning_items(
    splits: dict[str, Split], seed: int, english: float, shares: dict[str, int]
) -> Iterator[TaskItem]:
    """An endless stream of tuning items in both languages."""
    pools = {
        language: make_tasks(
            split.train, language, list(PROMPTS[language]), count=40_000, seed=SEED
        )
        for language, split in splits.items()
    }
    by_task: dict[tuple[str, str], list[TaskItem]] = defaultdict(list)
    for pool in pools.values():
        for item in pool:
            by_task[item.language, item.task].append(item)
    rng = random.Random(seed)
    names, weights = list(shares), list(shares.values())
    while True:
        language = "en" if rng.random() < english else "ru"
        yield rng.choice(by_task[language, rng.choices(names, weights)[0]])


def tuning_blocks(
    splits: dict[str, Split],
    tokenizer: PreTrainedTokenizerFast,
    tokens: int,
    items: Iterator[TaskItem],
    rng: random.Random,
    plain_share: float = 0.05,
) -> list[dict[str, torch.Tensor]]:
    """Blocks of whole samples, with the loss on answers and on plain text.

    Position ids restart at every sample. Plain text is longer: 5% of the samples make up about 15%
    of the tokens.
    """
    starts = (" ".join(sentences(d.text)[:12]) for split in splits.values() for d in split.train)
    plain = [start for start in starts if start]
    blocks: list[dict[str, torch.Tensor]] = []
    block = _empty_block()
    while len(blocks) * BLOCK < tokens:
        if rng.random() < plain_share:
            ids = [*tokenizer(rng.choice(plain))["input_ids"][: BLOCK - 1], tokenizer.eos_token_id]
            labels = list(ids)
        else:
            messages = next(items).record()["messages"]
            prompt = tokenizer.apply_chat_template(
                messages[:1], add_generation_prompt=True, return_dict=False
            )
            ids = tokenizer.apply_chat_template(messages, return_dict=False)
            labels = [-100] * len(prompt) + ids[len(prompt) :]
        if len(ids) > BLOCK:
            continue
        if len(block["input_ids"]) + len(ids) > BLOCK:
            blocks.append(_filled(block, tokenizer.pad_token_id))
            block = _empty_block()
        block["input_ids"] += ids
        block["labels"] += labels
        block["position_ids"] += range(len(ids))
    return blocks


def _empty_block() -> dict[str, list[int]]:
    return {"input_ids": [], "labels": [], "position_ids": []}


def _filled(block: dict[str, list[int]], pad: int) -> dict[str, torch.Tensor]:
    missing = BLOCK - len(block["input_ids"])
    fill = {
        "input_ids": [pad] * missing,
        "labels": [-100] * missing,
        "position_ids": list(range(missing)),
    }
    return {name: torch.tensor(block[name] + fill[name]) for name in block}


def train(
    model: LlamaForCausalLM,
    blocks: list,
    work: Path,
    *,
    learning_rate: float,
    weight_decay: float,
    bf16: bool = True,
) -> float:
    """Train for one pass over the blocks (float32 weights, bf16 autocast); returns wall seconds."""
    model.config.use_cache = False  # a cache would disable the isolation of packed samples
    arguments = TrainingArguments(
        output_dir=str(work),
        use_cpu=not torch.cuda.is_available(),
        bf16=bf16,
        seed=SEED,
        max_steps=math.ceil(len(blocks) / 16),
        per_device_train_batch_size=16,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        adam_beta2=0.95,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=0.05,
        max_grad_norm=1.0,
        logging_steps=20,
        save_steps=200,
        save_total_limit=1,
        report_to=[],
        remove_unused_columns=False,
    )
    trainer = TrainedOnlyTrainer(model=model, args=arguments, train_dataset=blocks)
    losses, seconds = run(trainer)
    model.config.use_cache = True
    (work / "loss.json").write_text(json.dumps([asdict(loss) for loss in losses]), encoding="utf-8")
    return seconds


def publish(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path, facts: dict
) -> None:
    """Write the model in bf16 with its tokenizer and the facts of its training."""
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(partial)  # type: ignore[arg-type]
    tokenizer.save_pretrained(partial)
    (partial / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)


def make_base(data: Path, output: Path, work: Path) -> None:
    """Train the tokenizer and the base model."""
    set_seed(SEED)
    splits = {
        language: split_corpus(data, language, BASE_CHARACTERS[language]) for language in LANGUAGES
    }
    # Real tokenizers are more lopsided than the training text.
    sample = [d.text for d in splits["en"].train[::8] + splits["ru"].train[::16]]
    tokenizer = train_tokenizer(iter(sample), work / "tokenizer")
    blocks = base_blocks(splits, tokenizer)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    seconds = train(model, blocks, work / "base", learning_rate=3e-3, weight_decay=0.1)
    facts = {
        "training_tokens": len(blocks) * BLOCK,
        "seconds": round(seconds),
        "learning_rate": 3e-3,
    }
    publish(model, tokenizer, output / "base", facts)


def chat_tokenizer(base: Path) -> tuple[PreTrainedTokenizerFast, GenerationConfig]:
    """The base model's tokenizer with the chat template, and the generation settings."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.chat_template = CHAT_TEMPLATE
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    return tokenizer, GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[end, tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=256,
    )


def make_instruct(data: Path, output: Path, work: Path) -> None:
    """Tune the whole base model on chat tasks, in rounds with fresh samples and a new schedule."""
    set_seed(SEED)
    splits = {language: split_corpus(data, language, TUNING_CHARACTERS) for language in LANGUAGES}
    tokenizer, generation = chat_tokenizer(output / "base")
    source = output / "base"
    facts = {"training_tokens": 0, "seconds": 0, "learning_rate": ROUNDS[0][1]}
    for number, (tokens, rate, english, shares) in enumerate(ROUNDS):
        result = work / f"round-{number}"
        if not result.exists():
            items = tuning_items(splits, SEED + number, english, shares)
            blocks = tuning_blocks(
                splits, tokenizer, tokens, items, random.Random(SEED + number + 1)
            )
            model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
            seconds = train(
                model, blocks, work / f"instruct-{number}", learning_rate=rate, weight_decay=0.0
            )
            facts["training_tokens"] += len(blocks) * BLOCK
            facts["seconds"] += round(seconds)
            model.generation_config = generation
            publish(model, tokenizer, result, facts)
        facts = json.loads((result / "training.json").read_text(encoding="utf-8"))
        source = result
    shutil.copytree(source, output / "instruct")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train/en and train/ru"
    )
    parser.add_argument("--output", type=Path, default=Path("lab/pair"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/lab"), help="for training checkpoints"
    )
    arguments = parser.parse_args()
    if not (arguments.work / "corpus").exists():
        write_corpus(arguments.data, arguments.work / "corpus")
    if not (arguments.output / "base").exists():
        make_base(arguments.data, arguments.output, arguments.work)
    if not (arguments.output / "instruct").exists():
        make_instruct(arguments.data, arguments.output, arguments.work)


if __name__ == "__main__":
    main()
