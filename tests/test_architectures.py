"""Every causal architecture of the installed transformers: initialised, propagated, loaded again.

`python tests/test_architectures.py > docs/architectures.md` runs them all and writes the page.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import SAMPLE, SPECIALS, byte_level_tokenizer, changed, sample_texts, weights
from tiny_configs import tiny_config
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto as auto

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.writer import write_checkpoint
from lep.errors import LepError
from lep.settings import PropagateSettings
from lep.tokenizer.load import copy_tokenizer, load_tokenizer
from lep.tokenizer.write import extend_tokenizer
from lep.transfer.initialise import initialise
from lep.transfer.propagate import initialise_instruct, propagate

NAMES = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
SAMPLED = ["gpt2", "gpt_neox", "gemma3", "phi", "qwen3_moe", "mamba", "gemma3n_text"]
ROWS = 512  # of the base tables: padded, the tokenizer has 500

# Architectures whose tiny model this test cannot build, and why.
DRAFTING = "a drafting head, which needs the hidden states of the model that it drafts for"
SOUND = (
    "its configuration is that of a text encoder, a decoder and a codec; it writes sound, not text"
)
NOT_BUILT = {
    "gemma3n": "its vision tower needs timm (its text model, `gemma3n_text`, is covered)",
    "gemma4_assistant": DRAFTING,
    "gemma4_unified_assistant": DRAFTING,
    "musicgen": SOUND,
    "musicgen_melody": SOUND,
}
# Architectures that are refused, and words of the message.
REFUSED = {
    "blt": "has 0 tables with a row per token in its input embeddings",
    "cpmant": "makes 1,536 rows for a vocab_size of 512",
    "mllama": "makes 520 rows for a vocab_size of 512",
    "moshi": "makes 513 rows for a vocab_size of 512",
}
TESTED = [name for name in NAMES if name not in NOT_BUILT | REFUSED]


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of the class that its checkpoints name: with images and sound if possible."""
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = tiny_config(model_type, ROWS, ids)
    mappings = (auto.MODEL_FOR_MULTIMODAL_LM_MAPPING, auto.MODEL_FOR_CAUSAL_LM_MAPPING)
    model_class = next(m[type(config)] for m in mappings if type(config) in m)
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class._from_config(config).parameters())
    if size > 200_000_000:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(seed)
    return model_class._from_config(config).eval()


