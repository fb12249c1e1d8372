"""Every remark that the sources give: read from them, as text with … where a run fills something in."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ANY = "…"


@dataclass(frozen=True)
class Remark:
    """One place in the sources that gives a remark.

    Attributes:
        code: Its code.
        severity: ``note`` or ``warning``, or both.
        why: What it says was found.
        hint: What it says can be done; '' for nothing.
        source: The file, from the top of the repository.
    """

    code: str
    severity: str
    why: str
    hint: str
    source: str


def remarks() -> list[Remark]:
    """All of them, by code and file."""
    found: list[Remark] = []
    for top in ("fxdistill", "passes"):
        for path in sorted((ROOT / top).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            if "fxdistill/passes" not in path.as_posix() and ("Diagnostic(" in source or ".note(" in source):
                found += _of(ast.parse(source), path.relative_to(ROOT).as_posix())
    return sorted(set(found), key=lambda remark: (remark.code, remark.source, remark.why))


def _of(tree: ast.Module, source: str) -> Iterator[Remark]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for scope in [tree, *functions]:
        names = _assigned(scope)
        for node in _inside(scope):
            if isinstance(node, ast.Call):
                ways = _callers(tree, scope) if isinstance(scope, ast.FunctionDef) and _hands_on(node, scope) else [{}]
                for way in ways:
                    yield from _remark(node, {**names, **way}, source)


def _hands_on(call: ast.Call, scope: ast.FunctionDef) -> bool:
    """Whether what is found is given to the function that makes the remark."""
    why = next((word.value for word in call.keywords if word.arg == "why"), None)
    return isinstance(why, ast.Name) and why.id in {one.arg for one in scope.args.args}


def _callers(tree: ast.Module, scope: ast.FunctionDef) -> list[dict[str, ast.expr]]:
    """What the calls of a function in its file give to it."""
    usual = {one.arg: value for one, value in zip(scope.args.kwonlyargs, scope.args.kw_defaults, strict=True) if value}
    found: list[dict[str, ast.expr]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == scope.name:
            words = {word.arg: word.value for word in node.keywords if word.arg}
            given = dict(zip((one.arg for one in scope.args.args), node.args, strict=False))
            found.append({**usual, **given, **words})
    return found or [{}]


def _inside(scope: ast.AST) -> Iterator[ast.AST]:
    """What belongs to a function and to none within it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _inside(child)


def _remark(call: ast.Call, names: dict[str, ast.expr], source: str) -> Iterator[Remark]:
    given = {word.arg: word.value for word in call.keywords if word.arg}
    if isinstance(call.func, ast.Attribute) and call.func.attr == "note" and _is_text(call.args[:1]):
        given |= dict(zip(("code", "why", "hint"), call.args, strict=False))
    if not _is_text([given.get("code")]) or "why" not in given:
        return
    parts = {name: text(given[name], names) for name in ("code", "why") if name in given}
    severity = text(given["severity"], names) if "severity" in given else "note"
    yield Remark(**parts, severity=severity, hint=text(given["hint"], names) if "hint" in given else "", source=source)


def _is_text(nodes: list[ast.expr | None] | list[ast.expr]) -> bool:
    return bool(nodes) and isinstance(nodes[0], ast.Constant) and isinstance(nodes[0].value, str)


def _assigned(scope: ast.AST) -> dict[str, ast.expr]:
    """Names that a function gives a text to, once or before it is told."""
    found: dict[str, ast.expr] = {}
    for node in _inside(scope):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            pairs = [(target, node.value)]  # type: ignore[attr-defined]  # an assignment
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):  # type: ignore[attr-defined]
                pairs = list(zip(target.elts, node.value.elts, strict=True))  # type: ignore[attr-defined]
            found |= {name.id: value for name, value in pairs if isinstance(name, ast.Name)}
    return found


def text(node: ast.expr, names: dict[str, ast.expr]) -> str:
    """A text of the sources, with … for what is not known before a run."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text(value, names) for value in node.values).replace(_ANY * 2, _ANY)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text(node.left, names) + text(node.right, names)
    if isinstance(node, ast.IfExp):
        both = [text(node.body, names), text(node.orelse, names)]
        return " / ".join(dict.fromkeys(filter(None, both)))
    if isinstance(node, ast.Name) and isinstance(names.get(node.id), ast.Constant | ast.JoinedStr | ast.IfExp):
        return text(names[node.id], {})
    return _ANY
