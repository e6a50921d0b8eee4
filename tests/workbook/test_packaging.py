"""The two descriptions of the environment agree, and name what the code imports."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


def conda_pip() -> list[str]:
    return next(d["pip"] for d in ENVIRONMENT["dependencies"] if isinstance(d, dict))


def test_environment_yml_has_the_same_ranges():
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    assert sorted(conda_pip()) == sorted(["-e .", *wanted])
    python = next(d for d in ENVIRONMENT["dependencies"] if str(d).startswith("python>"))
    assert python.startswith("python" + PROJECT["requires-python"])


@pytest.mark.parametrize("name", ["pyproject.toml", "environment.yml"])
def test_every_dependency_says_what_needs_it(name):
    lines = (ROOT / name).read_text().splitlines()
    entries = [line for line in lines if re.match(r'\s+(- )?"[\w-]+>=', line)]
    assert len(entries) > 25
    assert [line for line in entries if not re.search(r"# \S", line)] == []


def test_ranges_are_bounded_and_hold_here():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for text in [d for group in groups for d in group]:
        requirement = Requirement(text)
        operators = {s.operator for s in requirement.specifier}
        assert operators == {">=", "<"}, text
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]:
        requirement = Requirement(text)
        installed = metadata.version(requirement.name)
        assert requirement.specifier.contains(installed), f"{text}, but {installed} is installed"


def test_what_is_imported_is_declared():
    modules = metadata.packages_distributions()
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    declared = {Requirement(d).name.lower().replace("_", "-") for group in groups for d in group}
    undeclared = {}
    for path in (ROOT / "nas_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for top in {name.split(".")[0] for name in names}:
                if top in sys.stdlib_module_names or top == "nas_core":
                    continue
                owners = {d.lower().replace("_", "-") for d in modules.get(top, [top])}
                if not owners & declared:
                    undeclared.setdefault(top, []).append(str(path.relative_to(ROOT)))
    assert undeclared == {}


def test_layers_import_only_from_below():
    layers = "training data supernet costs spaces search audio adaptive continual viz workbook"
    rank = {name: i for i, name in enumerate(layers.split())}
    wrong = []
    for path in (ROOT / "nas_core").rglob("*.py"):
        own = path.relative_to(ROOT / "nas_core").parts[0].removesuffix(".py")
        if own not in rank:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nas_core."):
                other = node.module.split(".")[1]
                if rank.get(other, -1) > rank[own]:
                    wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert wrong == []


def test_an_installed_copy_has_its_data_and_commands(tmp_path):
    """Build the wheel's file list without network: setuptools says what it would install."""
    script = (
        "from setuptools import Distribution, find_packages\n"
        "d = Distribution(); d.parse_config_files()\n"
        "d.script_name = 'setup.py'\n"
        "c = d.get_command_obj('build_py'); c.ensure_finalized()\n"
        "print('\\n'.join(c.get_outputs(include_bytecode=False)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    shipped = {Path(line).relative_to(Path("build/lib")) for line in printed.split("\n") if line}
    library = ROOT / "nas_core"
    kinds = ("*.py", "*.js", "*.css", "*.yaml")
    wanted = {p.relative_to(ROOT) for kind in kinds for p in library.rglob(kind)}
    assert wanted <= shipped
    assert PROJECT["scripts"] == {"nas-workbook": "nas_core.workbook.cli:main"}
    commands = {e.name: e.value for e in metadata.entry_points(group="console_scripts")}
    assert commands["nas-workbook"] == "nas_core.workbook.cli:main"
