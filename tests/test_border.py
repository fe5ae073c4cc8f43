"""What comes in from outside: files of models, names, replies, and what is printed of them."""

import json
import os
import pickle
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import TEMPLATE, save_model
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lep.calibration.judge import grades, load_judge
from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, CorpusError, LepError, foreign, printable, redacted
from lep.files import parse_json, read_json
from lep.inference.generate import answers
from lep.inference.models import load_model
from lep.pipeline.recipe_file import load_recipe
from lep.settings import EvaluateSettings, Texts
from lep.tokenizer.chat import chat_ids, rendered
from lep.tokenizer.load import load_tokenizer
from lep.transfer.initialise import initialise

PEFT = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}


@pytest.fixture
def instruct(pair: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the instruct model that a test may change."""
    return Path(shutil.copytree(pair["instruct"], tmp_path / "instruct"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickled_adapter_is_not_read(instruct: Path, tmp_path: Path) -> None:
    adapter = instruct / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(PEFT))
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Touch(tmp_path / "run")))
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors, and pickled"):
        load_model(instruct)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"peft_type": "XLORA"}, "is a XLORA adapter, only LORA"),
        ({"megatron_core": "antigravity"}, "sets megatron_core"),
        ({"target_modules": "(a+)+$"}, "names its modules by a pattern"),
        ({"r": "x"}, "cannot be merged"),
    ],
)
def test_an_adapter_that_asks_for_more_is_refused(setting, message, instruct: Path) -> None:
    (instruct / "adapter").mkdir()
    save_file({}, instruct / "adapter" / "adapter_model.safetensors")
    (instruct / "adapter" / "adapter_config.json").write_text(json.dumps(PEFT | setting))
    with pytest.raises(CheckpointError, match=message):
        load_model(instruct)


def test_an_adapter_in_the_root_is_refused_by_every_verb(
    instruct: Path, pair: dict[str, Path], tmp_path: Path, here
) -> None:
    """transformers applies it in silence, and other programs do not."""
    (instruct / "adapter_config.json").write_text(json.dumps(PEFT))
    save_file({}, instruct / "adapter_model.safetensors")
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    for arguments in (
        ["inspect", instruct],
        ["init", "--model", instruct, "--tokenizer", pair["tokenizer"], "--output", tmp_path / "o"],
        ["answer", "--original", instruct, "--prompts", prompts, "--output", tmp_path / "o"],
        ["evaluate", instruct, "--text", f"ru={prompts}", "--output", tmp_path / "o"],
        ["verify", pair["base"], instruct],
    ):
        assert "has an adapter beside its weights" in here(*arguments, code=2)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["config.json", "extra.json", "LICENSE", "chat_template.jinja"])
def test_a_link_that_leads_out_of_the_folder_is_not_read(
    name: str, instruct: Path, pair: dict[str, Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"model_type": "llama", "secret": 1}')
    (instruct / name).unlink(missing_ok=True)
    (instruct / name).symlink_to(secret)
    with pytest.raises(CheckpointError, match=f"{name} is a link to {secret}, outside its folder"):
        initialise(instruct, pair["tokenizer"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_links_of_the_hubs_cache_are_followed(instruct: Path, tmp_path: Path) -> None:
    """A snapshot holds links into the blobs beside it."""
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(instruct.iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert Checkpoint(snapshot).check().config == Checkpoint(instruct).config
    (tmp_path / "m" / "refs").mkdir()
    (tmp_path / "m" / "refs" / "x.json").write_text("{}")
    (snapshot / "extra.json").symlink_to("../../refs/x.json")
    with pytest.raises(CheckpointError, match=r"extra\.json is a link"):
        Checkpoint(snapshot)


@pytest.mark.parametrize("value", ["owner/repo", "kernels-community/flash-attn", {"": "a/b"}])
@pytest.mark.parametrize("inside", [False, True])
def test_a_kernel_of_the_hub_is_refused(value, inside: bool, instruct: Path) -> None:
    settings = {"_attn_implementation": value}
    change(instruct / "config.json", **({"text_config": settings} if inside else settings))
    with pytest.raises(CheckpointError, match=r"names the kernel .*delete this setting"):
        Checkpoint(instruct)


def test_attention_is_the_default_whatever_the_folder_says(instruct: Path) -> None:
    change(instruct / "config.json", _attn_implementation="flash_attention_2")
    assert load_model(instruct)[0].config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "setting",
    [
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 5.0},
        {"num_beams": 3},
        {"suppress_tokens": [*range(5, 400)]},
        {"sequence_bias": [[[7], 50.0]]},
        {"bad_words_ids": [[index] for index in range(5, 400)]},
        {"forced_eos_token_id": 1},
        {"min_new_tokens": 5},
        {"do_sample": True, "temperature": 9.0},
        {"eos_token_id": None, "cache_implementation": "nope"},
        {"watermarking_config": {"bias": 9.0}},
        {"no_repeat_ngram_size": "many", "top_k": []},
    ],
)
def test_a_greedy_answer_is_greedy(setting: dict, instruct: Path) -> None:
    """Whatever generation_config.json says: the reference takes the largest logit each time."""
    messages = [{"role": "user", "content": "one two one two one two"}]
    model = AutoModelForCausalLM.from_pretrained(instruct)
    tokenizer = AutoTokenizer.from_pretrained(instruct)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ends = json.loads((instruct / "generation_config.json").read_text())["eos_token_id"]
    expected: list[int] = []
    with torch.inference_mode():
        while len(expected) < 12:
            logits = model(input_ids=torch.tensor([[*ids, *expected]])).logits[0, -1]
            if (token := int(logits.argmax())) in ends:
                break
            expected.append(token)
    assert len(set(expected)) < len(expected), "it repeats itself, so that penalties would show"
    change(instruct / "generation_config.json", **setting)
    loaded, checkpoint = load_model(instruct)
    options = {"max_new_tokens": 12, "batch_size": 1}
    ((answer,),) = answers(loaded, checkpoint.tokenizer, [messages], **options)
    assert answer.ids == expected


@pytest.mark.parametrize("value", ["</s>", 1.5, True, [1, "x"], {"a": 1}])
def test_end_tokens_of_odd_types_are_refused(value: object, instruct: Path) -> None:
    change(instruct / "generation_config.json", eos_token_id=value)
    with pytest.raises(CheckpointError, match=r"eos_token_id of .* give token ids"):
        load_model(instruct)


def test_templates_that_ask_for_the_day_get_one(instruct: Path) -> None:
    """Two models that are asked on two days are asked the same."""
    (instruct / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}")
    tokenizer = load_tokenizer(instruct)
    text = rendered(tokenizer, [{"role": "user", "content": "a"}])
    assert text == "26 Jul 2024"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages + 1 }}",
        "{{ 1 / 0 }}",
        "{{ messages[9].x.y }}",
        "{% for %}",
        "{{ x() }}",
        "{{ '' }}",
    ],
)
def test_whatever_a_template_raises_is_one_sentence(template: str, instruct: Path) -> None:
    (instruct / "chat_template.jinja").write_text(template)
    with pytest.raises(CorpusError, match=r"the chat template (refuses the roles user|makes no)"):
        chat_ids(load_tokenizer(instruct), [{"role": "user", "content": "a"}], ask=True)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 5_000 + "1" + "}" * 5_000,
        '{"a": ' + "9" * 5_000 + "}",
        '{"a": "\\ud800"}',
        '{"\\udfff": 1}',
        b'{"a": "\xff"}',
        "[1",
        "",
    ],
)
def test_json_that_cannot_be_read_or_written_again_is_one_sentence(text, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(LepError, match=f"^{path}"):
        read_json(path)


def test_json_of_few_levels_is_read() -> None:
    assert parse_json("[" * 200 + "]" * 200, "x") is not None
    with pytest.raises(LepError, match="nested more than 200 levels"):
        parse_json("[" * 201 + "]" * 201, "x")


class PanicException(BaseException):
    """As the libraries of Rust raise it."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PanicException("index out of bounds"), "index out of bounds"),
        (MemoryError(), "it needs more memory"),
        (RecursionError("maximum"), "it is nested too deep"),
        (KeyError(), "KeyError"),
        (ValueError("\x1b[2J\nsecond line"), r"\\x1b\[2J"),
    ],
)
def test_anything_foreign_is_one_sentence(error: BaseException, reason: str) -> None:
    match = rf"^x is broken \({reason}\): mend it$"
    with pytest.raises(CorpusError, match=match), foreign("x is broken", "mend it", CorpusError):
        raise error


