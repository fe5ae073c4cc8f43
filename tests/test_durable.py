"""Files: whole or not there, on the disk, nobody else's, and the same under every locale."""

import ast
import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SAMPLE
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lep import publish
from lep.checkpoint.stream import save_tensors
from lep.durable import discard
from lep.errors import OutputError
from lep.publish import publish_texts, publishing, publishing_file

ROOT = Path(__file__).parent.parent
RU = SAMPLE / "ru"


def tree(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, with the content of files."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): b"" if p.is_dir() else p.read_bytes() for p in paths}


# --- kills ---


@pytest.mark.parametrize("key", [None, "the same command"])
def test_a_whole_folder_that_a_kill_left_unnamed_is_no_obstacle(tmp_path, monkeypatch, key) -> None:
    """The last step is one rename: killed before it, the same command ends as if in peace."""

    def killed(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # a kill tidies nothing up
        with pytest.raises(KeyboardInterrupt), publishing(tmp_path / "out", resume_key=key) as part:
            (part / "file").write_text("whole", encoding="utf-8")
    assert not (tmp_path / "out").exists()
    with publishing(tmp_path / "out", resume_key=key) as partial:
        assert (partial / "file").exists() == (key is not None)
        (partial / "file").write_text("whole", encoding="utf-8")
    assert tree(tmp_path) == {"out": b"", "out/file": b"whole"}


def test_other_settings_do_not_delete_what_a_killed_run_saved(tmp_path) -> None:
    partial = publish.partial_path(tmp_path / "out", "a")
    (partial / "work" / "checkpoint-4").mkdir(parents=True)
    (partial / "work" / "checkpoint-4" / "state").write_text("hours", encoding="utf-8")
    (partial / publish.LOCK_FILE).touch()
    before = tree(tmp_path)
    for key in ("b", None):
        message = r"out\.[0-9a-f]{16}\.partial holds the saved state .* or delete that folder"
        with (
            pytest.raises(OutputError, match=message),
            publishing(tmp_path / "out", resume_key=key),
        ):
            pass
        assert tree(tmp_path) == before
    with publishing(tmp_path / "out", resume_key="a") as partial:
        assert (partial / "work" / "checkpoint-4").exists()
        discard(partial / "work")
    assert tree(tmp_path) == {"out": b""}


@pytest.fixture
def nfs(monkeypatch) -> None:
    """An open file that is deleted stays in its folder as .nfsXXXX until it is closed."""
    unlink, rmdir = os.unlink, os.rmdir

    def is_open(inode: int) -> bool:
        files = [path for path in Path("/proc/self/fd").iterdir() if path.exists()]
        return inode in [path.stat().st_ino for path in files]

    def unlink_or_rename(path, *, dir_fd=None) -> None:
        inode = os.stat(path, dir_fd=dir_fd).st_ino
        if is_open(inode):
            hidden = Path(path).with_name(f".nfs{inode}")
            os.rename(path, hidden, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        else:
            unlink(path, dir_fd=dir_fd)

    def rmdir_without_closed(path, *, dir_fd=None) -> None:
        if dir_fd is None:
            for hidden in Path(path).glob(".nfs*"):
                unlink_or_rename(hidden)
        rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink_or_rename)
    monkeypatch.setattr(os, "rmdir", rmdir_without_closed)


@pytest.mark.parametrize("key", [None, "b"])
def test_leftovers_are_no_obstacle_on_nfs(nfs, tmp_path, key) -> None:
    """Nor is one whose deletion was interrupted: it holds a lock that nobody has."""
    for name, files in {"a": ["x", "work/y"], "stale": [], "c": [".nfs0001"]}.items():
        partial = publish.partial_path(tmp_path / "out", name)
        partial.mkdir()
        for file in [publish.LOCK_FILE, *files]:
            (partial / file).parent.mkdir(exist_ok=True)
            (partial / file).touch()
    with publishing(tmp_path / "out", resume_key=key) as partial:
        assert [path.name for path in tmp_path.iterdir()] == [partial.name]
        (partial / "file").touch()
    assert {name for name in tree(tmp_path) if ".nfs" not in name} == {"out", "out/file"}


@pytest.mark.parametrize("key", [None, "a"])
def test_a_fault_leaves_nothing_on_nfs(nfs, tmp_path, key) -> None:
    with pytest.raises(OutputError), publishing(tmp_path / "out", resume_key=key):
        raise OutputError("for a reason")
    assert not list(tmp_path.iterdir())


def test_what_is_published_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    events = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append(f"rename to {Path(target).name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    (tmp_path / "source").write_text("linked", encoding="utf-8")
    with publishing(tmp_path / "out") as partial:
        (partial / "lep").mkdir()
        (partial / "lep" / "record").write_text("new", encoding="utf-8")
        os.link(tmp_path / "source", partial / "shard")
    before, after = events[: events.index("rename to out")], events[-1]
    assert {"sync record", "sync lep"} < set(before)
    assert "sync shard" not in events  # it was there before
    assert after == f"sync {tmp_path.name}"
    events.clear()
    publish_texts({tmp_path / "a": "text"})
    assert [event.split(".")[0] for event in events] == [
        "sync a",
        "rename to a",
        f"sync {tmp_path.name}",
    ]


def test_a_folder_with_an_open_file_is_deleted_on_nfs(nfs, tmp_path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "other").touch()
    with (tmp_path / "work" / "data").open("w"):
        discard(tmp_path / "work")
    assert not (tmp_path / "work").exists()
    assert {file.name[:4] for file in tmp_path.rglob("*") if file.is_file()} <= {".nfs"}


def test_a_cluster_run_killed_before_it_noted_what_it_is_begins_again(tmp_path) -> None:
    pytest.importorskip("datatrove")
    from lep.corpus import cluster
    from lep.settings import ClusterSettings

    (tmp_path / "a.txt").write_text("Снег пошёл ночью.", encoding="utf-8")
    cluster.work_folder(tmp_path / "out").mkdir()  # and killed
    given = [str(tmp_path / "a.txt")], tmp_path / "out", ClusterSettings(executor="local")
    folder = cluster._begun(*given)
    noted = (folder / "begun").read_text(encoding="utf-8")
    assert cluster._begun(*given) == folder
    assert [path.name for path in folder.iterdir()] == ["begun"]
    other = given[2].model_copy(update={"tasks": 7})
    with pytest.raises(OutputError, match="was begun with other files"):
        cluster._begun(*given[:2], other)
    assert (folder / "begun").read_text(encoding="utf-8") == noted


# --- locks ---


def hold(path: Path, started, end) -> None:
    with publishing_file(path) as file:
        file.write(b"first")
        started.set()
        end.wait(20)


def test_two_processes_cannot_write_one_file(tmp_path) -> None:
    """As two `lep pack` to one file could: the second one is told at once."""
    context = multiprocessing.get_context("fork")
    started, end = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "x.pack", started, end))
    other.start()
    assert started.wait(20)
    with (
        pytest.raises(OutputError, match=r"another process is writing .*x\.pack"),
        publishing_file(tmp_path / "x.pack"),
    ):
        pass
    end.set()
    other.join(20)
    assert tree(tmp_path) == {"x.pack": b"first"}
    with (
        pytest.raises(OutputError, match=r"x\.pack exists already"),
        publishing_file(tmp_path / "x.pack"),
    ):
        pass
    assert tree(tmp_path) == {"x.pack": b"first"}


def write_often(path: Path, word: str) -> None:
    for _ in range(50):
        publish.publish_text(path, word * 10_000)


def test_processes_that_replace_a_file_take_turns(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(tmp_path / "x", w)) for w in "ab"]
    for writer in writers:
        writer.start()
    seen, deadline = set(), time.time() + 20
    while any(writer.is_alive() for writer in writers) and time.time() < deadline:
        if (tmp_path / "x").exists():
            seen.add((tmp_path / "x").read_text(encoding="utf-8"))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen <= {"a" * 10_000, "b" * 10_000}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_files_that_are_written_together_are_refused_unless_a_kill_parted_them(tmp_path) -> None:
    one, two = tmp_path / "one.html", tmp_path / "two.json"
    publish_texts({one: "1"})
    with pytest.raises(OutputError, match=r"one\.html exists already"):
        publish_texts({one: "1", two: "2"})
    assert tree(tmp_path) == {"one.html": b"1"}
    publish.partial_path(two).touch()  # killed between the two names
    publish_texts({one: "1", two: "2"})
    assert tree(tmp_path) == {"one.html": b"1", "two.json": b"2"}


