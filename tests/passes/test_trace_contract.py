"""Trace: nothing else changes, and a wrong result is not let through."""

import logging
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxdistill.errors import InvariantError, ModelError
from fxdistill.ir.graph import Traced
from fxdistill.ir.running import buffers_kept
from fxdistill.passes.trace import Trace
from fxdistill.passes.trace.probe import Probe
from tests import tiny_models
from tests.tiny_models import CLASSES, SHAPE


def process() -> dict[str, Any]:
    """What a tracer may change in the process."""
    return {
        "logging": (logging.root.manager.disable, logging.root.level),
        "warnings": list(warnings.filters),
        "torch generator": torch.get_rng_state().tolist(),
        "python generator": random.getstate(),
        "numpy generator": str(np.random.get_state()),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "backends": (
            torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark,
            torch.backends.mkldnn.enabled, torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(),
        ),
        "streams": (sys.stdout, sys.stderr),
        "hooks": [
            len(getattr(nn.modules.module, name)) for name in
            ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
        ],
        "calls": (nn.Module.__call__, nn.Module.__getattr__),
    }  # fmt: skip


def state(module: nn.Module) -> dict[str, Any]:
    """What a tracer may change in a module: the tensors themselves, their values, modes, flags, hooks."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "identities": {name: id(tensor) for name, tensor in tensors.items()},
        "values": {name: tensor.tolist() for name, tensor in tensors.items()},
        "gradients": [(p.requires_grad, p.grad is None) for p in module.parameters()],
        "modes": [m.training for m in module.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()],
        "attributes": [sorted(vars(m)) for m in module.modules()],
        "keys": list(module.state_dict()),
    }


class Restless(nn.Module):
    """Changes what it can reach: other generators, attributes, buffers in place and by others."""

    calls: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, CLASSES)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.last = (random.random(), np.random.rand())
        self.calls.add_(1)
        self.seen = self.seen + 1
        logits: Tensor = self.head(x.mean((2, 3))) * self.frozen
        return logits


MODULES: dict[str, Callable[[], nn.Module]] = {
    "residual": tiny_models.residual, "random layers": tiny_models.random_layers, "exported": tiny_models.Steered,
    "restless": Restless,
    "attention": lambda: nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(64, 2, 8, batch_first=True)),
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_process_and_module_are_left_as_they_were(name: str, training: bool) -> None:
    module = MODULES[name]()
    next(module.children()).eval()
    before, around = state(module), process()
    Trace(SHAPE, training=training)(module)
    assert state(module) == before
    assert process() == around


def test_a_failure_leaves_everything_as_it_was() -> None:
    class Chance(Restless):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * random.random()

    module = Chance()
    before, around = state(module), process()
    with pytest.raises(Exception, match="could not be traced"):
        Trace(SHAPE)(module)
    assert state(module) == before
    assert process() == around


@pytest.mark.parametrize("level", [logging.NOTSET, logging.INFO, logging.CRITICAL])
def test_what_the_user_silenced_stays_silent(level: int) -> None:
    found: list[int] = []

    class Asks(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as in torch
            found.append(logging.root.manager.disable)
            return super().forward(input)

    logging.disable(level)
    try:
        Trace((2, 4))(nn.Sequential(Asks(4, 2)))
        assert logging.root.manager.disable == level
        assert min(found) >= level
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("rungs", [("symbolic",), ("export",)])
def test_rungs_that_fail_print_nothing(rungs: Any, capfd: pytest.CaptureFixture[str]) -> None:
    class Sized(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) * (2 if x.shape[0] == 2 else 3) * float(x.sum() > -1e9)

    with pytest.raises(Exception, match="could not be traced"):
        Trace(SHAPE, rungs=rungs)(Sized())
    assert capfd.readouterr() == ("", "")


def test_a_buffer_is_the_same_tensor_again() -> None:
    module = Restless()
    calls, seen = module.calls, module.seen
    with buffers_kept(module) as before:
        module(torch.zeros(SHAPE))
        assert module.calls == module.seen == 1
    assert module.calls is calls
    assert module.seen is seen
    assert calls == seen == before["calls"] == before["seen"] == 0
    assert list(module.state_dict()) == ["frozen", "calls", "head.weight", "head.bias"]


def test_a_cache_of_another_shape_stays() -> None:
    class Caching(nn.Module):
        grid: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("grid", torch.zeros(0))

        def forward(self, x: Tensor) -> Tensor:
            self.grid = torch.arange(x.shape[-1])
            return x

    module = Caching()
    with buffers_kept(module):
        module(torch.zeros(2, 3))
    assert module.grid.tolist() == [0, 1, 2]


def traced() -> tuple[nn.Module, Traced, Trace]:
    torch.manual_seed(0)
    step, module = Trace(SHAPE), tiny_models.awake(tiny_models.residual())
    value = step(module).value
    step.ensures(module, value)
    return module, value, step


def own_parts(value: Traced) -> None:
    """Parts of its own, so that the model itself stays whole."""
    for name, part in list(value.module.named_modules()):
        if name and not list(part.children()):
            twin: nn.Module = object.__new__(type(part))
            twin.__dict__.update({key: dict(v) if isinstance(v, dict) else v for key, v in vars(part).items()})
            value.module.set_submodule(name, twin)


def copy_parameter(value: Traced) -> None:
    own_parts(value)
    head: Any = value.module.get_submodule("head")
    head.weight = nn.Parameter(head.weight.detach().clone())


def detach_parameter(value: Traced) -> None:
    own_parts(value)
    head: Any = value.module.get_submodule("head")
    weight = head.weight.detach()
    del head.weight
    head.register_buffer("weight", weight)


def add_parameter(value: Traced) -> None:
    value.module.register_parameter("stranger", nn.Parameter(torch.zeros(1)))


def copy_buffer(value: Traced) -> None:
    own_parts(value)
    norm: Any = value.module.get_submodule("body.stem.1")
    norm.running_mean = norm.running_mean.clone()


def share_path(value: Traced) -> None:
    one, other, *_ = (node for node in value.graph.nodes if node.op == "call_module")
    other.meta["path"] = one.meta["path"]


def add_input(value: Traced) -> None:
    with value.graph.inserting_after(value.input):
        value.graph.placeholder("scale", default_value=1.0).meta |= {"path": "scale", "scope": ""}
    value.module.recompile()


def skip_node(value: Traced) -> None:
    node = next(node for node in value.graph.nodes if node.meta["path"] == "body.relu_1")
    node.replace_all_uses_with(node.all_input_nodes[0])
    value.graph.erase_node(node)
    value.module.recompile()


def round_output(value: Traced) -> None:
    """As little as a float can differ."""
    node = value.output
    with value.graph.inserting_after(node):
        double = value.graph.call_method("mul", (node, 1 + 2**-23))
    double.meta |= {"path": "mul", "scope": ""}
    next(n for n in value.graph.nodes if n.op == "output").args = (double,)
    value.module.recompile()


def return_twice(value: Traced) -> None:
    next(n for n in value.graph.nodes if n.op == "output").args = ((value.output, value.output),)
    value.module.recompile()


WRONG = [
    (copy_parameter, "copied the tensor 'head.weight'"), (detach_parameter, "copied the tensor 'head.weight'"),
    (add_parameter, "copied the tensor 'stranger'"), (copy_buffer, "copied the tensor 'body.stem.1.running_mean'"),
    (share_path, "share a path"), (add_input, "another input beside the images"),
    (skip_node, "output differs"), (round_output, "output differs"), (return_twice, "another number of tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_a_wrong_trace_is_noticed(spoil: Callable[[Traced], None], message: str) -> None:
    module, value, step = traced()
    before = state(module)
    spoil(value)
    assert state(module) == before
    with pytest.raises(InvariantError, match=message):
        step.ensures(module, value)
    assert state(module) == before


def test_a_trace_that_loses_an_update_is_noticed() -> None:
    module = tiny_models.Steered()
    step = Trace(SHAPE, training=True, rungs=("export",))
    value = step(module).value
    (norm,) = [node for node in value.graph.nodes if node.target == "norm"]
    with value.graph.inserting_before(norm):
        states = [value.graph.get_attr(f"norm.{name}") for name in ("weight", "bias")]
        same = value.graph.call_function(functional.batch_norm, (norm.args[0], None, None, *states, True))
    same.meta = dict(norm.meta)
    norm.replace_all_uses_with(same)
    value.graph.erase_node(norm)
    value.module.recompile()
    with pytest.raises(InvariantError, match=r"does not update the buffer 'norm\.running_mean'"):
        step.ensures(module, value)


def test_a_trace_of_the_other_mode_is_noticed() -> None:
    module = tiny_models.awake(tiny_models.random_layers())
    step = Trace(SHAPE, training=True)
    value = step(module).value
    with pytest.raises(InvariantError, match="output differs"):
        step.ensures(module, Traced(value.module, value.rung, training=False, input_shape=SHAPE))


class Chancy(nn.Module):
    """A factor that a trace freezes, of roots, which are NaN for some of the noise, or for all of it."""

    def __init__(self, ready: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.ready = ready

    def forward(self, x: Tensor) -> Tensor:
        return self.ready(x) * random.random()


@pytest.mark.parametrize("ready", [torch.sqrt, lambda x: x.sqrt().sum((2, 3))])
def test_an_answer_without_numbers_proves_nothing(ready: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ModelError, match="output differs"):
        Trace(SHAPE, rungs=("symbolic",))(Chancy(ready))


def test_a_trace_that_is_compared_with_nothing_is_said() -> None:
    found = [Trace(SHAPE)(Chancy(ready)).diagnostics for ready in (lambda x: x * torch.nan, lambda x: x - x)]
    assert [[one.code for one in diagnostics] for diagnostics in found] == [["not-compared"], []]


def test_a_probe_notices_what_a_call_updates() -> None:
    probe = Probe(Restless(), SHAPE, training=False)
    assert set(probe.updates) == {"calls", "seen"}
