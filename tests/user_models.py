"""Models as people bring them: parts by name and what to do with them, and the check that they are shrunk."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fxdistill.compiler.barriers import with_barriers
from fxdistill.compiler.shrink_model import ShrunkResult, shrink_model
from fxdistill.ir.survivors import Survivors
from fxdistill.passes.couple import Couple
from fxdistill.passes.thin.kept import removed_of
from fxdistill.passes.trace import Trace

IMAGE = (2, 3, 16, 16)


class Net(nn.Module):
    """Modules by name, and what to do with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.steps = forward
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.steps(self, x)


def conv(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU in place."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


def randomized(net: nn.Module) -> nn.Module:
    """In eval mode, with no parameter or statistic at a value that would hide a mistake."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return net.eval()


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in (value.values() if isinstance(value, dict) else value) for t in tensors(item)]


def zeroed(net: nn.Module, result: ShrunkResult) -> nn.Module:
    """The full model with the removed slices of its parameters set to zero."""
    traced = Trace(result.input_shape, rungs=(result.rung,))(copy.deepcopy(net)).value
    coupling = with_barriers(traced, Couple()(traced).value, result.barriers)
    survivors = Survivors(coupling, removed_of(coupling, result.kept))
    found = {**dict(traced.module.named_parameters()), **dict(traced.module.named_buffers())}
    with torch.no_grad():
        for name in coupling.parameters.keys() & found.keys():
            alive = survivors.of_parameter(name)
            if alive is not None and not name.endswith("running_var"):
                found[name].masked_fill_(~alive.full, 0.0)
    return traced.module


def check(net: nn.Module, whole: set[str], shape: tuple[int, ...] = IMAGE, *, zero: bool = True) -> ShrunkResult:
    """Shrink to half; only the modules in ``whole`` keep their width. Other batch sizes run, every parameter learns."""
    net = randomized(net)
    result = shrink_model(net, input_shape=shape, keep=0.5)
    assert {name for name, (before, after) in result.widths.items() if before == after} == whole
    assert result.barriers == ()
    assert result.proof.error <= 1e-4
    images = torch.randn(3, *shape[1:])
    with torch.no_grad():
        full, small = tensors(net(images)), tensors(result.module(images))
        assert [t.shape[0] for t in full] == [t.shape[0] for t in small]
        if zero:
            for one, other in zip(tensors(zeroed(net, result)(images)), small, strict=True):
                torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
    loss = torch.stack([t.pow(2).sum() for t in tensors(result.module.train()(images))]).sum()
    torch.autograd.backward(loss)
    assert [name for name, parameter in result.module.named_parameters() if parameter.grad is None] == []
    return result


def pooled(x: Tensor) -> Tensor:
    """The mean of each map."""
    return x.mean((2, 3))
