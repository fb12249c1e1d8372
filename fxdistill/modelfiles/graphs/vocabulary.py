"""What a graph in a file may name: the functions that it may call, the layers of torch.nn, plain constants."""

import builtins
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional
import torchvision
from torch import nn

from fxdistill.ir.operators import bare_name, table

_SPACES: dict[str, Any] = {
    "torch": torch, "functional": torch.nn.functional, "operator": operator, "math": math, "builtins": builtins,
    "torchvision": torchvision.ops,
}  # fmt: skip
_BUILTINS = frozenset(("getattr", "max", "min", "len", "abs", "round", "sum"))
ATEN = "aten"
FLAT = frozenset(("_flat_weights", "_flat_weight_refs"))  # of recurrent layers: their weights, once more
_UNFIT = ("Module", "DataParallel", "Container")
CONSTANTS: dict[str, Any] = {
    "...": ..., "cpu": torch.device("cpu"),
    **{
        name: value for name, value in vars(torch).items()
        if isinstance(value, torch.dtype | torch.memory_format | torch.layout)
    },
}  # fmt: skip
OWN = frozenset(vars(nn.Module()))  # what every module has, hooks among it
HOOKS = tuple(sorted(name for name in OWN if name.endswith(("_hooks", "_pre_hooks"))))


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
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
def names() -> dict[int, str]:
    """The names of these functions, by their identity."""
    return {id(function): name for name, function in reversed(functions().items())}


@functools.cache
def layers() -> dict[str, type[nn.Module]]:
    """The layers of ``torch.nn`` by name."""
    attention = nn.modules.linear.NonDynamicallyQuantizableLinear  # a part of nn.MultiheadAttention
    return {attention.__name__: attention} | {
        name: kind for name, kind in vars(nn).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.startswith("torch.nn.modules.")
        and name not in _UNFIT and not name.startswith("Lazy")
    }  # fmt: skip
