"""Check the order of the pruning library's rooms, and that large optional packages load late.

`test_house.py` checks that packages import downwards and that no modules import in a circle.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "controller", "policies", "pruners", "telemetry")
ROOMS = (
    "support",
    "architecture",
    "variant",
    "correction",
    "data",
    "calibration",
    "realization",
    "importance",
    "kv",
    "reading",
    "artefact",
    "evaluation",
    "allocation",
    "recovery",
    "distill",
    "builder",
)
"""Folders and modules of `pruners`; each imports only itself and those before it."""
HEAVY = {
    "datasets",
    "gymnasium",
    "lm_eval",
    "matplotlib",
    "nltk",
    "optuna",
    "spacy",
    "stable_baselines3",
}
"""Packages that take long to import, or that an installation may not have."""
LIGHT_OF_TRANSFORMERS = {
    "GenerationConfig",
    "PretrainedConfig",
    "PreTrainedTokenizerBase",
    "TokenizersBackend",
}
"""What of `transformers` is imported without its model code, which takes seconds."""
ENTRY_POINTS = ("server.cli.main", "server.app", "controller.controller", "policies.registry")


@cache
def modules() -> dict[str, ast.Module]:
    """Return the syntax tree of each module of the product, by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text())
    return found


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield each imported module; of `from a import b` both `a` and `a.b`, if that is a module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name for name in names if name in modules())


def run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported: no functions, nothing for type checks."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def loaded_by(start: str) -> set[str]:
    """Return every module, ours or another's, that importing `start` loads through ours."""
    loaded: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in loaded:
            continue
        loaded.add(name)
        waiting += [name.rpartition(".")[0]] if "." in name else []  # its package's __init__
        if name in modules():
            waiting += imports(run_at_import(modules()[name]))
    return loaded


def library() -> list[str]:
    return [name for name in modules() if name.startswith("pruners.")]


def test_every_room_of_the_library_has_its_place_in_the_order():
    assert {name.split(".")[1] for name in library()} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_itself_and_those_before_it(room: str):
    """Imports inside functions and those for type checkers count too."""
    allowed = ROOMS[: ROOMS.index(room) + 1]
    found = {
        f"{name} imports {target}"
        for name in library()
        if name.split(".")[1] == room
        for target in imports(ast.walk(modules()[name]))
        if target.startswith("pruners.") and target.split(".")[1] not in allowed
    }
    assert found == set()


def test_importing_the_library_itself_loads_nothing_else():
    assert loaded_by("pruners") == {"pruners"}


@pytest.mark.parametrize("start", ENTRY_POINTS)
def test_entry_points_load_no_heavy_package(start: str):
    assert start in modules()
    assert {name.split(".")[0] for name in loaded_by(start)} & HEAVY == set()


def test_no_module_of_the_library_loads_a_heavy_package():
    found = {name: {one.split(".")[0] for one in loaded_by(name)} & HEAVY for name in library()}
    assert {name: packages for name, packages in found.items() if packages} == {}


def test_serving_imports_no_model_code_of_transformers():
    """Only what describes a model that is not packed yet does, and that is imported late."""
    found = {
        f"{name} imports {node.module}.{alias.name}"
        for name in loaded_by("server.app") & modules().keys()
        for node in run_at_import(modules()[name])
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers")
        for alias in node.names
        if node.module != "transformers" or alias.name not in LIGHT_OF_TRANSFORMERS
    }
    assert found == set()
