"""Graphs as data: a model without a factory, written down operation by operation, and made again from that.

    {"modules": MODULE, "nodes": [NODE, …]}

    MODULE   {"class": "Conv2d", "attributes": {…}, "parameters": {…}, "buffers": {…}, "modules": {…}}
    NODE     {"op": …, "name": …, "target": …, "args": […], "kwargs": {…}, "scope": …}

Nothing is looked up but by **names of our own table**: a function is one of torch, its ``functional``, ATen, Python's
``operator`` and ``math`` whose operation is in :mod:`fxdistill.ir.operators`; a method the same, of a tensor; a module
that is called is a layer of ``torch.nn`` that is made without its constructor and gets plain values for attributes.
So a graph can compute, and cannot read, write, fetch or import. What is made from it is an ordinary graph module: it
trains (BatchNorm and Dropout are modules), is traced, shrunk and exported like the model that it was.

What cannot be written down so (a layer of one's own that stays one node, a function of one's own, a hook) is refused
when it is saved, with its name.
"""

import builtins
import functools
import keyword
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import EllipsisType
from typing import Any

import torch
import torch.nn.functional
import torchvision
from torch import Tensor, fx, nn

from fxdistill.errors import ModelError
from fxdistill.ir.operators import bare_name, table
from fxdistill.passes.trace import Trace

_SPACES: dict[str, Any] = {
    "torch": torch, "functional": torch.nn.functional, "operator": operator, "math": math, "builtins": builtins,
    "torchvision": torchvision.ops,
}  # fmt: skip
_BUILTINS = frozenset(("getattr", "max", "min", "len", "abs", "round", "sum"))
_ATEN = "aten"
_FLAT = frozenset(("_flat_weights", "_flat_weight_refs"))  # of recurrent layers: their weights, once more
_UNFIT = ("Module", "DataParallel", "Container")
_NAME = re.compile(r"[A-Za-z_]\w{0,200}", re.ASCII)
_PART = re.compile(r"[\w -]{1,200}", re.ASCII)  # of a path: torch.fx writes it between quotes
_CONSTANTS: dict[str, Any] = {
    "...": ..., "cpu": torch.device("cpu"),
    **{
        name: value for name, value in vars(torch).items()
        if isinstance(value, torch.dtype | torch.memory_format | torch.layout)
    },
}  # fmt: skip
_OWN = frozenset(vars(nn.Module()))  # what every module has, hooks among it
_HOOKS = tuple(sorted(name for name in _OWN if name.endswith(("_hooks", "_pre_hooks"))))


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """The functions that a graph may call, by the names that they have in files."""
    found: dict[str, Callable[..., Any]] = {}
    for space, module in _SPACES.items():
        for name in dir(module):
            value = getattr(module, name)
            public = callable(value) and not isinstance(value, type) and not name.startswith("__")
            if public and bare_name(name) in table() and (space != "builtins" or name in _BUILTINS):
                found[f"{space}.{name}"] = value
    return found


@functools.cache
def _names() -> dict[int, str]:
    return {id(function): name for name, function in reversed(_functions().items())}


@functools.cache
def _layers() -> dict[str, type[nn.Module]]:
    """The layers of ``torch.nn`` by name."""
    attention = nn.modules.linear.NonDynamicallyQuantizableLinear  # a part of nn.MultiheadAttention
    return {attention.__name__: attention} | {
        name: kind for name, kind in vars(nn).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.startswith("torch.nn.modules.")
        and name not in _UNFIT and not name.startswith("Lazy")
    }  # fmt: skip


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
    return {
        "modules": written.module(module, "", called),
        "nodes": [written.node(node) for node in module.graph.nodes],
    }


class _Written:
    """A graph on its way into a file."""

    def __init__(self, where: str) -> None:
        self.where = where

    def module(self, module: nn.Module, path: str, called: set[str], *, inside: bool = False) -> dict[str, Any]:
        """A module with everything in it; only what is called, and what lies in that, is a layer."""
        layer = inside or path in called
        name = type(module).__name__ if layer else ""
        if layer and _layers().get(name) is not type(module):
            raise self._refused(f"the layer '{path}' is a {name}, which is none of torch.nn")
        for hooks in _HOOKS if path else ():
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
            if key in _OWN or key in _FLAT:
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
            if name.startswith(f"{_ATEN}."):
                self._known(str(target.overloadpacket.__name__), what)
                return name
        found = _names().get(id(target))
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
            hint="give the original by its factory, so that a bundle can be written",
        )  # fmt: skip


