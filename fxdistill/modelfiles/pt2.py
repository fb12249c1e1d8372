"""``torch.export`` archives (``.pt2``) as plain, trainable FX graph modules.

Loading an archive can run what is in it, and so can running it: only a trusted one comes here. What ``torch.export``
gives back is frozen: ``train()`` raises. :func:`load` gives a plain graph module whose layers have their modes back
(:mod:`fxdistill.passes.trace.restore`).
"""

import inspect
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxdistill import files
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import ModelError
from fxdistill.passes.trace.restore import restore


def load(path: Path) -> tuple[nn.Module, tuple[int, ...] | None, tuple[Diagnostic, ...]]:
    """Read an exported program.

    Args:
        path: The ``.pt2`` file, which the user trusts.

    Returns:
        The module, in eval mode; the shape of the example input, where the file has one; remarks.

    Raises:
        ModelError: The file is damaged, or is not a model of one image batch.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11's own buffer
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


def save(module: nn.Module, path: Path, *, input_shape: tuple[int, ...]) -> None:
    """Write a module as an exported program, for whoever has torch and nothing of ours; for any batch size if it can.

    Args:
        module: Takes one batch of images.
        path: The file to write, whole or not at all.
        input_shape: Shape of the batch.

    Raises:
        ModelError: The module cannot be exported.
        PlanError: The file cannot be written there.
        StorageError: The disk is full.
    """
    images = torch.randn(max(2, input_shape[0]), *input_shape[1:])
    buffer = io.BytesIO()
    try:
        program = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)
        torch.export.save(program, buffer)
    except Exception as cause:
        raise ModelError(
            f"the model cannot be exported: {type(cause).__name__}: {next(iter(str(cause).splitlines()), '')}",
            where=type(module).__name__, hint="write a bundle: a file whose name does not end in .pt2",
        ) from cause  # fmt: skip
    files.write_bytes(path, buffer.getvalue())


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