# --- refusals ---


REFUSED = """\
corpus in/english.txt --language ru --output new/folder/out
tokenizer extend --base {base} --corpus in --new-tokens 9 --script cyrillic --output new/folder/out
tokenizer count --base {base} --corpus in/english.txt --script cyrillic --output x.counts.zst
tokenizer compare {base} --text ru=no --json c.json
init --model {base} --tokenizer in --output new/folder/out
pretrain --model {base} --corpus in/english.txt --output new/out --tokens 100 --train new_rows
propagate --base {base} --instruct {adapted} --adapted {adapted} --output new/folder/out
pack --base {instruct} --adapted {adapted} --output new/folder/out
apply in/x.pack --model {base} --output new/folder/out
answer --original {base} --prompts in/prompts.jsonl --output new/folder/out
calibrate --model {base} --answers in --output new/folder/out
tune --model {base} --data in/prompts.jsonl --output new/folder/out
evaluate {base} --text ru=no --output new/folder/out
inspect in --json i.json
verify {base} in --json v.json
run in/x.yaml --output new/folder/out
report in
"""


def test_a_refusal_leaves_the_folder_as_it_was(pair, adapted, here, tmp_path, monkeypatch) -> None:
    """Also where it comes late: no folders, caches, locks or unfinished files."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "english.txt").write_text("It snowed at night.\n" * 40, encoding="utf-8")
    (inputs / "prompts.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "Где?"}]}) + "\n", encoding="utf-8"
    )
    (inputs / "x.pack").write_bytes(b"no pack")
    recipe = f"name: x\nbase: {pair['base']}\ninstruct: {pair['instruct']}\nlanguage: ru\n"
    recipe += f"text: {{ru: {inputs}/english.txt}}\ncorpus: {{heldout_share: 0.5}}\n"
    (inputs / "x.yaml").write_text(recipe, encoding="utf-8")
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"base": pair["base"], "instruct": pair["instruct"], "adapted": adapted}
    for line in REFUSED.splitlines():
        words = here(*line.format(**names).split(), code=2)
        assert tree(tmp_path) == before, f"{line}: {words}"


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_files_beside_what_is_printed_are_not_overwritten(verb, pair, here, tmp_path) -> None:
    (tmp_path / "x.json").write_text("mine", encoding="utf-8")
    models = [pair["base"]] * (1 + (verb == "verify"))
    assert "x.json exists already" in here(verb, *models, "--json", tmp_path / "x.json", code=2)
    assert tree(tmp_path) == {"x.json": b"mine"}


# --- permissions ---


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_every_file_has_the_permissions_of_the_umask(umask, pair, adapted, here, tmp_path) -> None:
    before = os.umask(umask)
    try:
        base, out = pair["base"], tmp_path
        here("init", "--model", base, "--tokenizer", pair["tokenizer"], "--output", out / "init")
        here("pack", "--base", base, "--adapted", adapted, "--output", out / "x.pack")
        here("inspect", base, "--json", out / "x.json")
        count = ["tokenizer", "count", "--base", base, "--corpus", RU, "--output"]
        here(*count, out / "ru.counts.zst")
    finally:
        os.umask(before)
    modes = {
        path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()
    }
    assert len(modes) > 8
    assert {f"{mode:o}" for mode in modes.values()} == {f"{0o666 & ~umask:o}"}, modes
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(p.stat().st_mode) for p in folders} == {0o777 & ~umask}


DTYPES = [torch.float32, torch.int64, torch.int32, torch.bfloat16, torch.float16, torch.uint8]


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([None, {"format": "pt"}]),
)
def test_safetensors_are_written_as_their_library_writes_them(tmp_path_factory, specs, metadata):
    folder = tmp_path_factory.mktemp("tensors")
    tensors = {name: torch.ones(shape).to(dtype) for name, (dtype, shape) in specs.items()}
    save_file(tensors, folder / "theirs", metadata=metadata)
    save_tensors(folder / "here", tensors, metadata)
    assert (folder / "here").read_bytes() == (folder / "theirs").read_bytes()


# --- locales ---


def locale_calls(source: str) -> list[int]:
    """Lines of calls that read or write text in the encoding of the locale."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = {keyword.arg for keyword in node.keywords}
        texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
        text = isinstance(node.func, ast.Attribute) and name in ("read_text", "write_text")
        text |= name == "open" and any(isinstance(t, str) and set(t) <= {*"rwax+t"} for t in texts)
        text |= bool({"text", "universal_newlines"} & given) and name in ("run", "Popen")
        if text and "encoding" not in given:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("folder", ["src", "lab", "benchmarks"])
