"""The floors of the code: imports go down only, and files stay small."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "lep"
FLOORS = [
    {"errors"},
    {"settings", "mapping", "linear_map", "publish", "hub"},
    {"embedding", "propagation"},
    {"corpus", "tokenizer", "checkpoint"},
    {"inference", "training"},
    {"calibration", "evaluation"},
    {"pipeline", "report"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
FILES = sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


def imported(path: Path) -> set[str]:
    """Packages of lep that a file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("lep.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down_only(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for other in imported(path) - {own}:
        assert LEVEL[other] <= LEVEL[own], f"{own} imports {other}, which is above it"


def test_every_package_has_a_floor() -> None:
    assert {p.relative_to(SOURCE).parts[0].removesuffix(".py") for p in FILES} == set(LEVEL)


def test_mathematics_knows_tensors_only() -> None:
    for path in FILES:
        if path.relative_to(SOURCE).parts[0].removesuffix(".py") in {
            "mapping",
            "linear_map",
            "embedding",
            "propagation",
        }:
            names = {n.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)
                     for n in node.names}  # fmt: skip
            assert names <= {"torch", "math", "itertools"}, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


EXAMPLES = [path for path in FILES if "\n    >>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_in_docstrings(path: Path) -> None:
    name = ".".join(("lep", *path.relative_to(SOURCE).with_suffix("").parts))
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
