"""The shape of the code: which way imports run, how long files are, and that public names are described. What the docs say is test_docs.py's."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# From the lowest up; a module imports from layers below its own, and from its own package.
LAYERS = [["dnnlib"], ["torch_utils"], ["pairing"], ["metrics"], ["training"], ["experiments"], ["bench"]]
PACKAGES = {name: height for height, layer in enumerate(LAYERS) for name in layer}
COMMANDS = len(LAYERS)  # the layer of the commands, above all packages
MAX_LINES = 450
MAX_FUNCTION_LINES = 60


def tracked(*patterns):
    """Files of the project that are not ignored, in git's order; all files where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        listed = [str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.rglob(pattern) if ".venv" not in path.parts]
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


SOURCES = tracked("*.py")
LIBRARY = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "tests"]


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def layer_of(path):
    """Height of a file: its package's, or that of the commands."""
    return PACKAGES.get(path.relative_to(ROOT).parts[0], COMMANDS)


def imported_packages(tree):
    """(line, first part of the name) of every import, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." if node.level else node.module.split(".")[0]


def uphill(tree, own, layer, commands):
    """Lines with imports from the same height in another package, from above, or relative ones."""
    for line, package in imported_packages(tree):
        height = PACKAGES.get(package, COMMANDS if package in commands else -1)
        if package == "." or package == "tests" or (package != own and height >= layer):
            yield f"{line}: {package}"


def test_the_sources_are_found():
    names = {path.relative_to(ROOT).as_posix() for path in SOURCES}
    assert {"train.py", "dnnlib/cli.py", "training/networks/generator.py", "tests/test_structure.py"} <= names
    assert {path.relative_to(ROOT).parts[0] for path in LIBRARY if len(path.relative_to(ROOT).parts) > 1} == set(PACKAGES)


def test_imports_run_one_way():
    commands = {path.stem for path in LIBRARY if path.parent == ROOT}
    wrong = {}
    for path in LIBRARY:
        own = path.relative_to(ROOT).parts[0] if path.parent != ROOT else None
        if found := list(uphill(tree_of(path), own, layer_of(path), commands)):
            wrong[path.relative_to(ROOT).as_posix()] = found
    assert not wrong


@pytest.mark.parametrize(
    ("source", "own", "found"),
    [
        ("import training.loss", "metrics", ["1: training"]),
        ("def f():\n    from training import loss", "pairing", ["2: training"]),
        ("import bench", "experiments", ["1: bench"]),
        ("import experiments.demo", "bench", []),
        ("from train import main", "training", ["1: train"]),
        ("from . import x", "training", ["1: ."]),
        ("import torch, dnnlib\nfrom training import loss\nfrom pairing import network", "training", []),
    ],
)
def test_the_rule_of_imports_finds_what_breaks_it(source, own, found):
    assert list(uphill(ast.parse(source), own, PACKAGES[own], {"train"})) == found


def test_commands_start_without_a_compiler():
    """It would take them twice as long to start."""
    commands = ", ".join(path.stem for path in LIBRARY if path.parent == ROOT and path.name != "conftest.py")
    assert "train" in commands
    code = f"import sys, {commands}; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_files_and_functions_are_of_a_size_to_read():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}
    functions = {}
    for path in LIBRARY:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                functions[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = node.end_lineno - node.lineno + 1
    assert {name: length for name, length in functions.items() if length > MAX_FUNCTION_LINES} == {}


def test_every_error_is_caught_by_name():
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not bare


def test_every_module_and_every_public_name_is_described():
    silent = []
    for path in LIBRARY:
        tree = tree_of(path)
        nodes = [tree, *(node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"))]
        silent += [f"{path.relative_to(ROOT)} {getattr(node, 'name', '(module)')}" for node in nodes if ast.get_docstring(node) is None]
    assert not silent


def test_no_path_of_a_certain_machine():
    places = ["/" + "work/", ".." + "/shared", "/" + "tmp/venv", "/" + "home/", "/" + "root/"]
    found = []
    for path in tracked("*"):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures, archives, weights
        found += [f"{path.relative_to(ROOT)}: {place}" for place in places if place in text]
    assert not found
