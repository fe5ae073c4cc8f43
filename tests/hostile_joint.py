"""Hostile inputs of joint training: `lep adapt`, `lep practice`, and mixtures of `lep pretrain`.

Each command of `lep adapt` and of its recipes is refused at the latest by its first stage, for its
text is a single document and cannot be split: nothing trains for minutes.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hostile_cases import (
    FILES,
    LINES,
    NAMES,
    TEMPLATES,
    VALUES,
    Case,
    Prepare,
    changed,
    pack_changes,
    repacked,
    replaced,
)
from safetensors.torch import load_file, save_file

ADAPT = "adapt model --text ru=long.txt --text en=long.txt --output out"
HOURS = ADAPT + " --hours 1"
FROM_PACK = ADAPT + " --from-pack pack"
PRACTICE = "practice --original instruct --model model --text ru=text.txt --output out"
PRACTICE += " --practice-batch 256"
ROWS = "pretrain --model model --corpus text.txt --output out --tokens 100 --block-size 64"
ROWS += " --train new_rows"
MIXTURE = ROWS + " --answers answers --practice-tasks answers --old-text text.txt"


def models() -> Iterator[Case]:
    """Models whose files are broken, or have odd values, under `adapt` and `practice`."""
    files = {
        "config.json": HOURS,
        "generation_config.json": PRACTICE,
        "tokenizer.json": ADAPT,
        "tokenizer_config.json": ADAPT,
        "model.safetensors": ADAPT,
        "lep/mapping.safetensors": PRACTICE,
    }
    for number, (file, command) in enumerate(files.items()):
        learner = command == PRACTICE
        for way, change in itertools.islice(FILES.items(), number % 2, None, 2):
            yield Case(
                f"joint {file} {way}",
                command,
                ("instruct", "learner") if learner else ("instruct",),
                lambda f, n=file, c=change: c(f / "model" / n),
            )
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    keys += ("num_attention_heads", "tie_word_embeddings", "model_type", "text_config")
    values = itertools.cycle(VALUES.items())
    for key in keys:
        for title, value in itertools.islice(values, 4):
            yield Case(
                f"hours config {key} {title}",
                HOURS,
                ("instruct",),
                lambda f, k=key, v=value: changed(f / "model/config.json", lambda j: {**j, k: v}),
            )
    commands = itertools.cycle([ADAPT, PRACTICE, MIXTURE])
    for name, text in TEMPLATES.items():
        yield Case(
            f"joint template {name}",
            next(commands),
            ("instruct", "learner"),
            lambda f, t=text: replaced(f / "model" / "chat_template.jinja", t),
        )


def mappings() -> Iterator[Case]:
    """What a model says of its new rows."""
    changes: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
        "empty": lambda t: dict.fromkeys(t, torch.zeros(0)),
        "no parts": lambda t: {"x": torch.zeros(1)},
        "of floats": lambda t: {**t, "indices": t["indices"].float()},
        "out of range": lambda t: {**t, "indices": t["indices"] + 10**9},
        "negative": lambda t: {**t, "indices": t["indices"] - 10**9},
        "offsets down": lambda t: {**t, "offsets": t["offsets"].flip(0)},
        "source size": lambda t: {**t, "source_size": torch.tensor(2**62)},
        "source size of two": lambda t: {**t, "source_size": torch.tensor([1, 2])},
        "all new": lambda t: {**t, "copies": t["copies"] & False},
        "all known": lambda t: {
            "indices": torch.arange(len(t["copies"])) % 9,
            "offsets": torch.arange(len(t["copies"]) + 1),
            "weights": torch.ones(len(t["copies"]), dtype=torch.float64),
            "copies": t["copies"] | True,
            "source_size": torch.tensor([9]),
        },
        "of fewer rows": lambda t: {
            "indices": torch.arange(2),
            "offsets": torch.tensor([0, 2]),
            "weights": torch.ones(2, dtype=torch.float64),
            "copies": torch.tensor([False]),
            "source_size": torch.tensor([9]),
        },
        "of no rows": lambda t: {
            "indices": torch.arange(0),
            "offsets": torch.tensor([0]),
            "weights": torch.ones(0, dtype=torch.float64),
            "copies": t["copies"][:0],
            "source_size": torch.tensor([9]),
        },
    }
    for name, change in changes.items():
        for file in ("mapping", "output_mapping"):

            def damage(
                folder: Path,
                file: str = file,
                change: Callable[[dict[str, torch.Tensor]], Any] = change,
            ) -> None:
                tensors = change(load_file(folder / "model/lep/mapping.safetensors"))
                path = folder / "model" / "lep" / f"{file}.safetensors"
                path.unlink(missing_ok=True)
                save_file(tensors, path)

            for command in (PRACTICE, ROWS, MIXTURE) if file == "mapping" else (ROWS,):
                title = "practice" if command == PRACTICE else command.partition("--train ")[2][:20]
                yield Case(
                    f"new rows {file} {name}, {title}", command, ("instruct", "learner"), damage
                )

    for name, factor in {"zeros": 0, "nan": float("nan"), "infinities": float("inf")}.items():

        def damage_all(folder: Path, factor: float = factor) -> None:
            path = folder / "model" / "model.safetensors"
            tensors = {name: tensor * factor for name, tensor in load_file(path).items()}
            path.unlink()
            save_file(tensors, path, {"format": "pt"})

        for title, command in {"mixture": MIXTURE, "practice": PRACTICE}.items():
            yield Case(
                f"new rows of a model of {name}, {title}",
                command,
                ("instruct", "learner"),
                damage_all,
            )

    def drop_all(spec: dict[str, Any]) -> None:
        pattern = {"Regex": "(?s)."}
        spec["normalizer"] = {"type": "Replace", "pattern": pattern, "content": ""}
        spec["post_processor"] = None

    for command in (ADAPT, PRACTICE, ROWS, MIXTURE):

        def empty(folder: Path) -> None:
            changed(folder / "model" / "tokenizer.json", drop_all)
            changed(
                folder / "model" / "tokenizer_config.json",
                lambda j: {k: v for k, v in j.items() if k not in ("eos_token", "bos_token")},
            )

        yield Case(
            f"joint tokenizer that drops all, {command.split()[0]} {command[-5:]}",
            command,
            ("instruct", "learner"),
            empty,
        )


def texts() -> Iterator[Case]:
    """Text and prompts."""
    files = itertools.cycle(
        {
            "text": ADAPT.replace("ru=long.txt", "ru=x.jsonl"),
            "prompts": ADAPT + " --prompts x.jsonl",
            "pack": ADAPT + " --from-pack x.jsonl",
            "practice": PRACTICE.replace("text.txt", "x.jsonl"),
            "old text": MIXTURE.replace("--old-text text.txt", "--old-text x.jsonl"),
            "answers": MIXTURE.replace("--answers answers", "--answers x.jsonl"),
            "tasks": MIXTURE.replace("--practice-tasks answers", "--practice-tasks x.jsonl"),
        }.items()
    )
    for way, change in FILES.items():
        for name, command in itertools.islice(files, 3):

            def damage(folder: Path, change: Callable[[Path], object] = change) -> None:
                (folder / "x.jsonl").write_bytes((folder / "prompts.jsonl").read_bytes())
                change(folder / "x.jsonl")

            yield Case(f"joint file, {name} {way}", command, ("instruct", "learner"), damage)
    x = "x.jsonl"
    chats = {
        "prompts": f"{ADAPT} --prompts {x}",
        "answers": MIXTURE.replace("--answers answers", f"--answers {x}"),
        "tasks": MIXTURE.replace("--practice-tasks answers", f"--practice-tasks {x}"),
    }
    plain = {
        "new": ADAPT.replace("ru=long.txt", f"ru={x}"),
        "old": ADAPT.replace("en=long.txt", f"en={x}"),
        "practice": PRACTICE.replace("text.txt", x),
        "practice, old": f"{PRACTICE} --old-text en={x}",
        "practice, held-out": f"{PRACTICE} --eval-text en={x}",
        "old text": MIXTURE.replace("--old-text text.txt", f"--old-text {x}"),
    }
    talks, readers = itertools.cycle(chats.items()), itertools.cycle(plain.items())
    for name, content in LINES.items():
        for title, command in (next(talks), next(readers)):
            yield Case(
                f"joint jsonl {name}, {title}",
                command,
                ("instruct", "learner"),
                lambda f, c=content: replaced(f / x, c),
            )
    names = {"escape": "x\x1b[2J.txt", "bytes": "x\udcff.txt", "newline": "x\nerror: y.txt"}
    commands = {
        "adapt": ADAPT.replace("long.txt", "INPUT"),
        "practice": PRACTICE.replace("text.txt", "INPUT"),
        "old text": MIXTURE.replace("--old-text text.txt", "--old-text INPUT"),
    }
    for title, name in names.items():
        for verb, command in commands.items():
            yield Case(
                f"joint name of a file, {title}, {verb}",
                command,
                ("instruct", "learner"),
                lambda f, n=name: (f / n).write_bytes((f / "text.txt").read_bytes()),
                {"INPUT": name},
            )
    for file in ("kept.jsonl",):
        for way, change in FILES.items():
            yield Case(
                f"mixture {file} {way}",
                MIXTURE,
                ("instruct", "learner", "answers"),
                lambda f, n=file, c=change: c(f / "answers" / n),
            )


def options() -> Iterator[Case]:
    """Names, shares and other values on the command line."""
    verbs = itertools.cycle(
        {
            "adapt": ADAPT.replace("ru=", "NAME="),
            "language": ADAPT + " --language NAME",
            "practice": PRACTICE.replace("ru=", "NAME="),
            "practice, held-out": PRACTICE + " --eval-text NAME=text.txt",
            "title": ADAPT + " --title NAME",
            "shares": MIXTURE + " --shares NAME=1",
            "output": ADAPT.replace("--output out", "--output out/NAME"),
            "pack": ADAPT + " --from-pack NAME",
            "change": ADAPT + " note=NAME",
            "changed key": ADAPT + " adapt.NAME=1",
            "old text": PRACTICE + " --old-text NAME=text.txt",
        }.items()
    )
    for title, value in NAMES.items():
        for verb, command in itertools.islice(verbs, 4):
            yield Case(
                f"joint name {title}, {verb}",
                command,
                ("instruct", "learner"),
                lambda f: None,
                {"NAME": value},
            )
    shares = {
        "nan": "text=nan",
        "infinite": "text=inf",
        "minus": "text=-1",
        "huge": "text=1e308,old_text=1e308,answers=1e308",
        "tiny": "text=1e-320,old_text=0,answers=0,practice=0,old_answers=0",
        "tiny beside": "text=1,old_text=1e-300",
        "zero": "text=0,old_text=0,answers=0,practice=0,old_answers=0",
        "no text": "text=0",
        "words": "text=x",
        "no value": "text=",
        "no name": "=1",
        "nothing": ",,,",
        "twice": "text=1,text=2",
        "digits": "text=" + "9" * 5_000,
    }
    values = {f"shares {title}": MIXTURE + f" --shares {value}" for title, value in shares.items()}
    huge = "9" * 400
    values |= {
        "tokens huge": ROWS.replace("100", huge),
        "mixture tokens huge": MIXTURE.replace("100", "9" * 18),
        "mixture tokens of digits": MIXTURE.replace("100", huge),
        "relative rate infinite": MIXTURE + " --relative-rate inf",
        "relative rate nan": MIXTURE + " --relative-rate nan",
        "relative rate huge": MIXTURE + " --relative-rate 1e308",
        "learning rate infinite": ROWS + " --learning-rate inf",
        "learning rate huge": ROWS + " --learning-rate 1e308",
        "weight decay huge": ROWS + " --weight-decay 1e308",
        "alpha huge": MIXTURE.replace("new_rows", "embeddings+lora") + " --lora-alpha 1e308",
        "warm-up huge": ROWS + f" --warmup-steps {'9' * 18}",
        "states many": ROWS + f" --checkpoints {'9' * 18} --eval-text ru=text.txt",
        "looks huge": ROWS + f" --eval-characters {'9' * 18} --eval-text ru=text.txt",
        "block large": MIXTURE.replace("--block-size 64", f"--block-size {'9' * 18}"),
        "batch large": MIXTURE + f" --batch-tokens {'9' * 18}",
        "micro-batch large": MIXTURE + f" --micro-batch-tokens {'9' * 18}",
        "weight decay infinite": ROWS + " --weight-decay inf",
        "epochs infinite": MIXTURE.replace("--tokens 100", "--epochs inf"),
        "epochs huge": MIXTURE.replace("--tokens 100", "--epochs 1e300"),
        "block of one": MIXTURE.replace("--block-size 64", "--block-size 1"),
        "block huge": MIXTURE.replace("--block-size 64", f"--block-size {huge}"),
        "batch huge": MIXTURE + f" --batch-tokens {huge}",
        "micro-batch huge": MIXTURE + f" --micro-batch-tokens {huge}",
        "practice huge": PRACTICE + f" --practice {huge}",
        "practice batch huge": PRACTICE + f" --practice-batch {huge}",
        "practice tokens huge": PRACTICE + f" --practice-tokens {huge}",
        "practice without text": PRACTICE.replace("--text ru=text.txt ", ""),
        "adapt tokens huge": ADAPT + f" --tokens {huge}",
        "adapt new tokens huge": ADAPT + f" --new-tokens {huge}",
        "adapt hours nan": ADAPT + " --hours nan",
        "adapt hours infinite": ADAPT + " --hours inf",
        "adapt hours minus": ADAPT + " --hours -1",
        "adapt hours tiny": ADAPT + " --hours 1e-300",
        "adapt new tokens many": ADAPT + " --new-tokens 99999",
        "adapt hours huge": ADAPT + " --hours 1e308",
    }
    changes = {
        "limit huge": f"corpus.limit_characters={huge}",
        "share tiny": "corpus.heldout_share=1e-300",
        "section": "adapt=x",
        "section list": "adapt=[1]",
        "section null": "adapt=null",
        "tokenizer null": "tokenizer=null",
        "corpus null": "corpus=null",
        "text null": "text=null",
        "text list": "text=[1]",
        "itself": "text={ru:&a[*a]}",
        "text outside": "text.../x=text.txt",
        "grid": "grid.seeds=[1]",
        "language": "language=xx",
        "keep all": "tokenizer.method=optimize tokenizer.keep=9 tokenizer.vocab_size=9",
        "keep more": "tokenizer.method=optimize tokenizer.keep=99 tokenizer.vocab_size=9",
        "bpe": "tokenizer.method=bpe tokenizer.vocab_size=9",
        "shares huge": "adapt.shares.text=1e308 adapt.shares.practice=1e308",
        "shares nan": "adapt.shares.text=nan",
        "shares tiny": "adapt.shares.text=1e-320",
        "epochs huge": "adapt.epochs=1e308",
        "no key": "=1",
        "dots": "...=1",
        "name outside": "name=../x",
    }
    for title, change in changes.items():
        values[f"change {title}"] = f"{ADAPT} {change}"
    for title, command in values.items():
        yield Case(f"joint option {title}", command, ("instruct", "learner"), lambda f: None)


def packs() -> Iterator[Case]:
    """Packs to start from."""
    for name, change in pack_changes().items():
        yield Case(
            f"adapt pack {name}",
            FROM_PACK,
            ("instruct", "pack"),
            lambda f, c=change: repacked(f / "pack", c),
        )


def outputs() -> Iterator[Case]:
    """Recipes that lie in the output already: of the same command, and anything else."""

    def put(prepare: Callable[[Path], object], command: str | None = None) -> Prepare:
        def make(folder: Path) -> None:
            (folder / "out").mkdir()
            replaced(folder / "out" / "recipe.yaml", f"# {command}\n{RECIPE}")
            prepare(folder / "out" / "recipe.yaml")

        return make

    for way, change in FILES.items():
        yield Case(f"output {way}", ADAPT, ("instruct",), put(change))

    def same(text: str) -> Prepare:
        def make(folder: Path) -> None:
            words = ["lep", "adapt", str(folder / "model")]
            for code in ("ru", "en"):
                words += ["--text", f"{code}={folder / 'long.txt'}"]
            words += ["--language", "ru", "--output", str(folder / "out")]
            (folder / "out").mkdir()
            replaced(folder / "out" / "recipe.yaml", f"# {' '.join(words)}\n{text}")

        return make

    texts = {
        "empty": "",
        "binary": "\0\x1b",
        "another": RECIPE,
        "itself": "a: &a [*a]\n",
        "outside": RECIPE.replace("name: r", "name: ../../x"),
        "deep": "a: " + "[" * 3_000,
        "surrogate": '"\\ud800": 1\n',
    }
    for title, text in texts.items():
        yield Case(f"output of the same command, {title}", ADAPT, ("instruct",), same(text))
    for name in (".lock", "corpus", "run.json", "report.html", "table.txt"):
        for way in ("fifo", "folder", "circle", "device"):

            def lie(path: Path, name: str = name, way: str = way) -> None:
                replaced(path.parent / name, "x")
                FILES[way](path.parent / name)
                replaced(path.parents[1] / "recipe.yaml", RECIPE)

            yield Case(
                f"output with {name} {way}", "run recipe.yaml --output out", ("instruct",), put(lie)
            )
    manifests: dict[str, Any] = {"object": {}, "null": {"fingerprint": None}, "list": [1]}
    manifests |= {"nested": {"fingerprint": {"a": [1]}, "seconds": {}}}
    for title, value in manifests.items():
        for grid in ("", "grid: {seeds: [1, 2]}\n"):

            def stage(path: Path, value: Any = value, grid: str = grid) -> None:
                (path.parent / "corpus").mkdir()
                replaced(path.parent / "corpus" / "lep_stage.json", json.dumps(value))
                replaced(path.parents[1] / "recipe.yaml", RECIPE + grid)

            yield Case(
                f"output with a stage {title}{', grid' if grid else ''}",
                "run recipe.yaml --output out",
                ("instruct",),
                put(stage),
            )


RECIPE = """name: r
instruct: model
language: ru
text: {ru: long.txt, en: long.txt}
tokenizer: {new_tokens: 5}
adapt: {tokens: 100}
"""


def recipes() -> Iterator[Case]:
    """Recipes of joint training."""
    huge = "9" * 400
    sections = {
        "tokens huge": f"tokens: {huge}",
        "tokens minus": "tokens: -1",
        "tokens nan": "tokens: .nan",
        "epochs huge": "epochs: 1e308",
        "epochs tiny": "epochs: 1e-320",
        "epochs infinite": "epochs: inf",
        "tokens and epochs": "tokens: 1, epochs: 1",
        "looks all": "tokens: 100, looks_share: 1",
        "looks none": "tokens: 100, looks_share: 0",
        "looks nan": "tokens: 100, looks_share: nan",
        "looks tiny": "tokens: 100, looks_share: 1e-320",
        "shares list": "tokens: 100, shares: [1]",
        "shares text": "tokens: 100, shares: text=1",
        "shares nan": "tokens: 100, shares: {text: nan}",
        "shares minus": "tokens: 100, shares: {text: -1}",
        "shares huge": "tokens: 100, shares: {text: 1e308, practice: 1e308}",
        "shares tiny": "tokens: 100, shares: {text: 1e-320}",
        "shares of another": "tokens: 100, shares: {'../x': 1}",
        "shares with an escape": 'tokens: 100, shares: {"\\e[2J": 1}',
        "shares nested": "tokens: 100, shares: {text: {a: 1}}",
        "shares null": "tokens: 100, shares: null",
        "shares of a long name": "tokens: 100, shares: {" + "x" * 100_000 + ": 1}",
        "rate infinite": "tokens: 100, relative_rate: inf",
        "a step of no nats": "tokens: 100, logit_step: 0",
        "a step that is no number": "tokens: 100, logit_step: .nan",
        "decay infinite": "tokens: 100, weight_decay: inf",
        "temperature infinite": "tokens: 100, temperature: inf",
        "prompt temperature infinite": "tokens: 100, prompt_temperature: inf",
        "prompt tasks huge": f"tokens: 100, prompt_tasks: {huge}",
        "own prompts huge": f"tokens: 100, own_prompts: {huge}",
        "practice tokens huge": f"tokens: 100, practice_tokens: {huge}",
        "after another": "tokens: 100, after: swap",
        "after itself": "tokens: 100, after: adapt",
        "after list": "tokens: 100, after: [[a]]",
        "old text": "tokens: 100, old_text: [/etc/passwd]",
        "answers": "tokens: 100, answers: /etc",
        "evaluation text": "tokens: 100, eval_text: {../x: text.txt}",
        "train": "tokens: 100, train: new_rows+everything",
        "judge outside": "tokens: 100, judge: ../x",
        "empty": "",
    }
    for key in ("from_pack", "prompts"):
        sections |= {
            f"{key} {title}": f"tokens: 100, {key}: {value}"
            for title, value in {
                "device": "/dev/zero",
                "root": "/",
                "here": ".",
                "missing": "nope",
                "zero": '"a\\0b"',
                "long": "x" * 300,
                "outside": "secret.json",
                "number": "5",
                "list": "[a]",
                "surrogate": '"\\ud800"',
                "text": "text.txt",
                "fifo": "pipe.jsonl",
                "model": "model",
                "escape": '"\\e[2J"',
            }.items()
        }
    run = "run recipe.yaml --output out"
    verbs = itertools.cycle([run, "plan recipe.yaml"])
    for name, section in sections.items():

        def make(folder: Path, section: str = section) -> None:
            os.mkfifo(folder / "pipe.jsonl")
            replaced(folder / "recipe.yaml", RECIPE.replace("tokens: 100", section))

        command = run if "from_pack" in name else next(verbs)
        yield Case(f"recipe adapt {name}", command, ("instruct",), make)
    others = {
        "adapt null": RECIPE.replace("{tokens: 100}", "null"),
        "adapt list": RECIPE.replace("{tokens: 100}", "[1]"),
        "adapt text": RECIPE.replace("{tokens: 100}", "x"),
        "adapt with a base": RECIPE + "base: base\n",
        "adapt, pack and base": RECIPE.replace("100", "100, from_pack: text.txt")
        + "base: model\npretrain: {tokens: 9}\n",
        "adapt, zero in a model": RECIPE.replace("instruct: model", 'instruct: "a\\0b"'),
        "adapt, zero in a text": RECIPE.replace("ru: long.txt", 'ru: "a\\0b"'),
        "adapt, surrogate in a text": RECIPE.replace("ru: long.txt", 'ru: "\\ud800"'),
        "adapt, surrogate in a title": RECIPE + 'title: "\\ud800"\n',
        "adapt, one language": RECIPE.replace(", en: long.txt", ""),
        "adapt, a grid of seeds": RECIPE + "grid: {seeds: [99999999999999999999]}\n",
        "adapt, a grid of shares": RECIPE
        + "grid: {axes: {a: {x: {adapt: {shares: {text: nan}}}, y: {}}}}\n",
    }
    for name, text in others.items():
        yield Case(
            f"recipe {name}",
            next(verbs),
            ("base", "instruct"),
            lambda f, t=text: replaced(f / "recipe.yaml", t),
        )


def joint_cases() -> list[Case]:
    makers = (models, mappings, texts, options, packs, outputs, recipes)
    return [*itertools.chain.from_iterable(make() for make in makers)]
