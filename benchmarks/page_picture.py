"""The README's picture of a run's page: light as wide as a desk, dark as narrow as a phone.

    python benchmarks/page_picture.py runs/demo/report.html --output docs/report.png

Needs Chromium and Pillow. The narrow one is a frame: no window of Chromium is as narrow as a phone.
"""

import argparse
import shutil
import subprocess
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

LIGHT, DARK = 1, 0  # Chromium's numbers
WIDE, NARROW, HEIGHT, GAP = 1_200, 390, 1_200, 24  # pixels
WINDOW = 1_300  # wider than any of the two


def picture(page: str, width: int, scheme: int, folder: Path) -> Image.Image:
    frame = f'<iframe width="{width}" height="{HEIGHT}" style="border: 0" srcdoc="{escape(page)}">'
    document, shot = folder / f"{width}.html", folder / f"{width}.png"
    document.write_text(f'<body style="margin: 0">{frame}</iframe></body>', encoding="utf-8")
    command = [shutil.which("chromium") or "chromium", "--headless", "--no-sandbox"]
    command += ["--disable-gpu", "--hide-scrollbars", f"--window-size={WINDOW},{HEIGHT}"]
    command += [f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--screenshot={shot}", document.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return Image.open(shot).convert("RGB").crop((0, 0, width, HEIGHT))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    a = parser.parse_args()
    page = a.page.read_text(encoding="utf-8")
    whole = Image.new("RGB", (WIDE + GAP + NARROW, HEIGHT), "white")
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        whole.paste(picture(page, WIDE, LIGHT, Path(folder)), (0, 0))
        whole.paste(picture(page, NARROW, DARK, Path(folder)), (WIDE + GAP, 0))
    whole.quantize(128).save(a.output, optimize=True)


if __name__ == "__main__":
    main()
