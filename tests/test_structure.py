"""The floors of the code: imports go down only, and files stay small."""

import ast
import doctest
import importlib
from graphlib import TopologicalSorter
from pathlib import Path
from typing import get_args

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "lep"
FLOORS = [
    {"errors"},
    {"limits"},
    {"files"},
    {"durable", "fields"},
    {"settings", "publish", "hub", "web", "mapping", "statistics", "progress"},
    {"result"},
    {"sums"},
    {"linear_map"},
    {"embedding", "propagation"},
    {"corpus"},
    {"tokenizer"},
    {"checkpoint"},
    {"transfer", "exports"},
    {"inference", "imports"},
    {"training", "benchmark", "chat"},
    {"evaluation"},
    {"calibration", "selection", "report"},
    {"release"},
    {"pipeline"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
FILES = sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")
TENSORS_ONLY = ("mapping", "sums", "linear_map", "embedding", "propagation")
TENSOR_MODULES = {
    "torch",
    "math",
    "itertools",
    "functools",
    "collections",
    "dataclasses",
    "copy",
    "random",
    "typing",
}


def package(path: Path) -> str:
    """The package of lep that a file belongs to, or the name of a module beside them."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of all imports of a file: `from a import b` is `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def packages(names: set[str]) -> set[str]:
    """The packages of lep among imported names; `from lep import __version__` is none."""
    return {parts[1] for name in names if (parts := name.split("."))[0] == "lep" and parts[1:]} - {
        "__version__"
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_strictly_down(path: Path) -> None:
    for other in packages(imported(path)) - {package(path)}:
        assert LEVEL[other] < LEVEL[package(path)], f"{path} imports {other}, which is not below"


def test_every_package_has_a_floor() -> None:
    assert {package(path) for path in FILES} == set(LEVEL)


def test_no_two_files_import_each_other() -> None:
    """Within a package too: files are visited only after all that they import."""
    modules = {".".join(("lep", *p.relative_to(SOURCE).with_suffix("").parts)): p for p in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {name: (imported(path) & set(modules)) - {name} for name, path in modules.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("name", TENSORS_ONLY)
def test_mathematics_knows_tensors_only(name: str) -> None:
    for path in (path for path in FILES if package(path) == name):
        names = imported(path)
        outside = {name.partition(".")[0] for name in names} - TENSOR_MODULES - {"lep"}
        assert not outside, f"{path} imports {outside}"
        assert packages(names) <= set(TENSORS_ONLY), f"{path} imports {packages(names)}"


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


def test_settings_name_the_methods_that_there_are() -> None:
    """Recipes and options take the names of a literal; the methods are in a table of functions."""
    from lep.embedding import METHODS as INITIALISATIONS
    from lep.propagation import METHODS as PROPAGATIONS
    from lep.settings.kinds import InitName, PropagationName

    assert set(get_args(InitName)) == set(INITIALISATIONS)
    assert set(get_args(PropagationName)) == set(PROPAGATIONS)
