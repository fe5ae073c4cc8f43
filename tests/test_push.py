"""`lep push`, against a stand-in for the hub."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
from conftest import TEMPLATE, save_model
from hub_server import TOKEN, Hub, serve

import lep

NAME = "someone/Tiny-ru"


@pytest.fixture(scope="module")
def result(pair, byte_level, tmp_path_factory) -> Path:
    """A model in several shards with new tokens, from a source under Apache-2.0, with a card."""
    folder = tmp_path_factory.mktemp("push")
    save_model(folder / "Tiny", byte_level, template=TEMPLATE, shard_size="60KB")
    (folder / "Tiny" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    lep.initialise(folder / "Tiny", pair["tokenizer"], folder / "model")
    lep.card(folder / "model", languages=["ru"])
    return folder / "model"


@pytest.fixture
def model(result, tmp_path) -> Path:
    shutil.copytree(result, tmp_path / "model")
    (tmp_path / "model" / "lep_stage.json").write_text("{}")  # of a run
    (tmp_path / "model" / "lep" / "answers.jsonl").write_text("{}")  # to private prompts
    return tmp_path / "model"


@pytest.fixture
def hub(monkeypatch) -> Hub:
    """The stand-in, as the hub of this process, where somebody is logged in."""
    from huggingface_hub import constants

    hub = Hub()
    server = serve(hub)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    server.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: files[name] for name in set(files) - {"lep_stage.json", "lep/answers.jsonl"}}


def test_a_folder_arrives_whole(model, hub, here) -> None:
    printed = here("push", model, NAME, "--private")
    assert hub.repositories == {NAME: contents(model)}
    assert hub.private == {NAME}
    assert f"pushed to {hub.address}/{NAME} (only you" in printed
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    sent = len(hub.sent)
    assert "everybody" not in here("push", model, NAME)
    assert hub.repositories == {NAME: contents(model)}
    assert len(hub.sent) == sent  # no weight is sent again


def test_what_an_earlier_push_left_is_removed(model, hub, here) -> None:
    """Programs would read it: a single weight file before shards, added tokens, a template."""
    here("push", model, NAME)
    old = {"model.safetensors", "added_tokens.json", "lep/facts.json", "chat_template.jinja"}
    others = dict.fromkeys(("model.gguf", "picture.png", "requirements.txt"), b"the user's")
    others |= dict.fromkeys(("mlx/model.safetensors", "onnx/config.json"), b"the user's")
    others |= {"LICENSE.txt": b"the user's", "train.json": b"the user's"}
    hub.repositories[NAME] |= dict.fromkeys(old, b"old") | others
    (model / "chat_template.jinja").unlink(missing_ok=True)
    here("push", model, NAME)
    assert hub.repositories == {NAME: contents(model) | others}


def test_a_push_that_the_hub_interrupts_is_repeated(model, hub, here) -> None:
    """What has arrived is not sent again."""
    hub.stop_after = 2
    refusal = here("push", model, NAME, code=2)
    assert f"did not arrive at {NAME} (" in refusal
    assert (hub.repositories, hub.commits, len(hub.sent)) == ({NAME: {}}, 0, 2)
    hub.stop_after = None
    here("push", model, NAME)
    assert hub.repositories == {NAME: contents(model)}
    assert len(hub.sent) == len(set(hub.sent)) == len(list(model.rglob("*.safetensors")))


@pytest.mark.slow
def test_a_killed_push_is_repeated(model, hub, here, tmp_path) -> None:
    """Killed while the second large file is on its way; the first is not sent again."""
    hub.stop_after, hub.stops_by = 1, "silence"
    words = ["push", str(model), NAME]
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    process = subprocess.Popen([sys.executable, "-m", "lep", *words], env=environment)
    assert hub.stalled.wait(120)
    process.kill()
    process.wait()
    assert (hub.repositories, hub.commits, len(hub.sent)) == ({NAME: {}}, 0, 1)
    hub.stop_after = None
    here(*words)
    assert hub.repositories == {NAME: contents(model)}
    assert len(hub.sent) == len(set(hub.sent)) == len(list(model.rglob("*.safetensors")))


def test_the_hub_says_what_it_does_not_take(model, hub, here, monkeypatch) -> None:
    monkeypatch.setattr(hub_server, "LICENSES", {"mit"})
    refusal = here("push", model, NAME, code=2)
    assert 'Invalid metadata in README.md. - "license" must be one of [mit]' in refusal
    assert "repeat the command" in refusal
    assert hub.repositories == {NAME: {}}
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_another")
    hub.repositories.clear()
    refusal = here("push", model, NAME, code=2)
    assert "401" in refusal
    assert "hf_secret_of_another" not in refusal
    assert len(refusal.strip().splitlines()) == 1


def test_what_is_public_does_not_take_a_private_model(model, hub, here) -> None:
    hub.repositories[NAME] = {}
    refusal = here("push", model, NAME, "--private", code=2)
    assert "exists and everybody can see it: make it private there" in refusal
    assert hub.repositories == {NAME: {}}


# --- what may be published ------------------------------------------------------------------------

LICENCES = {
    "apache-2.0": ([], None),
    "unknown": ([], r"is unknown, so nobody may pass it on: .* give --licence NAME"),
    "cc-by-nd-4.0": (["--licence", "cc-by-nd-4.0"], "forbids publishing changed copies"),
    "their-own": ([], "their-own, whose terms lep does not know: .* give --licence their-own"),
    "mit": (["--licence", "apache-2.0"], "names the licence mit, and --licence is apache-2.0"),
    "llama3": ([], "asks for names that begin with 'Llama-3', and the name is 'Tiny-ru': publish"),
    "gemma": ([], "which must be passed on, and no file LICENSE: put the text"),
}


@pytest.mark.parametrize("licence", LICENCES)
def test_the_licence_decides(licence, model, hub, here) -> None:
    words, message = LICENCES[licence]
    (model / "LICENSE").unlink(missing_ok=True)
    (model / "README.md").unlink()
    lep.card(model, licence=None if licence == "unknown" else licence)
    if licence == "unknown":
        path = model / "README.md"
        path.write_text(path.read_text().replace("license: apache-2.0", "license: unknown"))
    before = contents(model)
    if message is None:
        here("push", model, NAME, *words)
        assert hub.repositories == {NAME: before}
        return
    refusal = here("push", model, NAME, *words, code=2)
    assert re.search(message, refusal), refusal
    assert hub.repositories == {}
    assert contents(model) == before


def test_a_licence_that_is_stated_is_in_the_card(model, hub, here) -> None:
    (model / "lep" / "origin.json").unlink()
    (model / "README.md").unlink()
    lep.card(model, languages=["ru"])
    here("push", model, NAME, "--licence", "MIT")
    card = hub.repositories[NAME]["README.md"].decode()
    assert "license: mit\n" in card
    assert "license: unknown" not in card
    assert "is unknown" not in card
    assert "That of model: mit." in card
    assert "## How it was made" in card
    lep.card(model, languages=["ru"])  # it is still lep's own
    (model / "README.md").unlink()
    lep.card(model, licence="their-own")
    here("push", model, NAME, "--licence", "their-own")
    assert "license_name: their-own\n" in hub.repositories[NAME]["README.md"].decode()


def test_a_name_and_a_text_satisfy_the_licence(model, hub, here) -> None:
    lep.card(model, licence="llama3.1")
    (model / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT")
    here("push", model, "someone/Llama-Tiny-ru")
    files = hub.repositories["someone/Llama-Tiny-ru"]
    assert files["NOTICE"].startswith(b"Llama 3.1 is licensed under the Llama 3.1 Community")
    assert b"LLAMA 3.1" in files["LICENSE"]


FAULTS = {
    "no folder": (["/no/such", NAME], "there is no folder /no/such: check the path"),
    "no name": (["MODEL", "Tiny-ru"], "the repository is 'Tiny-ru': give OWNER/NAME"),
    "no card": (["MODEL", NAME], "has no card .README.md.: write it with lep card"),
    "no metadata": (["MODEL", NAME], "the metadata of .*README.md cannot be read .*: correct it"),
    "no login": (["MODEL", NAME], "nobody is logged in at the hub: run `hf auth login`, or set"),
    "offline": (["MODEL", NAME], "did not arrive at .*offline"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_show_before_anything_is_sent(name, model, hub, here, monkeypatch) -> None:
    words, message = FAULTS[name]
    if name == "no card":
        (model / "README.md").unlink()
    if name == "no metadata":
        (model / "README.md").write_text("---\n[1\n---\n")
    if name == "no login":
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    if name == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refusal = here("push", *(model if word == "MODEL" else word for word in words), code=2)
    assert re.search(message, refusal), refusal
    assert hub.repositories == {}
