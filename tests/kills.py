"""Kill a verb before each of its file operations, run it again, and compare with a run in peace.

    python tests/kills.py JOB.json

A job is {"arguments", "copies", "most", "folder", "warm"}: the command line, folders to copy before
it, how many kills at most, an empty folder to work in, and whether the command may run
in this process before, to import what it needs. (One that trains may not: it starts threads.) Every
run is a fork of this process. A report is printed as JSON.

There are two kinds of kills: before an operation, and while a file is written, which then keeps its
first bytes only.
"""

import contextlib
import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import traceback
from pathlib import Path

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

KILLED = 137
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
TORN_BYTES = 16  # that a file keeps which is killed while it is written
# Times and speeds, and the random names of figures.
VARYING = re.compile(
    rb'"(?:[a-z_]*seconds?|memory)": (\{[^}]*\}|[\d.e-]+)|[\d.,]+ s\b|<td>[\d.]+</td>'
    rb'|<caption>\d+ min in all|<td><span class="bar"[^>]*></span> \d+%</td>'
    rb"|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)


def warm_up(job: dict) -> None:
    """Import what verbs import; answers and prompts of random models pass the rules."""
    import lep.calibration.answers as answers
    import lep.calibration.prompts as prompts
    from lep.cli import main

    answers.reason_to_drop = lambda *_: None
    prompts.reason_to_drop_draft = lambda draft, script: None
    if not job["warm"]:
        for name in ("evaluation.evaluate", "pipeline.run", "selection.auto", "tokenizer.write"):
            importlib.import_module(f"lep.{name}")
        return
    sys.argv, before = ["lep", *job["arguments"]], Path.cwd()
    os.chdir(begin(job, "warm"))
    with contextlib.suppress(SystemExit):
        main()
    os.chdir(before)


class Operations:
    """Counts operations that change what is in a folder, and ends the process before one."""

    def __init__(self, folder: Path, kill: int | None, torn: bool) -> None:
        self.folder, self.kill, self.torn = f"{folder}/", kill, torn
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple) -> None:
        if event != "open" and event not in CHANGES:
            return
        writes = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if (event == "open" and not writes) or isinstance(arguments[0], int):
            return
        path = self._path(arguments[0], arguments[-1] if event != "open" else -1)
        if not path.startswith(self.folder):
            return
        self.seen.append(f"{event} {path.removeprefix(self.folder)}")
        if len(self.seen) - 1 == self.kill:
            if not self.torn:
                os._exit(KILLED)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (TORN_BYTES, TORN_BYTES))

    def _path(self, path, descriptor) -> str:
        inside = os.getcwd()
        if isinstance(descriptor, int) and descriptor >= 0:
            inside = os.readlink(f"/proc/self/fd/{descriptor}")
        return os.path.abspath(os.path.join(inside, os.fsdecode(path)))


def run(arguments: list[str], folder: Path, kill: int | None = None, torn: bool = False) -> dict:
    """Run a command in a fork of this process, in `folder`; its exit code, words and operations."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.chdir(folder)
        for stream in (1, 2):
            os.dup2(writer, stream)
        operations = Operations(folder, kill, torn)
        code = 1
        try:
            from lep.cli import main

            sys.argv = ["lep", *arguments]
            sys.addaudithook(operations)
            main()
        except SystemExit as left:
            code = left.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os.write(writer, f"\n@@{json.dumps(operations.seen)}".encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        words, _, seen = pipe.read().decode(errors="replace").partition("\n@@")
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "words": words, "operations": json.loads(seen) if seen else []}


def snapshot(folder: Path) -> dict[str, str]:
    """All that lies in a folder: kind, permissions and a hash of what does not vary."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = b"" if path.is_dir() else path.read_bytes()
        if path.suffix in (".json", ".html", ".txt", ".md"):
            content = VARYING.sub(b"", content)
        digest = hashlib.sha256(content).hexdigest()[:12]
        entries[str(path.relative_to(folder))] = f"{stat.filemode(status.st_mode)} {digest}"
    return entries


def chosen(count: int, most: int) -> list[int]:
    """All operations, or the first and last ones and some between."""
    if count <= most:
        return list(range(count))
    ends = most // 3
    step = (count - 2 * ends) / (most - 2 * ends)
    between = (ends + int(step * i) for i in range(most - 2 * ends))
    return sorted({*range(ends), *between, *range(count - ends, count)})


def begin(job: dict, name: str) -> Path:
    folder = Path(job["folder"], name)
    folder.mkdir()
    for copy in job["copies"]:
        shutil.copytree(copy, folder / Path(copy).name)
    return folder


def check(job: dict) -> dict:
    """Kill, repeat, compare. Returns the operations, the number of kills, and what went wrong."""
    arguments, whole = job["arguments"], begin(job, "whole")
    peace = run(arguments, whole)
    if peace["code"]:
        return {"operations": [], "kills": 0, "wrong": {"in peace": peace["words"][-2000:]}}
    expected, operations = snapshot(whole), peace["operations"]
    wrong, kills = {}, 0
    for number in chosen(len(operations), job["most"]):
        for torn in (False, True)[: 1 + operations[number].startswith("open")]:
            folder = begin(job, f"{number}{'-torn' * torn}")
            killed = run(arguments, folder, number, torn)
            again, kills = run(arguments, folder), kills + 1
            title = f"{number}{' torn' * torn} of {len(operations)}: {operations[number]}"
            if not torn and killed["code"] != KILLED:
                wrong[title] = f"was not killed: {killed['words'][-500:]}"
            elif again["code"]:
                wrong[title] = again["words"][-500:]
            elif (found := snapshot(folder)) != expected:
                differ = [n for n in {*found, *expected} if found.get(n) != expected.get(n)]
                wrong[title] = f"differ: {sorted(differ)[:12]}"
            else:
                shutil.rmtree(folder)
    return {"operations": operations, "kills": kills, "wrong": wrong}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        warm_up(job)
        report = check(job)
    print(json.dumps(report))
