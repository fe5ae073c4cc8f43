"""A process for what strangers made: no network, no other programs, files of one folder only.

On Linux the kernel enforces it (Landlock, seccomp); the limits on memory and time hold on every
Unix. `confined` starts the process, `confine` is its first act, before any library is loaded.
"""

import ctypes
import os
import platform
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lep.errors import CheckpointError, printable
from lep.files import read_json, write_json
from lep.limits import IMPORT_BYTES, IMPORT_SECONDS

WORKER = "lep.imports.worker"
REPORT, TASK = "report.json", "task.json"
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")  # of the environment
SYSTEM = ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", "/nix", "/opt")
# System calls of landlock(7), the same on every machine; rights of files by the kernel's version.
CREATE, ADD, RESTRICT = 444, 445, 446
READ, ALL_FILES = 0b1100, {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
# The machine's number in seccomp(2), and its socket, execve, execveat, ptrace, io_uring_setup.
REFUSED = {
    "x86_64": (0xC000003E, (41, 59, 322, 101, 425)),
    "aarch64": (0xC00000B7, (198, 221, 281, 117, 425)),
}


def confined(task: str, source: Path, output: Path, **options: Any) -> dict[str, Any]:
    """What `lep.imports.worker` reports of a task that reads `source` and writes into `output`.

    Raises `CheckpointError` with the worker's sentence, or for a process that died.
    """
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary).resolve()
        paths = {"source": str(source.resolve()), "output": str(output.resolve())}
        write_json(scratch / TASK, {"task": task, "options": options, "shown": str(source)} | paths)
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= {k: v for k, v in os.environ.items() if k.startswith("LEP_MAX_")}
        environment |= dict.fromkeys(("HOME", "TMPDIR", "HF_HOME"), temporary)
        environment |= {"PYTHONPATH": os.pathsep.join(_packages())}
        environment |= {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-P", "-m", WORKER, temporary]
        with (scratch / "errors").open("w+b") as errors:
            process = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=scratch,
                env=environment,
            )
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2_000))
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
        if not (scratch / REPORT).is_file():
            reason = printable(last[0][:300]) if last else "no reason given"
            raise CheckpointError(
                f"{source} cannot be imported (its process ended with {process.returncode}, "
                f"{reason}): the file is damaged, or it needs more than the limits "
                f"({IMPORT_BYTES.variable}, {IMPORT_SECONDS.variable})"
            )
        report = read_json(scratch / REPORT, CheckpointError)
    if "error" in report:
        raise CheckpointError(str(report["error"]))
    return report


def _packages() -> list[str]:
    """Where modules are found, without the current folder, unless `lep` itself is there.

    Python puts it first, and what lies in it is nothing for the process.
    """
    here, package = Path.cwd().resolve(), Path(__file__).resolve().parents[2]
    folders = (folder for folder in sys.path if folder)
    return [f for f in folders if here == package or Path(f).resolve() != here]


def confine(
    readable: Iterable[str | Path], writable: Iterable[str | Path], file_bytes: int
) -> bool:
    """Give up everything but reading and writing below these paths. Whether the kernel helps.

    `file_bytes` of address space are allowed on top of the limit, to map a file.
    """
    import resource

    for kind, most in (
        (resource.RLIMIT_AS, IMPORT_BYTES.value + file_bytes),
        (resource.RLIMIT_CPU, IMPORT_SECONDS.value),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(ValueError, OSError):  # systems that have the limit in name only
            resource.setrlimit(kind, (most, most))
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    system = [*SYSTEM, sys.prefix, sys.base_prefix, *filter(None, sys.path)]
    files = _landlock(libc, [*system, *readable], [*writable, os.devnull])
    return _seccomp(libc) and files


def _landlock(libc: Any, readable: Iterable[str | Path], writable: Iterable[str | Path]) -> bool:
    """Allow files below some paths only, and no connections."""
    version = libc.syscall(CREATE, None, 0, 1)
    if version < 1:
        return False
    rights = (1 << ALL_FILES[min(version, 5)]) - 1
    fields = (rights, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    attributes = struct.pack("=QQQ", *fields)
    ruleset = libc.syscall(CREATE, attributes, 8 if version < 4 else 16 if version < 6 else 24, 0)
    if ruleset < 0:
        return False
    for paths, allowed in ((readable, READ), (writable, rights & ~1)):  # 1: execute
        for path in filter(os.path.exists, paths):
            descriptor = os.open(path, os.O_RDONLY)
            few = allowed if os.path.isdir(path) else allowed & 0b110  # read, write
            libc.syscall(ADD, ruleset, 1, struct.pack("=Qi", few, descriptor), 0)
            os.close(descriptor)
    done = libc.syscall(RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return done


def _seccomp(libc: Any) -> bool:
    """Refuse sockets, other programs, and what goes round both."""
    if platform.machine() not in REFUSED:
        return False
    machine, calls = REFUSED[platform.machine()]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06  # a word, comparisons, an answer
    last = len(calls) + 5  # the answer that refuses
    program = [(load, 0, 0, 4), (equal, 0, last - 2, machine), (load, 0, 0, 0)]
    program += [(at_least, last - 1 - 3, 0, 1 << 30)]  # numbers of the x32 interface
    program += [(equal, last - 1 - (4 + i), 0, call) for i, call in enumerate(calls)]
    program += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050001)]  # allow; fail with EPERM
    content = b"".join(struct.pack("=HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(content)
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    return libc.prctl(SET_SECCOMP, FILTER, header, 0, 0) == 0