def of_model(model: nn.Module, *, input_shape: tuple[int, ...], where: str) -> dict[str, Any]:
    """A model as plain values and tensors, in eval mode: traced, in small operations where that is the only way.

    Args:
        model: Takes one batch of images.
        input_shape: Shape of the batch.
        where: What an error is about.

    Raises:
        ModelError: It cannot be traced, or something in it cannot be written down; names it.
    """
    whole: ModelError | None = None
    for rung in ("symbolic", "leaves", "export"):
        try:
            traced = Trace(input_shape, rungs=(rung,))(model).value
            with traced.running() as module:
                data = to_data(module, where=where)
        except ModelError as cause:
            whole = whole or cause
        else:
            _add_unused(data["modules"], _Written(where).module(model, "", set()))
            return data
    raise whole if whole is not None else ModelError("the model cannot be traced", where=where)


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


def from_data(data: Mapping[str, Any], *, where: str) -> fx.GraphModule:
    """The graph module that a file holds, in eval mode.

    Raises:
        ModelError: The file names what is in no table, or does not hold together.
    """
    read = _Read(where)
    try:
        root = read.module(data["modules"])
        graph = read.graph(data["nodes"], root)
        graph.lint()
        module = fx.GraphModule(root, graph, class_name="Graph")
        _complete(module, root)
    except ModelError:
        raise
    except Exception as cause:  # whatever torch.fx and Python make of what is no graph
        raise _wrong(f"it does not hold together: {cause or type(cause).__name__}", where) from cause
    return module.eval()


def _complete(module: nn.Module, root: nn.Module) -> None:
    """Add what the graph does not use, which :class:`torch.fx.GraphModule` leaves out."""
    for key, parameter in root._parameters.items():  # noqa: SLF001
        if key not in module._parameters:  # noqa: SLF001
            module.register_parameter(key, parameter)
    for key, buffer in root._buffers.items():  # noqa: SLF001
        if key not in module._buffers:  # noqa: SLF001
            persistent = key not in root._non_persistent_buffers_set  # noqa: SLF001
            module.register_buffer(key, buffer, persistent=persistent)
    for key, child in root.named_children():
        if key in module._modules:  # noqa: SLF001
            _complete(module.get_submodule(key), child)
        else:
            module.add_module(key, child)


