"""What of a program is a function of one image alone, and stays so while the program trains.

First by what is known: of a node, its inputs have to be fixed, it belongs to a frozen member (a view, a tap or an
adapter of its values among them), it runs in eval mode, reads no memory that training writes to, and is none of the
scales that look at a whole batch. Then by what it does: the nodes run side by side on some images and on two times a
few of these alone, the last ones backwards and the first ones, and a value has to be the same of all.

    f(x)[i]  =  f(x[i]),  i = N - 1, N - 2, …  and  i = 0, 1, …          along whichever dimension grows with the batch

A value that another image changes fails that, be it the one before (a sum along the batch), the first one or the one
with the largest value of all (which cannot be among both few), as one does that is drawn anew.
"""

import itertools
from collections.abc import Iterator
from operator import attrgetter

import torch
from torch import Tensor, fx, nn

from fxdistill.ir.adapters import batch_normalized, standardized
from fxdistill.ir.graph import memory, submodule, written
from fxdistill.ir.program import Program
from fxdistill.ir.running import attributes_kept, buffers_kept, full_precision, same, seeded

_OF_BATCHES = (batch_normalized, standardized)
_ROUNDING = 1e-3  # of the largest value: kernels differ with the size of a batch


def fixed_nodes(program: Program, images: Tensor) -> tuple[dict[fx.Node, int], str]:
    """The nodes whose values are fixed, the batch and its images among them.

    Args:
        program: The program of a stage.
        images: (N, C, H, W), two at least.

    Returns:
        The nodes with the bytes of their values for one image, 0 for what is not one tensor with a row an image; and
        why there are none where a frozen member changes when it is called.
    """
    known = _known(program)
    found, changed = _observed(program, known, images)
    if changed:
        return {}, f"its buffer '{changed}' changes with every call"
    return found, ""


def _known(program: Program) -> set[fx.Node]:
    trained = _trained_memory(program)
    fixed: set[fx.Node] = set()
    for node in program.graph.nodes:
        if all(source in fixed for source in node.all_input_nodes) and _is_known(program, node, trained):
            fixed.add(node)
    group = memory(program.graph, program)
    while spoilt := {
        group[target] for node in program.graph.nodes if node not in fixed and node.op not in ("placeholder", "output")
        for target in written(node, program) if any(group[target] == group[one] for one in fixed)
    }:  # fmt: skip
        fixed = _closed({node for node in fixed if group[node] not in spoilt}, program)
    return fixed


def _closed(fixed: set[fx.Node], program: Program) -> set[fx.Node]:
    """Those of some nodes whose inputs are among them."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node in fixed and all(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _is_known(program: Program, node: fx.Node, trained: set[int]) -> bool:
    role = node.meta.get("role")
    if role == "input":
        return node.op == "placeholder" or node.meta.get("path") == "images"
    if role not in ("view", "model", "tap", "adapter") or node.target in _OF_BATCHES:
        return False
    if role in ("model", "tap") and not node.meta.get("frozen"):
        return False
    if node.op == "get_attr":
        value = attrgetter(str(node.target))(program)
        return not isinstance(value, Tensor) or _place(value) not in trained
    module = submodule(program, node)
    return module is None or _is_still(module, trained)


def _is_still(module: nn.Module, trained: set[int]) -> bool:
    """Whether a module is in eval mode, and nothing that it holds is trained."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return not any(part.training for part in module.modules()) and all(_place(t) not in trained for t in tensors)


