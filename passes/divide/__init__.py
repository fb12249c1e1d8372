"""Divide: a stage's program, split where frozen values cross into the rest.

    stage(images, labels)  =  rest(images, labels, cached = frozen(images))         bit for bit

What frozen members compute of an image does not change while a stage trains, so that ``frozen`` may run once for each
view of an image, whatever epochs, seeds and arms meet it. A value belongs to the frozen half where it is a function of
**one image** and of tensors that nothing trains: no batch statistics (a tap that is ``standardized`` over the batch is
scaled in the rest), no random numbers, no buffer that a call changes. What is known of a node says so, and a run on
noise has to agree: row by row the same, whatever images stand beside it (:mod:`fxdistill.passes.divide.fixed`).

What crosses is the **smallest cut** in bytes between what costs (layers with weights) and what reads it from outside:
the tap after slicing and pooling, the logits before they are scaled up to an image. Cheap nodes behind the cut are
computed in the rest, and views of the images, which cost nothing, on both sides.

The proof, run every time: on a batch, the losses of the rest, given what crosses, are those of the stage.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxdistill.errors import InvariantError
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.program import Batch, Program
from fxdistill.ir.running import buffers_kept, full_precision, same, seeded
from fxdistill.passes.divide.cut import smallest
from fxdistill.passes.divide.fixed import fixed_nodes
from fxdistill.passes.specialize.needed import remove_dead, upto

PREFIX = "cached."
"""In front of the names of the fields that cross."""
_ROUNDING = 1e-5  # of the largest loss, on accelerators, whose sums come in any order


@dataclass(frozen=True)
class Divided:
    """A stage's program in two halves.

    Attributes:
        rest: The program of the stage; it reads the fields that cross beside those of the batch.
        frozen: From a batch's ``images`` to the fields that cross, by name; each has one row an image. None where
            nothing is divided.
        why: Why nothing is divided; '' where it is.
    """

    rest: Program
    frozen: fx.GraphModule | None = None
    why: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that cross."""
        return tuple(name for name in self.rest.inputs if name.startswith(PREFIX))


@dataclass(frozen=True)
class Divide(Pass[Program, Divided]):
    """Split the program of one stage.

    Attributes:
        batch: Some images with what the stage's losses read beside them, to look at the program with.
    """

    batch: Batch

    def run(self, source: Program) -> PassResult[Divided]:
        """Find what is fixed, cut, build both halves."""
        images = self.batch["images"]
        if len(images) < 2:
            return PassResult(
                Divided(source, why="one image alone does not tell what is a function of it"), modified=False
            )
        fixed, why = fixed_nodes(source, images)
        crossing = smallest(source, fixed)
        if not crossing:
            return PassResult(Divided(source, why=why or "its losses read nothing of frozen members"), modified=False)
        names = {node: f"{PREFIX}{node.name}" for node in crossing}
        return PassResult(Divided(_rest(source, names), _frozen(source, names)), modified=True)

    def ensures(self, source: Program, value: Divided) -> None:
        """The rest, given what crosses, has the losses of the stage; what crosses has a row for every image."""
        if value.frozen is None:
            if value.rest is not source:
                raise InvariantError("nothing was divided, and the rest is not the program")
            return
        trained = {id(parameter) for parameter in source.parameters() if parameter.requires_grad}
        if any(id(parameter) in trained for parameter in value.frozen.parameters()):
            raise InvariantError("the frozen half holds what the stage trains")
        if {id(parameter) for parameter in value.rest.parameters() if parameter.requires_grad} != trained:
            raise InvariantError("the rest does not train what the stage trains")
        wanted = _losses(source, self.batch)
        with torch.no_grad(), full_precision(self.batch["images"].device):
            crossed = value.frozen({"images": self.batch["images"]})
        if set(crossed) != set(value.fields):
            raise InvariantError("what the frozen half gives is not what the rest reads")
        for name, rows in crossed.items():
            if not isinstance(rows, Tensor) or rows.shape[:1] != self.batch["images"].shape[:1]:
                raise InvariantError("what crosses is not one row for every image", where=name)
        found = _losses(value.rest, {**self.batch, **crossed})
        for key, loss in wanted.items():
            if not _equal(loss, found[key]):
                raise InvariantError(f"dividing changed the loss '{key}'", where=f"stage {source.stages[0].name}")


def _rest(source: Program, names: Mapping[fx.Node, str]) -> Program:
    """The program with a field of the batch in place of each node that crosses, and without what made it."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    batch = None
    for node in source.graph.nodes:
        if node in names and batch is not None:
            field = names[node]
            read = graph.create_node("call_function", operator.getitem, (batch, field))
            read.meta = {"role": "input", "path": field, "shape": node.meta.get("shape")}
            new[node] = read
        else:
            new[node] = graph.node_copy(node, new.__getitem__)
            batch = new[node] if node.op == "placeholder" else batch
    remove_dead(graph, source)
    return source.with_graph(graph)


def _frozen(source: Program, names: Mapping[fx.Node, str]) -> fx.GraphModule:
    """From a batch to what crosses, by name."""
    graph = upto(source.graph, source, {field: node for node, field in names.items()})
    return fx.GraphModule(source, graph, "Frozen").eval()


def _losses(program: Program, batch: Batch) -> dict[str, Tensor]:
    """The losses of a batch, which leave nothing behind."""
    device = batch["images"].device
    with torch.no_grad(), full_precision(device), buffers_kept(program), seeded(device):
        found: dict[str, Tensor] = program({name: value.clone() for name, value in batch.items()})
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return same(one, other) if one.device.type == "cpu" else torch.allclose(one, other, rtol=_ROUNDING, equal_nan=True)
