"""Nouns do not import verbs: every import goes to the same layer or one below it, and none is hidden in a function.

A layer is a folder of the package or a file at its top, in the order of the compiler: from what everything speaks to
what the user speaks to. An exception has its reason beside it.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = (
    "errors", "figures", "checking", "diagnostics", "files", "container", "arguments", "classnames", "preprocessing",
    "registry", "models", "tasks", "operators", "losses", "data.augmentations", "plan", "ir",
    "methods", "criteria", "passes", "compiler", "modelfiles", "data", "measure", "runtime", "runtime.planning",
    "runtime.processes", "runtime.training", "runtime.run", "runtime.deployment", "runtime.smaller", "report", "cli",
    "__main__",
)  # fmt: skip
OPTIONAL = {"timm"}
"""Packages that need not be installed, and are imported where they are needed."""
SLOW = {
    "scipy.linalg", "scipy.optimize", "scipy.stats", "torchmetrics.classification",  # a plan does without them
    "fxdistill.runtime.run.directory", "fxdistill.runtime.run.inspection",  # a plan's file is shown without them
}  # fmt: skip
FILES = sorted(
    path for top in ("fxdistill", "passes") for path in (ROOT / top).rglob("*.py")
    if ROOT / "fxdistill" / "passes" not in path.parents
)  # fmt: skip


def layer_of(module: str) -> str:
    """The layer of a module: ``data.augmentations`` for one in that folder, else the folder or file at the top."""
    parts = module.removeprefix("fxdistill.").split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in LAYERS else parts[0]


def place(path: Path) -> str:
    """The file's path inside the package."""
    relative = path.relative_to(ROOT)
    return str(relative if relative.parts[0] == "passes" else relative.relative_to("fxdistill"))


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def test_imports_go_down() -> None:
    wrong = []
    for path in FILES:
        if path.name == "__init__.py" and path.parent.name == "fxdistill":
            continue
        own = LAYERS.index(layer_of(place(path).removesuffix(".py").replace("/", ".")))
        wrong += [
            f"{place(path)}:{node.lineno} imports {module}"  # type: ignore[attr-defined]
            for node in nodes(path) for module in imported(node)
            if module.startswith("fxdistill.") and LAYERS.index(layer_of(module)) > own
        ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_imports_stand_at_the_top() -> None:
    wrong = []
    for path in FILES:
        functions = [node for node in nodes(path) if isinstance(node, ast.FunctionDef)]
        for module in {name for function in functions for node in ast.walk(function) for name in imported(node)}:
            if place(path).startswith("cli/") and module.startswith("fxdistill."):
                continue  # a command imports what it needs, so that the others stay quick
            slow = not SLOW.isdisjoint((module, module.rpartition(".")[0]))
            if not slow and module.split(".")[0] not in OPTIONAL:
                wrong.append(f"{place(path)} imports {module} in a function")
    assert not wrong, "\n".join(wrong)


def test_every_layer_is_there() -> None:
    found = {layer_of(place(path).removesuffix(".py").replace("/", ".")) for path in FILES} - {"__init__"}
    assert found == set(LAYERS)
