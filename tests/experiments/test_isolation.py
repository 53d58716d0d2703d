"""Nothing outside the experiments needs them."""

import ast
import pathlib

import entropy_optax

PACKAGE = pathlib.Path(entropy_optax.__file__).parent


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_nothing_else_imports_the_experiments():
    outside = [
        path
        for path in PACKAGE.rglob("*.py")
        if "experiments" not in path.relative_to(PACKAGE).parts
    ]
    assert len(outside) > 10
    for path in outside:
        # The instruments draw and show their progress.
        inside = "measure" in path.relative_to(PACKAGE).parts
        refused = ("tyro",) if inside else ("tyro", "rich", "matplotlib")
        for name in imported(path):
            assert "experiments" not in name, path
            assert name.split(".")[0] not in refused, path


def test_nothing_below_imports_the_instruments():
    layers = ("measure", "experiments")
    for path in PACKAGE.rglob("*.py"):
        if not set(layers) & set(path.relative_to(PACKAGE).parts):
            for name in imported(path):
                assert "measure" not in name.split("."), path
                assert name.split(".")[0] not in ("matfree", "blackjax", "scipy"), path


def test_no_pickle_in_the_experiments():
    for path in (PACKAGE / "experiments").glob("*.py"):
        assert not {"pickle", "dill", "cloudpickle"} & set(imported(path)), path
        text = path.read_text()
        assert text.count("allow_pickle") == text.count("allow_pickle=False"), path
        assert text.count("np.load(") <= text.count("allow_pickle=False"), path
