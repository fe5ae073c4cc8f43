"""A warm process that runs command lines in forked children with limits: see test_hostile.py.

It reads a JSON line `[folder, arguments, environment]` and answers `[code, seconds]`; code -1 is a
child that was killed for its time. What the child prints is in `folder`/printed.
"""

import json
import os
import resource
import signal
import sys
import time

SECONDS, GROWTH_BYTES = 20, 2 << 30


def warm() -> None:
    """Import what the verbs import, with one thread, and start no other."""
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch
    import transformers
    from transformers.models.llama import modeling_llama  # noqa: F401

    import lep.calibration.calibrate
    import lep.cli
    import lep.evaluation.evaluate
    import lep.pipeline.run
    import lep.selection.auto
    import lep.tokenizer.compare
    import lep.tokenizer.write
    import lep.training.pretrain
    import lep.transfer.corpus
    import lep.transfer.inspect
    import lep.transfer.language_pack
    import lep.transfer.verify  # noqa: F401

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


def child(folder: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Run one command line as its own process would. Never returns."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    printed = os.open("printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(printed, number)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + GROWTH_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.argv = ["lep", *arguments]
    code = 1
    try:
        from lep.cli import main

        main()
        code = 0
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def run(folder: str, arguments: list[str], environment: dict[str, str]) -> list[float]:
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        child(folder, arguments, environment)
    while time.monotonic() < started + SECONDS:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return [os.waitstatus_to_exitcode(status), time.monotonic() - started]
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return [-1, SECONDS]


if __name__ == "__main__":
    warm()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
