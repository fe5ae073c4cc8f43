"""The largest memory that this process held at once: of the machine, and of a GPU."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

RESET = Path("/proc/self/clear_refs")
KIND = "5"  # forget the peak of resident memory (`man 5 proc`)


def forget_peaks() -> None:
    """Count from now on; elsewhere than on Linux, the machine's memory counts from the start."""
    with suppress(OSError):
        RESET.write_text(KIND, encoding="ascii")
    for gpu in _gpus():
        sys.modules["torch"].cuda.reset_peak_memory_stats(gpu)


def peaks() -> dict[str, int]:
    """Bytes of resident memory, files that are mapped included, and of the GPU that held most."""
    unit = 1 if sys.platform == "darwin" else 1024
    sizes = {"machine": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    if gpus := _gpus():
        sizes["GPU"] = max(map(sys.modules["torch"].cuda.max_memory_allocated, gpus))
    return sizes


def _gpus() -> range:
    """Those of a process that uses any; torch is not loaded for it."""
    torch = sys.modules.get("torch")
    in_use = torch is not None and torch.cuda.is_initialized()
    return range(torch.cuda.device_count() if torch and in_use else 0)
