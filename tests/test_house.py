"""The layout of docs/architecture.md: import directions, light commands, listed packages, true documents."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"configs": 0, "kernels": 1, "loaders": 2, "surgrec": 3}
LIGHT_FOR_CONFIGS = {"surgrec", "tyro", "yaml"}
HEAVY = ("torch", "numba", "nvidia.dali", "cv2", "transformers", "xformers", "tensorboard", "matplotlib")
MAX_LINES = 500
OF_EXTRAS = {"surgrec.kernels.hopper_products": "quack"}
"""Modules that import a package at once which not every installation has."""


def source_files() -> list[Path]:
    return sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def commands() -> list[str]:
    """Modules of surgrec/ that `python -m` runs."""
    return sorted(
        path.stem
        for path in (ROOT / "surgrec").glob("*.py")
        if "__main__" in path.read_text(encoding="utf-8")
    )


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "surgrec":
        parts.insert(0, "surgrec")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def floor_of(module: str) -> int:
    parts = module.split(".")
    return FLOORS.get(parts[1], FLOORS["surgrec"]) if len(parts) > 1 else FLOORS["surgrec"]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module that a `from` statement names, with leading dots resolved."""
    if not node.level:
        return node.module or ""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    base = package[: len(package) - (node.level - 1)]
    return ".".join([*base, node.module] if node.module else base)


def imported(path: Path, nodes: list[ast.stmt] | None = None) -> Iterator[str]:
    """Names of the modules that a file imports: anywhere in it, or in the given statements only."""
    known = {module_name(other) for other in source_files()}
    for node in ast.walk(tree_of(path)) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path)
            submodules = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name for name in submodules if name in known)
            if not all(name in known for name in submodules):
                yield module


def when_imported(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements that run when a module is imported, type checking aside."""
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.dump(node.test):
                found += when_imported(node.body)
            found += when_imported(node.orelse)
        elif isinstance(node, ast.Try):
            for part in (node.body, node.orelse, node.finalbody, *(h.body for h in node.handlers)):
                found += when_imported(part)
        elif isinstance(node, ast.With):
            found += when_imported(node.body)
        else:
            found.append(node)
    return found


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    own = floor_of(module_name(path))
    for name in imported(path):
        if name.split(".")[0] == "surgrec" and name != "surgrec":
            assert floor_of(name) <= own, f"{path} (floor {own}) imports {name} (floor {floor_of(name)})"


def test_configs_import_nothing_heavy() -> None:
    for path in (ROOT / "configs").rglob("*.py"):
        for name in imported(path):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names or top in LIGHT_FOR_CONFIGS, f"{path} imports {name}"


def test_nothing_imports_scripts() -> None:
    """Benchmarks and experiments stand beside the packages."""
    scripts = {"bench", "experiments", "harness"}
    for path in source_files():
        assert not scripts & {name.split(".")[0] for name in imported(path)}, path


def test_no_import_cycle() -> None:
    edges = {
        module_name(path): set(imported(path, when_imported(tree_of(path).body))) for path in source_files()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module in done:
            return
        for target in edges.get(module, ()):
            if target != module:
                visit(target, (*trail, module))
        done.add(module)

    for module in edges:
        visit(module, ())


def test_every_package_is_listed() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {module_name(path) for path in source_files() if path.name == "__init__.py"}
    assert set(config["packages"]) == folders
    for path in source_files():
        assert (path.parent / "__init__.py").exists(), f"{path.parent} has modules and no __init__.py"
    for package, folder in config["package-dir"].items():
        assert module_name(ROOT / folder / "__init__.py") == package


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_house_rules_of_a_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < MAX_LINES
    assert not {"pickle", "cPickle", "dill", "cloudpickle"} & {name.split(".")[0] for name in imported(path)}
    if path.name != "__init__.py":
        assert "from __future__ import annotations" in text
        assert ast.get_docstring(tree_of(path)), f"{path} says nowhere what it is"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: bare except"
            broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            silent = all(isinstance(part, ast.Pass) for part in node.body)
            assert not (broad and silent), f"{path}:{node.lineno}: swallows every error"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_transformers_imports_from_the_repository_root() -> None:
    """A top-level package called `kernels` would break it: `python -c` puts the root first on the path."""
    done = run_python("import transformers; from transformers import VideoMAEForPreTraining; print('fine')")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fine"]


def test_every_module_imports_by_itself() -> None:
    names = [module_name(path) for path in source_files()]
    assert OF_EXTRAS.keys() <= set(names)
    names = [name for name in names if name not in OF_EXTRAS or importlib.util.find_spec(OF_EXTRAS[name])]
    done = run_python(f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", commands())
def test_help_is_light(command: str) -> None:
    """--help answers without loading torch and its like, which take seconds."""
    done = run_python(
        f"""
import runpy, sys
sys.argv = ["surgrec.{command}", "--help"]
code = 0
try:
    runpy.run_module("surgrec.{command}", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    code = stop.code or 0
print("heavy:", [name for name in {HEAVY!r} if name in sys.modules])
sys.exit(code)
"""
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_readme_commands_exist() -> None:
    """What the documents tell people to type is there: modules, make targets, scripts, linked files."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    seen = set()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for module in re.findall(r"python -m surgrec\.(\w+)", block):
                assert module in commands(), f"{page}: python -m surgrec.{module}"
                seen.add(module)
            for target in re.findall(r"^make ([a-z]+)", block, re.MULTILINE):
                assert target in targets, f"{page}: make {target}"
            for script in re.findall(r"python ((?:bench|experiments)/\w+\.py)", block):
                assert (ROOT / script).exists(), f"{page}: {script}"
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (page.parent / link).exists(), f"{page} links to {link}"
    assert {"index", "pretrain", "doctor"} <= seen


def test_no_private_path_is_named() -> None:
    """The project stands by itself: nothing outside the repository is named in it."""
    private = re.compile(rf"(?<![\w.])/{'wo'}rk\b|\b{'sha'}red/|/tmp/[A-Z]")
    patterns = ("*.md", "*.toml", "Makefile", "docs/*.md", "bench/**/*.py", "bench/**/*.json", ".ci/*")
    patterns += tuple(f"experiments/**/*.{kind}" for kind in ("md", "yaml", "json"))
    files = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    files |= {path for top in (*FLOORS, "tests", "experiments") for path in (ROOT / top).rglob("*.py")}
    for path in sorted(files):
        found = private.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path} names {found.group() if found else ''}"
