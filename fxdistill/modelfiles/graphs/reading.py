"""A graph on its way out of a file: looked up by the vocabulary's names, and by nothing else that an object has."""

import keyword
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxdistill.errors import ModelError
from fxdistill.ir.operators import bare_name, table
from fxdistill.modelfiles.graphs.vocabulary import ATEN, CONSTANTS, OWN, functions, layers

_NAME = re.compile(r"[A-Za-z_]\w{0,200}", re.ASCII)
_PART = re.compile(r"[\w -]{1,200}", re.ASCII)  # of a path: torch.fx writes it between quotes


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


_OF_TENSORS = ("functional.scaled_dot_product_attention", "functional.multi_head_attention_forward")
"""The functions of which ``key`` is a tensor."""


class _Read:
    """A graph on its way out of a file. Whatever becomes part of Python's text is a name, and nothing else."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.nodes: dict[str, fx.Node] = {}
        self.parameters: dict[int, nn.Parameter] = {}

    def module(self, data: Mapping[str, Any]) -> nn.Module:
        """A module with everything in it."""
        kind = layers().get(data["class"], nn.Module) if data["class"] else nn.Module
        if data["class"] and kind is nn.Module:
            raise _wrong(f"'{data['class']}' is no layer of torch.nn", self.where)
        module = kind.__new__(kind)
        nn.Module.__init__(module)
        for key, value in data["attributes"].items():
            if key in OWN or key.startswith("__") or callable(getattr(kind, self._name(key), None)):
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
            calls = op == "call_method" or (op == "call_function" and not target.startswith(_OF_TENSORS))
            for key in kwargs:
                if self._name(key) == "key" and calls:  # of max, min and sort: a function that they would call
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
            return CONSTANTS[inner]
        raise _wrong(f"there is no value of the kind '{mark}'", self.where)

    def _function(self, name: str) -> Callable[..., Any]:
        if name.startswith(f"{ATEN}."):
            _, packet, overload = name.split(".")
            self._known(packet)
            function: Any = getattr(getattr(torch.ops.aten, self._name(packet)), self._name(overload))
            if not isinstance(function, torch._ops.OpOverload):  # noqa: SLF001
                raise _wrong(f"'{name}' is no operator", self.where)
            return function
        if name not in functions():
            raise _wrong(f"it calls '{name}', which is not in the table of operators", self.where)
        return functions()[name]

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
