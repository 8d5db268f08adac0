"""Check the rules of the house: sizes of files and functions, names, and who imports whom.

CONTRIBUTING.md states these rules. Each test lists everything that breaks its rule at once.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = ("server", "controller", "policies", "pruners", "telemetry")
"""The product's packages; each may import itself and those that `MAY_IMPORT` names."""
MAY_IMPORT = {
    "server": {"controller", "policies", "pruners", "telemetry"},
    "controller": {"policies", "pruners", "telemetry"},
    "policies": {"pruners", "telemetry"},
    "pruners": set(),
    "telemetry": set(),
}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parsed_folder(folder: str) -> dict[Path, ast.Module]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT): ast.parse(path.read_text()) for path in paths}


def parsed(*folders: str) -> dict[Path, ast.Module]:
    """Return the syntax tree of every Python file below these folders, by path from the root."""
    return {path: tree for folder in folders for path, tree in parsed_folder(folder).items()}


def all_files() -> dict[Path, ast.Module]:
    return parsed(*LAYERS, "benchmarks", "examples", "tests")


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


@cache
def imported_names(tree: ast.AST) -> tuple[str, ...]:
    """Return the dotted name of everything that a module imports, `from a import b` as `a.b`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(found)


def test_files_are_short():
    kernels = [
        path.relative_to(ROOT)
        for path in (ROOT / "server").rglob("*")
        if path.suffix in (".h", ".cpp")
    ]
    assert kernels
    paths = [*all_files(), *kernels]
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in paths}
    assert {str(path): count for path, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_functions_are_short():
    """Of commands only the body counts: their parameters are the options, with their help."""
    lengths = {}
    for path, tree in all_files().items():
        for function in functions(tree):
            first = function.body[0] if path.is_relative_to("server/cli") else function
            lengths[f"{path}:{function.name}"] = function.end_lineno - first.lineno + 1
    assert {name: count for name, count in lengths.items() if count > MAX_FUNCTION_LINES} == {}


def test_functions_take_few_parameters():
    """Commands are excepted: each of their parameters is an option of the command line."""
    found = {}
    for path, tree in all_files().items():
        if path.is_relative_to("server/cli"):
            continue
        for function in functions(tree):
            given = function.args
            names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MAX_PARAMETERS:
                found[f"{path}:{function.name}"] = count
    assert found == {}


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for path, tree in parsed(*LAYERS, "benchmarks").items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(str(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_imports_run_downwards():
    found = [
        f"{path} imports {name}"
        for layer in LAYERS
        for path, tree in parsed(layer).items()
        for name in imported_names(tree)
        if (top := name.split(".")[0]) != layer
        and top in (*LAYERS, "benchmarks", "tests")
        and top not in MAY_IMPORT[layer]
    ]
    assert found == []


def test_no_circle_of_imports():
    """Imports inside functions count too; those for type checkers alone do not."""
    modules = {}
    for path, tree in parsed(*LAYERS, "benchmarks").items():
        parts = path.with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = tree
    graph = {name: _dependencies(name, tree, set(modules)) for name, tree in modules.items()}
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    # What only leads into a circle is no part of it.
    while roots := graph.keys() - {name for targets in graph.values() for name in targets}:
        graph = {name: targets for name, targets in graph.items() if name not in roots}
    assert {name: sorted(targets & graph.keys()) for name, targets in graph.items()} == {}


def _dependencies(module: str, tree: ast.Module, modules: set[str]) -> set[str]:
    """Return the modules that one needs: of `from a import b` the module `a.b` or else `a`."""
    checked = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = {name for node in checked for name in imported_names(node)}
    found = set()
    for name in set(imported_names(tree)) - skipped:
        target = name if name in modules else name.rpartition(".")[0]
        if target in modules and target != module:
            found.add(target)
    return found


def test_test_modules_share_only_through_support():
    found = [
        f"{path} imports {name}"
        for path, tree in parsed("tests").items()
        for name in imported_names(tree)
        if name.startswith("tests.") and not name.startswith("tests.support")
    ]
    assert found == []


def test_only_tests_of_benchmarks_import_benchmarks():
    found = [
        str(path)
        for path, tree in parsed("tests").items()
        for name in imported_names(tree)
        if name.split(".")[0] == "benchmarks" and not path.is_relative_to("tests/benchmarks")
    ]
    assert found == []


def test_folders_of_tests_mirror_the_source():
    folders = {path.parent.relative_to("tests") for path in parsed("tests")}
    folders -= {Path(), Path("support"), Path("clients"), Path("clients/programs")}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder).is_dir()] == []