class _Read:
    """A graph on its way out of a file. Whatever becomes part of Python's text is a name, and nothing else."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.nodes: dict[str, fx.Node] = {}
        self.parameters: dict[int, nn.Parameter] = {}

    def module(self, data: Mapping[str, Any]) -> nn.Module:
        """A module with everything in it."""
        kind = _layers().get(data["class"], nn.Module) if data["class"] else nn.Module
        if data["class"] and kind is nn.Module:
            raise _wrong(f"'{data['class']}' is no layer of torch.nn", self.where)
        module = kind.__new__(kind)
        nn.Module.__init__(module)
        for key, value in data["attributes"].items():
            if key in _OWN or key.startswith("__") or callable(getattr(kind, self._name(key), None)):
                raise _wrong(f"a {data['class']} has no attribute '{key}' to set", self.where)
            vars(module)[key] = self.value(value)
        for key, value in data["parameters"].items():
            module.register_parameter(self._part(key), None if value is None else self._parameter(value))
        for key, value in data["buffers"].items():
            tensor = None if value is None else _tensor(value["value"])
            module.register_buffer(self._part(key), tensor, persistent=value is None or bool(value["persistent"]))
        for key, value in data["modules"].items():
            module.add_module(self._part(key), self.module(value))
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()  # noqa: SLF001
        return module

    def _parameter(self, data: Mapping[str, Any]) -> nn.Parameter:
        tensor = _tensor(data["value"])
        if id(tensor) not in self.parameters:  # tied weights stay tied
            self.parameters[id(tensor)] = nn.Parameter(tensor, requires_grad=bool(data["grad"]))
        return self.parameters[id(tensor)]

    def graph(self, nodes: Sequence[Mapping[str, Any]], root: nn.Module) -> fx.Graph:
        """The graph, of what the root has."""
        graph = fx.Graph()
        for data in nodes:
            op, target = data["op"], data["target"]
            if op not in ("placeholder", "get_attr", "call_module", "call_method", "call_function", "output"):
                raise _wrong(f"there is no kind of node '{op}'", self.where)
            resolved = self._function(target) if op == "call_function" else self._target(op, target, root)
            args, kwargs = self.value(data["args"]), self.value(data["kwargs"])
            if target == "builtins.getattr":
                self._known(args[1])
            for key in kwargs:
                if self._name(key) == "key":  # of max and min: a function that they would call
                    raise _wrong(f"'{target}' takes no 'key' in a graph", self.where)
            node = graph.create_node(op, resolved, args, kwargs, name=self._name(data["name"]))
            node.meta["nn_module_stack"] = {data["scope"]: (str(data["scope"]), "")} if data["scope"] else {}
            self.nodes[data["name"]] = node
        kinds = [data["op"] for data in nodes]
        if kinds.count("placeholder") != 1 or kinds.count("output") != 1:
            raise _wrong("it has not one input and one output", self.where)
        return graph

    def _target(self, op: str, target: str, root: nn.Module) -> str:
        if op in ("get_attr", "call_module"):
            return self._place(op, target, root)
        return self._known(target) if op == "call_method" else self._name(target)

    def _place(self, op: str, target: str, root: nn.Module) -> str:
        """The path of a layer or a tensor of the file, and of nothing else that an object in Python has."""
        *scopes, last = map(self._part, target.split("."))
        found = root
        for scope in scopes:
            found = _held(found._modules, scope)  # noqa: SLF001
        if op == "get_attr":
            _held({**found._parameters, **found._buffers}, last)  # noqa: SLF001
        elif type(_held(found._modules, last)) is nn.Module:  # noqa: SLF001
            raise _wrong(f"'{target}' is no layer", self.where)
        return target

    def value(self, value: Any) -> Any:
        """An argument of a node, or an attribute of a layer."""
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self.value(item) for item in value)
        if not isinstance(value, dict):
            return value
        ((mark, inner),) = value.items()
        if mark == "node":
            return self.nodes[inner]
        if mark == "dict":
            return {self.value(key): self.value(item) for key, item in inner}
        if mark == "slice":
            return slice(*map(self.value, inner))
        if mark == "function":
            return self._function(inner)
        if mark == "constant":
            return _CONSTANTS[inner]
        raise _wrong(f"there is no value of the kind '{mark}'", self.where)

    def _function(self, name: str) -> Callable[..., Any]:
        if name.startswith(f"{_ATEN}."):
            _, packet, overload = name.split(".")
            self._known(packet)
            function: Any = getattr(getattr(torch.ops.aten, self._name(packet)), self._name(overload))
            if not isinstance(function, torch._ops.OpOverload):  # noqa: SLF001
                raise _wrong(f"'{name}' is no operator", self.where)
            return function
        if name not in _functions():
            raise _wrong(f"it calls '{name}', which is not in the table of operators", self.where)
        return _functions()[name]

    def _known(self, name: str) -> str:
        own = not self._name(name).startswith("__") or name in vars(operator)  # of methods of objects, arithmetic
        if not own or bare_name(name) not in table():
            raise _wrong(f"it calls '{name}', which is not in the table of operators", self.where)
        return name

    def _name(self, name: str) -> str:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or keyword.iskeyword(name):
            raise _wrong(f"{name!r} is no name", self.where)
        return name

    def _part(self, name: str) -> str:
        if not isinstance(name, str) or not _PART.fullmatch(name):
            raise _wrong(f"{name!r} is no part of a path", self.where)
        return name


def _held(those: Mapping[str, Any], name: str) -> Any:
    if those.get(name) is None:
        raise KeyError(f"there is no '{name}' in its place")
    return those[name]


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"a {type(value).__name__} where a tensor should be")
    return value


def _wrong(what: str, where: str) -> ModelError:
    return ModelError(f"the graph in the file cannot be made: {what}", where=where, hint="write the file again")
