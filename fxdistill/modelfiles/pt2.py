"""``torch.export`` archives (``.pt2``) as plain, trainable FX graph modules.

An archive may run code when it is loaded: pickled tensors, compiled libraries, operators looked up by name
and symbolic sizes that sympy evaluates. :func:`inspect_archive` first reads it as data and refuses these.

What ``torch.export`` gives back is frozen: ``train()`` raises. :func:`load` gives a plain graph module whose layers
have their modes back (:mod:`fxdistill.passes.trace.restore`).
"""

import inspect
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxdistill import files
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import ModelError
from fxdistill.passes.trace.restore import restore

METADATA = "fxdistill.json"
"""The extra file of an archive that says where its weights come from."""
_TARGET = re.compile(
    r"torch\.ops\.(?!__)\w+\.\w+(\.(?!__)\w+)?|torch\._?sym_\w+|math\.(?!_)\w+"
    r"|_operator\.(?!__|attrgetter|methodcaller|itemgetter|call$)\w+"
)
_QUOTED_SYMBOL = re.compile(r"'[a-z]+\d+'")
_NAME = re.compile(r"[A-Za-z_]\w*")
_SIZE_TEXT = re.compile(r"[\w\s(),=-]*")
_SIZE_NAME = re.compile(
    r"Symbol|Integer|Float|Rational|positive|nonnegative|integer|real|precision|True|False|true|false|Add|Mul|Pow"
    r"|Mod|Max|Min|FloorDiv|CleanDiv|PythonMod|ModularIndexing|\w+ToInt|ToFloat|IntTrueDiv|FloatTrueDiv|FloatPow"
    r"|PowByNatural|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not|Where"
    r"|Identity|floor|ceiling|oo|int_oo|[a-z]\d+"
)


def load(path: Path) -> tuple[nn.Module, tuple[int, ...] | None, tuple[Diagnostic, ...]]:
    """Read an exported program.

    Args:
        path: The ``.pt2`` file; pass it to :func:`inspect_archive` first.

    Returns:
        The module, in eval mode; the shape of the example input, where the file has one; remarks.

    Raises:
        ModelError: The file is damaged, or is not a model of one image batch.
    """
    try:
        with path.open("rb") as file:
            program = torch.export.load(io.BytesIO(file.read()))
        options = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
        frozen = program.module(**options)
    except Exception as cause:
        raise ModelError(
            f"the exported program cannot be read: {type(cause).__name__}: {cause}",
            where=str(path),
            hint=f"export it again with this version of torch ({torch.__version__})",
        ) from cause
    if not isinstance(frozen, fx.GraphModule):
        raise ModelError("the exported program holds no graph", where=str(path), hint="export it again")
    shape, static = _input_shape(program, frozen, path)
    module, stuck = _thaw(frozen)
    return module.eval(), shape, tuple(_remarks(path, shape, static=static, stuck=stuck))


def save(module: nn.Module, path: Path, *, input_shape: tuple[int, ...], metadata: Mapping[str, Any]) -> None:
    """Write a module as an exported program, for any batch size where it allows that.

    Args:
        module: Takes one batch of images.
        path: The file to write, whole or not at all.
        input_shape: Shape of the batch.
        metadata: What :func:`metadata` then finds.

    Raises:
        ModelError: The module cannot be exported.
        PlanError: The file cannot be written there.
        StorageError: The disk is full.
    """
    images = torch.randn(max(2, input_shape[0]), *input_shape[1:])
    buffer = io.BytesIO()
    try:
        program = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(dict(metadata))})
    except Exception as cause:
        raise ModelError(
            f"the model cannot be exported: {type(cause).__name__}: {next(iter(str(cause).splitlines()), '')}",
            where=type(module).__name__, hint="give the original by its factory, so that a bundle can be written",
        ) from cause  # fmt: skip
    files.write_bytes(path, buffer.getvalue())


def metadata(path: Path) -> dict[str, Any]:
    """What :data:`METADATA` in an archive says, {} without it.

    Raises:
        ModelError: It is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.partition("/")[2] == f"extra/{METADATA}"]
            found = json.loads(archive.read(names[0])) if names else {}
    except (zipfile.BadZipFile, ValueError, OSError) as cause:
        raise ModelError(
            f"the exported program's metadata is damaged: {cause}", where=str(path), hint="write the file again"
        ) from cause
    return found if isinstance(found, dict) else {}


def inspect_archive(path: Path) -> None:
    """Read an archive as data, and refuse it where loading it could run code.

    Raises:
        ModelError: It could, or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if "serialized_exported_program.json" in members:
                raise ModelError(
                    "the file has the layout of an old torch", where=str(path), hint="export the model again"
                )
            if len(set(members)) != len(members):
                raise _refusal(path, "two members of one name")  # readers differ in which one they take
            for member in members:
                name = member.partition("/")[2]
                if "aotinductor" in name:
                    raise _refusal(path, "a compiled library")
                if name.endswith(".json") and not name.startswith("extra/"):
                    _inspect_json(path, json.loads(archive.read(member)))
                if name.startswith("data/sample_inputs/"):
                    _inspect_pickle(path, archive.read(member))
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as cause:
        raise ModelError(
            f"the exported program is damaged: {cause}", where=str(path), hint="copy or export it again"
        ) from cause


