"""The rules of the house: imports, names, docstrings, sizes, no machine's paths."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import entropy_optax as eo

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "entropy_optax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
NAMES = [
    "add_langevin_noise",
    "add_replica_pull",
    "add_scope_pull",
    "automatic_scoping",
    "bounded_exponential_scoping",
    "center_params",
    "elastic_averaging",
    "entropy_adam",
    "entropy_sgd",
    "eval_params",
    "exponential_scoping",
    "filter_entropy_sgd",
    "filter_geometry",
    "heat",
    "leaf_geometry",
    "linear_scoping",
    "local_entropy",
    "num_gradients",
    "parle",
    "quadratic_scoping",
    "random_weight_perturbation",
    "replica_distance",
    "replica_params",
    "replicate",
    "replicated_sgd",
    "scale_by_local_entropy",
    "sgld",
    "temperature_from_noise",
]
PRIVATE_BY_NAME = re.compile(r"(^|\.)(_[a-z]\w*|private)(\.|$)")


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> list[str]:
    """Return the dotted name of all that a file imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{label(path)}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_the_sources_are_found():
    assert PACKAGE / "_alias.py" in SOURCES
    assert "optax" in imports(PACKAGE / "_alias.py")


def test_the_core_imports_nothing_heavier_than_optax():
    heavy = "flax matplotlib orbax tyro rich matfree tensorflow tensorflow_datasets"
    code = (
        "import sys, entropy_optax, entropy_optax.reference\n"
        "core = {name.partition('.')[0] for name in sys.modules}\n"
        f"print(*sorted(core & set({heavy!r}.split())))\n"
        "print(any(name.startswith('entropy_optax.experiments') for name in "
        "sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.split("\n")[:2] == ["", "False"]


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_private_import_of_a_neighbour(path):
    """Such as optax._src, jax._src: they change without notice."""
    foreign = [n for n in imports(path) if not n.startswith("entropy_optax")]
    assert not [n for n in foreign if PRIVATE_BY_NAME.search(n)]
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b(jax|optax|flax|orbax)\.(\w+\.)*_[a-z]", text)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_pickle(path):
    loaders = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
    assert not {n.partition(".")[0] for n in imports(path)} & loaders
    assert "allow_pickle=True" not in path.read_text(encoding="utf-8")


def test_nothing_imports_the_experiments():
    for path in SOURCES:
        if "experiments" not in path.relative_to(PACKAGE).parts:
            found = [n for n in imports(path) if "entropy_optax.experiments" in n]
            assert not found, label(path)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("name", NAMES)
def test_public_function_is_there_and_documented(name):
    doc = inspect.getdoc(getattr(eo, name))
    assert doc
    function = getattr(eo, name)
    parameters = inspect.signature(function).parameters
    sections = ["Returns:", "Examples:"] + ["Args:"] * bool(parameters)
    for section in sections:
        assert re.search(rf"^{section}$", doc, re.M), section
    assert ">>> " in doc
    for parameter in parameters:
        assert re.search(rf"^  {parameter}: ", doc, re.M), parameter


@pytest.mark.parametrize("name", NAMES)
def test_public_signature_uses_the_fields_names(name):
    parameters = inspect.signature(getattr(eo, name)).parameters
    wrong = {"lr", "eps", "L", "seed"}
    if name == "temperature_from_noise":
        wrong.remove("eps")  # the paper's own symbol is what it converts
    assert not wrong & set(parameters)


def tracked_files() -> list[Path]:
    """Return git's files, or in an unpacked archive those of the package."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return SOURCES
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_text_file_holds_a_path_of_one_machine():
    own = {Path(__file__)}
    machine = re.compile(r"(?<![\w.])/(home|root|Users|work|mnt|scratch)/\w")
    hits = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # data, figures
        if path not in own and (found := machine.search(text)):
            hits.append(f"{label(path)}: {found.group()}")
    assert not hits
