"""Wheel and source distribution hold the package and nothing else, and run far from the repository.

LEP_PYTHONS names further Pythons, separated by colons, that have the packages of requirements.lock
(`make VENV=.venv313 PYTHON=python3.13 .venv313/ready`).
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

PYTHONS = [sys.executable, *filter(None, os.environ.get("LEP_PYTHONS", "").split(":"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FIRST = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^ ;]+)( ; [^\\]+)? \\$")

SHORTER = ["adapt.tokens=8_000", "adapt.prompt_tasks=8", "pretrain.tokens=8_000"]
SHORTER += ["evaluate.items=4", "evaluate.characters=2_000"]


# Packages that an extra brings, and where alone they may be imported.
OPTIONAL = {
    "aiohttp": "benchmark/",
    "lm_eval": "benchmark/",
    "pymorphy3": "benchmark/",
    "ctranslate2": "exports/",
    "mlx": "exports/",
    "mlx_lm": "exports/",
    "gguf": "exports/ imports/",
    "gradio": "chat/",
    "datatrove": "corpus/cluster.py",
}


def required(names: Iterable[str]) -> set[str]:
    """The distributions that come with some, without extras, as their metadata say."""
    known, left = set[str](), [*names]
    while left:
        requirement = Requirement(left.pop())
        name = requirement.name.lower().replace("_", "-")
        if name in known or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        known.add(name)
        with suppress(PackageNotFoundError):
            left += requires(name) or []
    return known


def test_what_is_imported_is_required() -> None:
    """Without extras: a package that tests bring along is no package that a user has."""
    have = required(PROJECT["dependencies"])
    assert "scipy" in have
    distributions = packages_distributions()
    for file in sorted((ROOT / "src" / "lep").rglob("*.py")):
        place = file.relative_to(ROOT / "src" / "lep").as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.partition(".")[0] for name in names} - {"lep"}:
                if name in sys.stdlib_module_names:
                    continue
                if name in OPTIONAL:
                    assert place.startswith(tuple(OPTIONAL[name].split())), f"{name} in {place}"
                    continue
                owners = {owner.lower().replace("_", "-") for owner in distributions[name]}
                assert owners & have, f"{place} imports {name}, which no dependency brings"


def tracked(*folders: str) -> set[str]:
    command = ["git", "ls-files", "--", *folders]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\n") if name and (ROOT / name).exists()}


def build(source: Path, kind: str, output: Path) -> Path:
    """What setuptools makes of `source`; `kind` is wheel or sdist."""
    program = f"from setuptools import build_meta as b; b.build_{kind}({str(output)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    (made,) = output.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source distribution of the tracked files, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("release")
    for name in tracked(".") | {"MANIFEST.in"}:
        if not name.startswith("lab/"):
            (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "clone" / name)
    sdist = build(folder / "clone", "sdist", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, build(unpacked, "wheel", folder)


@pytest.mark.slow
def test_what_they_hold(release: tuple[Path, Path]) -> None:
    sdist, wheel = release
    package = tracked("src/lep")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"src/{name}" for name in names if ".dist-info/" not in name} == package
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as archive:
        files = {m.name.split("/", 1)[1] for m in archive.getmembers() if m.isfile()}
    files = {name for name in files if ".egg-info/" not in name}
    of_project = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in"}
    assert files - package == of_project | {"PKG-INFO", "pyproject.toml", "setup.cfg"}
    assert package <= files


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_the_demo_from_another_folder(
    python: str, release: tuple[Path, Path], tmp_path: Path
) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(release[1])], check=True)
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

    def lep(*arguments: str) -> str:
        command = [python, "-m", "lep", *arguments]
        done = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [python, "-c", "import lep; print(lep.__file__)"]
    found = subprocess.run(where, env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(site)
    assert lep("--version").strip() == f"lep {PROJECT['version']}"
    lep("run", str(ROOT / "recipes" / "demo.yaml"), "--output", "demo", *SHORTER)
    assert (elsewhere / "demo" / "report.html").stat().st_size > 10_000
    assert [path.name for path in elsewhere.iterdir()] == ["demo"]


def test_the_lock_has_what_the_project_asks_for() -> None:
    """Each requirement of package and tests, in a version that it admits, with hashes."""
    locked: dict[str, list[str]] = {}
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith((" ", "#")):
            first = FIRST.match(line)
            assert first, line
            assert after.startswith("    --hash=sha256:"), line
            locked.setdefault(first[1], []).append(first[2])
    extras = PROJECT["optional-dependencies"]
    asked, todo = [], [*PROJECT["dependencies"], *extras["dev"]]
    while todo:
        requirement = Requirement(todo.pop())
        if requirement.name == "lep":
            todo += [one for extra in requirement.extras for one in extras[extra]]
        elif requirement.name != "torch":  # one for each kind of machine
            asked.append(requirement)
    for requirement in asked:
        versions = locked[requirement.name.lower()]
        assert all(requirement.specifier.contains(Version(v)) for v in versions), requirement
    assert "torch" not in locked
