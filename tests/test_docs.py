"""README, docs and packaging say what the code does: options, metrics, commands, links and versions."""

import functools
import importlib
import pathlib
import re
import shlex

import click
import pytest

from metrics.protocols import METRICS
from training.options import option_table
from training.presets import preset_table

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def by_name(page):
    return str(page.relative_to(ROOT))


@functools.cache
def toml():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def commands_in(page):
    """Every `python ...` line of the page's code blocks as a list of words."""
    lines = re.findall(r"^(?:    |\$ |)python (\S.*)$", page.read_text(encoding="utf-8").replace("\\\n", " "), flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def parse(words):
    """Lets click read a command line; it refuses unknown options and values of the wrong kind. Nothing is run."""
    name, arguments = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
    command = importlib.import_module(name).main
    if isinstance(command, click.Group) and arguments[:1] and arguments[0] in command.commands:
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.parse_args(click.Context(command), list(arguments))


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_commands_in_the_docs_are_valid(page):
    for words in commands_in(page):
        try:
            parse(words)
        except click.ClickException as error:
            pytest.fail(f"{' '.join(words)}: {error.format_message()}")


def test_commands_are_found_in_the_docs_and_mistakes_in_them_are_seen():
    programs = {words[1] if words[0] == "-m" else words[0] for page in PAGES for words in commands_in(page)}
    assert {"train.py", "calc_metrics.py", "generate.py", "dataset_tool.py", "bench.train_speed"} <= programs
    with pytest.raises(click.NoSuchOption):
        parse(["train.py", "--no-such-option"])


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{by_name(page)} links to {target}, which does not exist"


@pytest.mark.parametrize(("name", "table"), [("options", option_table), ("presets", preset_table)])
def test_tables_of_options_and_presets_are_those_of_the_code(name, table):
    inside = (ROOT / "docs" / "options.md").read_text(encoding="utf-8").split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
    assert inside.strip() == table(), f"print {table.__name__}() of {table.__module__} and put it into docs/options.md"


def test_the_readme_leads_to_every_page_of_the_docs():
    links = re.findall(r"\]\(docs/(\w+\.md)[#)]", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(links)


def test_metrics_page_lists_every_metric_with_its_detector():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| (\w+) \|", text, flags=re.MULTILINE))
    assert rows == {name: protocol.detector or "none" for name, protocol in METRICS.items()}


def test_all_packages_and_commands_are_packaged():
    packages = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in ROOT.glob("[!.]*/**/__init__.py") if "tests" not in path.parts}
    assert set(toml()["tool"]["setuptools"]["packages"]) == packages
    assert set(toml()["tool"]["setuptools"]["py-modules"]) == {path.stem for path in ROOT.glob("*.py")} - {"conftest"}


def test_lock_pins_what_the_project_needs():
    locked = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, version = re.fullmatch(r'([\w.-]+)==([\w.]+)(?: ; python_version (?:<|>=) "3\.11")?', line).groups()
            locked.setdefault(name.lower().replace("_", "-"), []).append(version)
    project = toml()["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["test"]:
        name, lower, upper = re.fullmatch(r"([\w-]+)(?:>=([\d.]+))?(?:,<([\d.]+))?", requirement).groups()
        assert locked.get(name.lower()), f"requirements.lock does not pin {name}"
        for version in locked[name.lower()]:
            assert numbers(lower or "0") <= numbers(version) < numbers(upper or "9999"), f"{name}=={version} is outside {requirement}"


def numbers(version):
    return tuple(map(int, version.split(".")))