def test_what_is_no_fault_of_the_content_passes() -> None:
    for error in (KeyboardInterrupt(), LepError("as it is"), torch.OutOfMemoryError("full")):
        with pytest.raises(type(error)) as raised, foreign("x", "y"):
            raise error
        assert raised.value is error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("of 9 GB"), "memory is full (of 9 GB)"),
        (RecursionError(), "nested too deep"),
        (
            RuntimeError(
                "[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
                "allocate 9 bytes. Error code 12"
            ),
            "memory is full (you tried to allocate 9 bytes)",
        ),
    ],
)
def test_the_command_line_says_what_no_limit_refused(error, words, here, monkeypatch) -> None:
    monkeypatch.setattr("lep.inspect_checkpoint", lambda _: (_ for _ in ()).throw(error))
    printed = here("inspect", "x", code=2)
    assert printed.startswith("error: ")
    assert words in printed
    assert printed.count("\n") == 1


def test_our_own_faults_stay_tracebacks(monkeypatch) -> None:
    from lep.cli import main

    monkeypatch.setattr("lep.inspect_checkpoint", lambda _: {}["x"])
    monkeypatch.setattr(sys, "argv", ["lep", "inspect", "x"])
    with pytest.raises(KeyError):
        main()


NAMES = ["../x", "/x", "", ".", "..", "a/b", "x" * 101, "\x1b[2J", "a\nb", "a\\b", ".a", "a ", "a."]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_paths_are_refused(name: str, tmp_path: Path, here) -> None:
    with pytest.raises(ValidationError, match="becomes part of file names"):
        TypeAdapter(Texts).validate_python({name: ["a.txt"]})
    text = "base: b\ninstruct: i\nlanguage: ru\ntokenizer: {new_tokens: 5}\npretrain: {tokens: 9}\n"
    shown = json.dumps(name)
    for recipe in (
        f"name: {shown}\ntext: {{ru: t}}\n{text}",
        f"name: r\ntext: {{ru: t, {shown}: t}}\n{text}",
        f"name: r\ntext: {{ru: t}}\nheldout: {{{shown}: t}}\n{text}",
    ):
        (tmp_path / "r.yaml").write_text(recipe)
        printed = here("run", tmp_path / "r.yaml", "--output", tmp_path / "out", code=2)
        assert "becomes part of file names" in printed
        assert "\x1b" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_names_as_people_give_them_are_accepted(tmp_path: Path) -> None:
    names = ["ru", "zh-Hant", "sr@latin", "Старо русский", "a.b_c+d", "x" * 100]
    assert list(TypeAdapter(Texts).validate_python([f"{n}=p" for n in names])) == names


