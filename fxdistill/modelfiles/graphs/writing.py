"""A graph on its way into a file: what the vocabulary has no word for is refused, by name."""

from collections.abc import Iterator, Mapping
from types import EllipsisType
from typing import Any

import torch
from torch import fx, nn

from fxdistill.errors import ModelError
from fxdistill.ir.operators import bare_name, table
from fxdistill.modelfiles.graphs.vocabulary import ATEN, FLAT, HOOKS, OWN, layers, names
from fxdistill.passes.trace import Trace


def to_data(module: fx.GraphModule, *, where: str) -> dict[str, Any]:
    """A graph module as plain values and tensors.

    Args:
        module: The graph, of one input.
        where: What an error is about.

    Raises:
        ModelError: Something in it cannot be written down; names it.
    """
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    written = _Written(where)
    return {"modules": written.module(module, "", called), "nodes": [written.node(node) for node in module.graph.nodes]}


class _Written:
    """A graph on its way into a file."""

    def __init__(self, where: str) -> None:
        self.where = where

    def module(self, module: nn.Module, path: str, called: set[str], *, inside: bool = False) -> dict[str, Any]:
        """A module with everything in it; only what is called, and what lies in that, is a layer."""
        layer = inside or path in called
        name = type(module).__name__ if layer else ""
        if layer and layers().get(name) is not type(module):
            raise self._refused(f"the layer '{path}' is a {name}, which is none of torch.nn")
        for hooks in HOOKS if layer else ():
            if getattr(module, hooks):
                raise self._refused(f"the layer '{path}' has a hook")
        parameters = {
            key: value if value is None else {"value": value, "grad": value.requires_grad}
            for key, value in module._parameters.items()  # noqa: SLF001  # those that are None too
        }
        kept = module._non_persistent_buffers_set  # noqa: SLF001
        return {
            "class": name,
            "attributes": dict(self._attributes(module, path)) if layer else {},
            "parameters": parameters,
            "buffers": {
                key: value if value is None else {"value": value, "persistent": key not in kept}
                for key, value in module._buffers.items()  # noqa: SLF001
            },
            "modules": {
                key: self.module(child, f"{path}.{key}" if path else key, called, inside=layer)
                for key, child in module._modules.items() if child is not None  # noqa: SLF001
            },
        }  # fmt: skip

    def _attributes(self, module: nn.Module, path: str) -> Iterator[tuple[str, Any]]:
        for key, value in vars(module).items():
            if key in OWN or key in FLAT:
                continue
            yield key, self.value(value, f"the attribute '{key}' of '{path}'")

    def node(self, node: fx.Node) -> dict[str, Any]:
        """A node."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        what = f"the node '{node.name}'"
        if node.op == "call_function":
            target = self._function(node.target, what)
            if target == "builtins.getattr":
                self._known(str(node.args[1]), what)
        else:
            target = str(node.target)
            if node.op == "call_method":
                self._known(target, what)
        return {
            "op": node.op, "name": node.name, "target": target, "scope": str(stack[-1][0]) if stack else "",
            "args": self.value(node.args, what), "kwargs": self.value(dict(node.kwargs), what),
        }  # fmt: skip

    def value(self, value: Any, what: str) -> Any:
        """A value among the arguments of a node or the attributes of a layer."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, fx.Node):
            return {"node": value.name}
        if isinstance(value, dict):
            return {"dict": [[self.value(k, what), self.value(v, what)] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            inner = [self.value(item, what) for item in value]
            return tuple(inner) if isinstance(value, tuple) else inner
        if isinstance(value, slice):
            return {"slice": [self.value(part, what) for part in (value.start, value.stop, value.step)]}
        if isinstance(value, EllipsisType):
            return {"constant": "..."}
        if isinstance(value, torch.device):
            return {"constant": "cpu"}
        if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
            return {"constant": str(value).removeprefix("torch.")}
        return {"function": self._function(value, what)}

    def _function(self, target: Any, what: str) -> str:
        if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001
            name = str(target)
            if name.startswith(f"{ATEN}."):
                self._known(str(target.overloadpacket.__name__), what)
                return name
        found = names().get(id(target))
        if found is None:
            raise self._refused(
                f"{what} calls '{getattr(target, '__name__', target)}', which is not in the table of operators"
            )
        return found

    def _known(self, name: str, what: str) -> None:
        if bare_name(name) not in table():
            raise self._refused(f"{what} calls '{name}', which is not in the table of operators")

    def _refused(self, what: str) -> ModelError:
        return ModelError(
            f"the model cannot be written down as a graph: {what}", where=self.where,
            hint="save it with the factory that builds it, or, where it was made smaller, to a name that ends in .pt2",
        )  # fmt: skip


def of_model(model: nn.Module, *, input_shape: tuple[int, ...], where: str) -> dict[str, Any]:
    """A model as plain values and tensors, in eval mode: traced, in small operations where that is the only way.

    Args:
        model: Takes one batch of images.
        input_shape: Shape of the batch.
        where: What an error is about.

    Raises:
        ModelError: It cannot be traced, or something in what can be cannot be written down; names it.
    """
    untraced, unwritten = list[ModelError](), list[ModelError]()
    for rung in ("symbolic", "leaves", "export"):
        try:
            traced = Trace(input_shape, rungs=(rung,))(model).value
        except ModelError as cause:
            untraced.append(cause)
            continue
        try:
            with traced.running() as module:
                data = to_data(module, where=where)
        except ModelError as cause:
            unwritten.append(cause)
        else:
            _add_unused(data["modules"], _Written(where).module(model, "", set()))
            return data
    raise (*unwritten, *untraced)[0]


def _add_unused(data: dict[str, Any], whole: Mapping[str, Any]) -> None:
    """What ``forward`` does not use belongs to the model as well: its weights are kept, its code is not.

    A constant of the graph is no buffer of the model, and not in its state dict.
    """
    for key, buffer in data["buffers"].items():
        if buffer is not None:
            buffer["persistent"] = bool((whole["buffers"].get(key) or {}).get("persistent"))
    for kind in ("parameters", "buffers"):
        data[kind] = {**whole[kind], **data[kind]}
    for key, part in data["modules"].items():
        if key not in whole["modules"]:
            _add_unused(part, {"parameters": {}, "buffers": {}, "modules": {}})
    for key, part in whole["modules"].items():
        if key in data["modules"]:
            _add_unused(data["modules"][key], part)
        else:
            data["modules"][key] = part