def _inspect_pickle(path: Path, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as cause:
        raise _refusal(path, "pickled example inputs") from cause


def _inspect_json(path: Path, data: object) -> None:
    for key, value in _entries(data):
        if key == "use_pickle" and value:
            raise _refusal(path, "pickled tensors")
        if key in ("target", "as_operator") and isinstance(value, str) and not _TARGET.fullmatch(value):
            raise _refusal(path, f"a call of '{value}'")
        if key == "expr_str" and not _is_size(str(value)):
            raise _refusal(path, f"the size '{value}'")


def _is_size(text: str) -> bool:
    """Whether a text is arithmetic on sizes: it goes to ``sympy.sympify``, which evaluates it as Python."""
    bare = _QUOTED_SYMBOL.sub("", text)
    return bool(_SIZE_TEXT.fullmatch(bare)) and all(map(_SIZE_NAME.fullmatch, _NAME.findall(bare)))


def _entries(data: object) -> Iterator[tuple[str, object]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield str(key), value
            yield from _entries(value)
    elif isinstance(data, list):
        for value in data:
            yield from _entries(value)


def _refusal(path: Path, found: str) -> ModelError:
    return ModelError(
        f"the exported program holds {found}, which can run code when it is loaded",
        where=str(path),
        hint="export the plain model again, or, if you trust where the file comes from, add --trust-pickle",
    )


def _input_shape(
    program: torch.export.ExportedProgram, frozen: fx.GraphModule, path: Path
) -> tuple[tuple[int, ...] | None, bool]:
    """The example input's shape, and whether its batch size is fixed."""
    inputs = [node for node in frozen.graph.nodes if node.op == "placeholder"]
    value = inputs[0].meta.get("val") if len(inputs) == 1 else None
    if not isinstance(value, torch.Tensor):
        raise ModelError(
            f"the exported program takes {len(inputs)} inputs; it must take one batch of images",
            where=str(path),
            hint="export a wrapper that takes one tensor",
        )
    static = value.ndim > 0 and isinstance(value.shape[0], int)
    examples = pytree.tree_leaves(program.example_inputs)
    if len(examples) == 1 and isinstance(examples[0], torch.Tensor):
        return tuple(examples[0].shape), static
    if all(isinstance(size, int) for size in value.shape):
        return tuple(value.shape), static
    return None, static


def _thaw(frozen: fx.GraphModule) -> tuple[fx.GraphModule, list[str]]:
    """A plain graph module, and the names of the calls whose mode stays frozen."""
    graph = frozen.graph
    output = next(node for node in graph.nodes if node.op == "output")
    codegen: Any = graph._codegen  # noqa: SLF001 - where fx keeps the structure of an exported output
    if getattr(codegen, "pytree_info", None) is not None:
        flat: Any = output.args[0]
        output.args = (pytree.tree_unflatten(list(flat), codegen.pytree_info.out_spec),)
    graph.set_codegen(fx.graph.CodeGen())
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target).startswith("_guards"):
            graph.erase_node(node)
    stuck = restore(frozen, graph)
    graph.lint()
    return fx.GraphModule(frozen, graph, class_name="Exported"), stuck


def _remarks(path: Path, shape: tuple[int, ...] | None, *, static: bool, stuck: list[str]) -> Iterator[Diagnostic]:
    if static:
        yield Diagnostic(
            code="static-batch", severity="warning", where=str(path),
            why=f"the program was exported for a batch of exactly {shape[0] if shape else 'one size'}",
            hint="export it with dynamic_shapes, so that other batches and the last, smaller one work",
        )  # fmt: skip
    if stuck:
        yield Diagnostic(
            code="frozen-mode", severity="warning", where=f"{path}, {', '.join(stuck[:3])}",
            why=f"{len(stuck)} normalisations or dropouts keep the mode that they were exported in",
            hint="give the model as a state dict with its factory if it is to be trained",
        )  # fmt: skip