def save(model: PreTrainedModel, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


def load(folder: Path) -> tuple[PreTrainedModel, dict[str, set[str]]]:
    """The model of the class that config.json names, and the complaints while loading it."""
    model_class = getattr(transformers, Checkpoint(folder).config["architectures"][0])
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return model.eval(), {kind: set(info[kind]) for kind in kinds}


def outputs(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs of the head, and the logits."""
    hidden: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    hook.remove()
    return hidden[-1], logits


def check_architecture(model_type: str, tokenizer: Any, extended: Path, folder: Path) -> None:
    """The laws that hold for every architecture; see the comments."""
    model = tiny_model(model_type)
    base = save(model, tokenizer, folder / "base")
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    instruct = save(model, tokenizer, folder / "instruct")

    # The same tokenizer changes no tensor.
    initialise(base, base, folder / "same")
    before, after = weights(base), weights(folder / "same")
    assert before.keys() == after.keys()
    assert not changed(before, after)

    # An extended one lengthens each vocabulary tensor; propagation by swap copies the adapted rows.
    initialise(base, extended, folder / "initialised")
    source = Checkpoint(folder / "initialised")
    names = [*source.tables.names, *source.tables.others]
    torch.manual_seed(2)
    trained = {name: source.tensor(name) for name in names}
    for name, tensor in trained.items():
        if tensor.is_floating_point():
            trained[name] = tensor + 0.01 * torch.randn(tensor.shape)
    write_checkpoint(source, trained, folder / "adapted")
    copy_tokenizer(extended, folder / "adapted")
    propagate(base, instruct, folder / "adapted", folder / "out", PropagateSettings(method="swap"))
    old, chat, result = weights(base), weights(instruct), weights(folder / "out")
    specials = list(Checkpoint(base).vocabulary.added_ids().values())
    rows = len(load_tokenizer(extended))
    for name, tensor in result.items():
        if name in names:
            assert len(tensor) == rows
            assert torch.equal(tensor[specials], chat[name][specials])
            kept = [i for i in range(500) if i not in specials]
            learned = trained[name][kept] - old[name][kept]
            expected = trained[name] if name in source.tables.names else chat[name][kept] + learned
            expected = expected[kept] if name in source.tables.names else expected
            torch.testing.assert_close(tensor[kept], expected, rtol=1e-5, atol=1e-6)
        elif name not in source.tables.aliases:
            assert torch.equal(tensor, chat[name]), name
    loaded, complaints = load(folder / "out")
    assert complaints == load(instruct)[1]
    assert not complaints["mismatched_keys"]
    assert len(loaded.get_output_embeddings().weight) == rows

    # On text without new tokens, rows of the instruct model give the logits of the instruct model.
    initialise_instruct(base, instruct, folder / "adapted", folder / "untrained")
    ids = torch.tensor([[i for i in range(5, 400, 17) if i < 500]])
    hidden, logits = outputs(load(instruct)[0], ids)
    same_hidden, same_logits = outputs(load(folder / "untrained")[0], ids)
    assert torch.equal(hidden, same_hidden)
    torch.testing.assert_close(same_logits[..., :500], logits[..., :500], rtol=1e-5, atol=1e-6)
    assert same_logits.shape[-1] == rows
    new = torch.tensor([[5, rows - 1, rows - 2, 40]])
    assert outputs(loaded, new)[1].isfinite().all()


def make_extended(tokenizer: Any, folder: Path) -> Path:
    save_tokenizer(tokenizer, folder / "t")
    extend_tokenizer(folder / "t", [SAMPLE / "ru"], 30, folder / "extended")
    return folder / "extended"


@pytest.fixture(scope="session")
def extended(byte_level: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_extended(byte_level, tmp_path_factory.mktemp("extended"))


@pytest.mark.parametrize("model_type", SAMPLED)
def test_typical_architectures(model_type, byte_level, extended, tmp_path) -> None:
    check_architecture(model_type, byte_level, extended, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TESTED)
def test_every_architecture(model_type, byte_level, extended, tmp_path) -> None:
    check_architecture(model_type, byte_level, extended, tmp_path)
    shutil.rmtree(tmp_path)


def test_the_page_names_every_architecture() -> None:
    page = (Path(__file__).parent.parent / "docs" / "architectures.md").read_text()
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")}
    for title, part in sections.items():
        named = {line.split("`")[1] for line in part.splitlines() if line.startswith("* ")}
        tested = {"Covered": TESTED, "Not tested": NOT_BUILT}.get(title)
        expected = REFUSED if title.startswith("Refused") else tested or ()
        assert named == {*expected}, title
    assert {*TESTED, *NOT_BUILT, *REFUSED} == {*NAMES}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", NOT_BUILT)
def test_what_is_not_built_still_cannot_be(model_type: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - any failure is the reason to list it
        outputs(tiny_model(model_type), torch.tensor([[5, 9, 30]]))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", REFUSED)
def test_what_is_refused_is_refused_by_name(model_type, byte_level, extended, tmp_path) -> None:
    base = save(tiny_model(model_type), byte_level, tmp_path / "base")
    with pytest.raises(LepError, match=REFUSED[model_type]):
        initialise(base, extended, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def main() -> None:
    """Run every architecture and print the page; failures go to standard error."""
    transformers.logging.set_verbosity_error()
    tokenizer = byte_level_tokenizer(sample_texts("en") + sample_texts("ru")[:4], 500, SPECIALS)
    passed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        extended = make_extended(tokenizer, folder)
        for model_type in sys.argv[1:] or TESTED:
            try:
                check_architecture(model_type, tokenizer, extended, folder / "work")
                passed.append(model_type)
            except Exception as error:  # the page lists what works: every failure counts
                message = f"{model_type}: {type(error).__name__}: {str(error)[:400]!r}"
                print(message, file=sys.stderr, flush=True)
            shutil.rmtree(folder / "work", ignore_errors=True)
    print(PAGE.format(version=transformers.__version__, passed=len(passed), of=len(NAMES)))
    print("\n".join(f"* `{name}` ({NAMES[name]})" for name in passed))
    sections = {"Refused, with a sentence that says so": REFUSED, "Not tested": NOT_BUILT}
    for title, reasons in sections.items():
        lines = [f"* `{name}` ({NAMES[name]}): {why}" for name, why in reasons.items()]
        print(f"\n## {title}\n\n" + "\n".join(lines))


PAGE = """# Architectures

Made by `python tests/test_architectures.py > docs/architectures.md`; do not edit by hand.

A tiny random model of each causal architecture of transformers {version} ({passed} of {of} pass) is
saved, initialised with its own tokenizer (no tensor changes) and with an extended one, propagated,
loaded again without complaint, and compared with the instruct model on text without new tokens:
hidden states are bit-equal, logits equal within 1e-5. The tests are in
`tests/test_architectures.py` (`make check` runs them all).

## Covered
"""

if __name__ == "__main__":
    main()
