"""A Slurm cluster of one node, this machine, with daemons of its own in a folder of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
PARTITION, START_SECONDS = "cpu", 60
CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes}
PartitionName={partition} Nodes=localhost Default=YES
"""


@contextmanager
def one_node_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The environment variables for `sbatch` to reach it; skips the test without Slurm."""
    if missing := [name for name in DAEMONS if not shutil.which(name)]:
        packages = "munge slurmctld slurmd slurm-client slurm-wlm-basic-plugins"
        pytest.skip(f"needs {', '.join(missing)}: apt-get install {packages}")
    if os.getuid() != 0:
        pytest.skip("slurmd starts jobs as root only")
    (folder / "state").mkdir(parents=True)
    key, config = folder / "munge.key", folder / "slurm.conf"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    config.write_text(_config(folder))
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{suffix}" for option, suffix in files.items()]
    with ExitStack() as stack:
        for command in (
            ["munged", "--foreground", "--force", f"--key-file={key}", *munge],
            ["slurmctld", "-D", "-f", str(config)],
            ["slurmd", "-D", "-N", "localhost", "-f", str(config)],
        ):
            log = stack.enter_context((folder / f"{command[0]}.out").open("w"))
            daemon = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            stack.callback(daemon.terminate)
        environment = {"SLURM_CONF": str(config)}
        _wait(lambda: "idle" in _output(["sinfo", "-h", "-o", "%t"], environment), START_SECONDS)
        yield environment


def wait_for_jobs(environment: dict[str, str], seconds: float) -> None:
    """Until no job waits or runs."""
    _wait(lambda: not _output(["squeue", "-h"], environment), seconds)


def _config(folder: Path) -> str:
    with socket.socket() as first, socket.socket() as second:
        ports = []
        for free in (first, second):
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    return CONFIG.format(
        folder=folder,
        controller_port=ports[0],
        node_port=ports[1],
        cpus=os.cpu_count(),
        megabytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        partition=PARTITION,
    )


def _output(command: list[str], environment: dict[str, str]) -> str:
    answer = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True
    )
    return answer.stdout if answer.returncode == 0 else answer.stderr


def _wait(done, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "Slurm did not get there in time"
        time.sleep(0.5)