def test_no_call_uses_the_encoding_of_the_locale(folder) -> None:
    assert locale_calls('open("x", "w"); p.read_text(); run(c, text=True)') == [1, 1, 1]
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {str(p): locale_calls(p.read_text(encoding="utf-8")) for p in files}
    assert not {path: lines for path, lines in found.items() if lines}


VERBS = """
import sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module=r"lep(\\.|$)")
from lep.calibration import answers
from lep.cli import main
answers.reason_to_drop = lambda *_: None
for line in sys.stdin.buffer.read().decode().splitlines():
    sys.argv = ["lep", *line.split("|")]
    try:
        main()
    except SystemExit as left:
        if left.code:
            raise SystemExit(f"{line}: {left.code}")
"""
COMMANDS = """\
tokenizer|extend|--base|{base}|--corpus|{ru}|--new-tokens|30|--output|tokenizer
tokenizer|compare|{base}|tokenizer|--text|ru={ru}|--html|c.html
tokenizer|count|--base|{base}|--corpus|{ru}|--output|ru.counts.zst
corpus|{ru}|--output|corpus
init|--model|{base}|--tokenizer|tokenizer|--output|init
pretrain|--model|init|--corpus|{ru}|--output|pretrain|--tokens|300|--block-size|32
propagate|--base|{base}|--instruct|{instruct}|--adapted|pretrain|--output|propagated
pack|--base|{base}|--adapted|init|--output|x.pack
apply|x.pack|--model|{instruct}|--output|applied
answer|--original|{instruct}|--prompts|{prompts}|--output|answers|--max-new-tokens|6
evaluate|{base}|--text|ru={ru}|--output|evaluate|--bootstrap|20
inspect|propagated|--json|i.json
verify|{base}|init|--json|v.json
"""