def test_seeds_that_no_generator_takes_are_refused() -> None:
    for seed in (-1, 1 << 31):
        with pytest.raises(LepError, match="seed is"):
            EvaluateSettings.given(None, {"seed": seed})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]\n", "nested too deep"),
        ("a: &a {b: *a}\n", "nested too deep"),
        ("a: " + "[" * 3_000, "nested too deep"),
        ("? [a, b]\n: c\n", "unhashable"),
        ("x: " + "a" * 300_000, "300,003 bytes, the limit is 200,000"),
        (
            "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
            "LEP_MAX_RECIPE_VALUES",
        ),
        (
            "grid: {axes: {" + ", ".join(f"a{i}: {{x: {{}}, y: {{}}}}" for i in range(64)) + "}}",
            "grid has",
        ),
    ],
)
def test_yaml_without_end_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(LepError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_escapes_of_files_do_not_reach_the_terminal(byte_level: Tokenizer, tmp_path, here) -> None:
    folder = tmp_path / "\x1b]0;title\x07"
    assert "\x1b" not in here("inspect", folder, code=2)
    save_model(folder, byte_level, template=TEMPLATE)
    change(folder / "config.json", architectures=["\x1b[2J"])
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    change(other / "config.json", architectures=["\x9b31m"])
    printed = here("verify", folder, other)
    assert r"\x1b[2J" in printed
    assert not {"\x1b", "\x07", "\x9b"} & set(printed)


def test_printable_text_stays_as_it_is() -> None:
    text = "a\n\tб ქართული 🙂 \u200f\u0301"
    assert printable(text) == text
    assert printable("\x00\x1b\x9b\u202e\ud800\r") == r"\x00\x1b\x9b\u202e\ud800\r"


@pytest.fixture
def echoing():
    """The URL of a server that refuses, and repeats the key that it was given."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = f"{'x' * 180} bad key {self.headers['Authorization']}".encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def test_a_key_that_a_server_echoes_is_not_printed(echoing: str, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    judge = load_judge(f"j@http://user:password@{echoing}")
    with pytest.raises(LepError, match="refuses") as raised:
        list(grades(judge, [([{"role": "user", "content": "a"}], "b")], "saved"))
    assert "sk-very" not in str(raised.value)
    assert "password" not in str(raised.value)


def test_redacted(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    text = "https://me:word@host/v1 and http://host/a@b said sk-1"
    assert redacted(text) == "https://***@host/v1 and http://host/a@b said ***"


def test_a_fifo_is_not_waited_for(instruct: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        copy = Path(shutil.copytree(instruct, instruct.with_name(f"no-{name}")))
        (copy / name).unlink()
        os.mkfifo(copy / name)
        with pytest.raises(CheckpointError, match="is no regular file"):
            Checkpoint(copy).check()