def _trained_memory(program: Program) -> set[int]:
    """Where the tensors lie that training writes to: members may share weights."""
    owners = {member.name for member in program.members if member.trained} | {"adapters", "losses"}
    found = {_place(p) for p in program.parameters() if p.requires_grad}
    for name in owners & {name for name, _ in program.named_children()}:
        part = program.get_submodule(name)
        learns = name != "adapters"  # whose buffers are indices
        found |= {_place(b) for b in part.buffers()} if learns else set()
    return found


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _observed(program: Program, known: set[fx.Node], images: Tensor) -> tuple[dict[fx.Node, int], str]:
    """Those that a run bears out, and the name of a buffer that the run has changed."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node in known:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(())
    module = fx.GraphModule(program, graph)
    places, count = torch.arange(len(images)), max(1, len(images) // 2 - 1)
    few = [places.flip(0)[:count], places[:count]]
    found: dict[fx.Node, int] = {}
    device = images.device
    with (
        torch.no_grad(), full_precision(device), seeded(device), attributes_kept(module), buffers_kept(module) as before
    ):  # fmt: skip
        for node, agrees, size in _side_by_side(module, copies, images, few):
            if agrees and all(source in found for source in node.all_input_nodes):
                found[node] = size
        now = dict(module.named_buffers(remove_duplicate=False))
        changed = next((name for name, value in before.items() if not same(now[name], value)), "")
    return found, changed


def _side_by_side(
    module: fx.GraphModule, copies: dict[fx.Node, fx.Node], images: Tensor, few: list[Tensor]
) -> Iterator[tuple[fx.Node, bool, int]]:
    """Each node, whether its value for all images agrees with those for a few, and its bytes an image."""
    shown = [images, *(images[places] for places in few)]
    runs = [fx.Interpreter(module) for _ in shown]
    left = {copy: len(copy.users) for copy in copies.values()}
    for node, copy in copies.items():
        drawn = _generators(images.device)
        for run, part in zip(runs, shown, strict=True):
            run.env[copy] = {"images": part.clone()} if copy.op == "placeholder" else run.run_node(copy)
        one, *others = (run.env[copy] for run in runs)
        agrees = copy.op == "placeholder" or all(
            _agree(one, other, len(images), places) for other, places in zip(others, few, strict=True)
        )
        drew = not all(map(torch.equal, drawn, _generators(images.device)))
        yield node, agrees and not drew, _row_bytes(one, len(images))
        for source in copy.all_input_nodes:
            left[source] -= 1
            if not left[source]:
                for run in runs:
                    del run.env[source]


def _generators(device: torch.device) -> list[Tensor]:
    """The states of the generators that a program on a device draws from."""
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.random.get_rng_state(), *own]


def _row_bytes(value: object, count: int) -> int:
    has_rows = isinstance(value, Tensor) and value.shape[:1] == (count,)
    return value.numel() * value.element_size() // count if isinstance(value, Tensor) and has_rows else 0


def _agree(one: object, other: object, whole: int, few: Tensor) -> bool:
    """Whether a value for all images says of a few what the value for these alone says."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _rows_agree(one, other, whole, few)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(_agree(a, b, whole, few) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_agree(one[key], other[key], whole, few) for key in one)
    if isinstance(one, int) and isinstance(other, int) and not isinstance(one, bool):
        return one * len(few) == other * whole or one == other  # a size
    return type(one) is type(other) and bool(one == other)


def _rows_agree(one: Tensor, other: Tensor, whole: int, few: Tensor) -> bool:
    if one.dim() != other.dim() or one.dtype != other.dtype:
        return False
    grown = [dim for dim in range(one.dim()) if one.shape[dim] != other.shape[dim]]
    each = {dim: one.shape[dim] // whole for dim in grown}  # rows of an image, which may be several
    if len(grown) > 1 or any((whole * n, len(few) * n) != (one.shape[d], other.shape[d]) for d, n in each.items()):
        return False
    for dim, rows in each.items():
        one = one.unflatten(dim, (whole, rows)).index_select(dim, few.to(one.device)).flatten(dim, dim + 1)
    if same(one, other):
        return True
    if not one.is_floating_point():
        return False
    error, scale = (one.double() - other.double()).abs().max(), other.double().abs().max()
    return bool(error <= _ROUNDING * scale)