@pytest.mark.slow
def test_no_byte_depends_on_the_locale(pair, tmp_path) -> None:
    """Every verb in a C locale, and in one of one byte a character, where Python lets them rule."""
    prompts = tmp_path / "prompts.jsonl"
    line = json.dumps({"messages": [{"role": "user", "content": "Где дом?"}]}, ensure_ascii=False)
    prompts.write_text(line + "\n", encoding="utf-8")
    text = next(iter(sorted(RU.glob("*.txt")))).read_text(encoding="utf-8")
    (tmp_path / "ru.txt").write_text(text[:4_000], encoding="utf-8")
    names = {name: pair[name] for name in ("base", "instruct")}
    commands = COMMANDS.format(**names, ru=tmp_path / "ru.txt", prompts=prompts)
    trees = []
    for name, chosen in {
        "utf8": {"LC_ALL": "C.UTF-8"},
        "c": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "latin": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "koi8-r"},
    }.items():
        (tmp_path / name).mkdir()
        process = subprocess.run(
            [sys.executable, "-X", "warn_default_encoding", "-c", VERBS],
            input=commands.encode(),
            capture_output=True,
            cwd=tmp_path / name,
            env={k: v for k, v in os.environ.items() if not k.startswith("LC_")}
            | {"PYTHONPATH": str(Path(publish.__file__).parents[1])}
            | chosen,
        )
        assert process.returncode == 0, process.stderr.decode(errors="replace")[-2_000:]
        trees.append(tree(tmp_path / name))
    varying = ("pretrain.json", "c.html")  # times
    for other in trees[1:]:
        assert other.keys() == trees[0].keys()
        differ = [path for path in other if other[path] != trees[0][path]]
        assert not [path for path in differ if not path.endswith(varying)]
