"""Run one of our modules in a process of its own: other people's code, offline, with a time."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lep.errors import LONGEST_REASON, CheckpointError, printable

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def apart(
    module: str, *arguments: str | Path, question: Any = None, fault: str, way_out: str
) -> Any:
    """What `python -m MODULE ARGUMENTS... RESULT < QUESTION` writes to its file RESULT, as JSON.

    Raises `CheckpointError`, `FAULT (last line of its errors): WAY OUT`, where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        process = subprocess.run(
            [sys.executable, "-P", "-m", module, *map(str, arguments), str(result)],
            input=json.dumps(question),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | OFFLINE,
        )
        if process.returncode == 0 and result.exists():
            return json.loads(result.read_text(encoding="utf-8"))
    lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
    reason = lines[-1] if process.returncode >= 0 else f"ended by signal {-process.returncode}"
    raise CheckpointError(f"{fault} ({printable(reason[:LONGEST_REASON])}): {way_out}")


def answer(path: str, value: Any) -> None:
    """Write what such a process found out."""
    Path(path).write_text(json.dumps(value), encoding="utf-8")
