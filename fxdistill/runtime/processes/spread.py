"""A stage's program for one part of a batch: what hangs on the whole batch is made of all parts.

Members are computed image by image, but for a few things, whose nodes are replaced:

    batch statistics    sums of the parts' moments: mean = Σ share m,  variance = Σ share (v + m²) - mean²
    dropout             drawn for the whole batch; a part takes its rows
    a loss              of all rows, gathered; one that is a mean over images is the mean of the parts' by their shares

So losses, gradients and running statistics are those of one process, to rounding. The modules stay what they are: the
nodes call others over the same tensors. Whether nothing else of a program looks at a whole batch is tried on images
before anything is trained (:func:`check`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth, stochastic_depth

from fxdistill.errors import PlanError
from fxdistill.ir.adapters import EPS, batch_normalized, standardized
from fxdistill.ir.graph import submodule
from fxdistill.ir.program import Batch, Program
from fxdistill.ir.running import attributes_kept, buffers_kept, same, seeded
from fxdistill.losses import LOSSES
from fxdistill.runtime.processes.crew import Crew

_DROPS = (_DropoutNd, StochasticDepth)
_CLOSE = 1e-3
"""How far a loss may be from that of one process, relative to it; of normalised values that is rounding."""


def spread(program: Program, crew: Crew) -> nn.Module:
    """What a process calls with its part of each batch; it returns the losses of the whole one.

    Args:
        program: The program of a stage, in training.
        crew: The processes, which know how large the batch in hand is.
    """
    made = fx.GraphModule(program, fx.Graph())
    for name, child in program.named_children():
        made.add_module(name, child)
    parts = nn.Module()
    made.add_module("of_parts", parts)
    graph, new = fx.Graph(), dict[fx.Node, fx.Node]()
    by_key = {term.key: LOSSES.get(term.loss.loss) for term in program.terms}
    gathered: dict[fx.Node, fx.Node] = {}

    def call(part: nn.Module, *args: Any, **kwargs: Any) -> fx.Node:
        name = f"part_{len(list(parts.children()))}"
        parts.add_module(name, part)
        return graph.call_module(f"of_parts.{name}", args, kwargs)

    def whole(value: fx.Node) -> fx.Node:
        if value not in gathered:
            gathered[value] = call(_Gather(crew), new[value])
        return gathered[value]

    for node in program.graph.nodes:
        found = _of_parts(program, node, crew)
        if node.meta.get("role") == "loss" and not by_key[node.meta["key"]].by_image:
            new[node] = graph.node_copy(node, whole)
        elif node.meta.get("role") == "loss":
            new[node] = call(_Mean(crew), graph.node_copy(node, new.__getitem__))
        elif found is not None:
            args, kwargs = fx.map_arg((node.args, node.kwargs), new.__getitem__)
            new[node] = call(found, *args, **kwargs)
        else:
            new[node] = graph.node_copy(node, new.__getitem__)
    made.graph = graph
    made.recompile()
    return made


def _of_parts(program: Program, node: fx.Node, crew: Crew) -> nn.Module | None:
    """What stands in for a node that looks at a whole batch; None for one that does not, or is not known to."""
    module = submodule(program, node)
    if isinstance(module, _BatchNorm):
        return _Norm(module, crew) if module.training or module.running_mean is None else None
    if isinstance(module, _DROPS):
        return _Drop(module, crew) if module.training else None
    make = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    return make(crew) if make is not None else None


class _Gather(nn.Module):
    def __init__(self, crew: Crew) -> None:
        super().__init__()
        self.crew = crew

    def forward(self, value: Tensor) -> Tensor:
        return self.crew.gathered(value)


class _Mean(nn.Module):
    """The mean over all images, of this part's."""

    def __init__(self, crew: Crew) -> None:
        super().__init__()
        self.crew = crew

    def forward(self, value: Tensor) -> Tensor:
        return self.crew.summed(value * self.crew.share)


class _Drop(nn.Module):
    """Dropout of a part: what is drawn for the whole batch is a factor of each value."""

    def __init__(self, drop: Callable[..., Tensor], crew: Crew) -> None:
        super().__init__()
        self.drop, self.crew = drop, crew

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002  # torch's name
        kwargs.pop("inplace", None)
        rows = input.new_ones((self.crew.whole, *input.shape[1:]))
        if input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last):
            rows = rows.to(memory_format=torch.channels_last)  # numbers are drawn in the order of the memory
        return input * self.drop(rows, *args, **kwargs)[self.crew.part(self.crew.whole)]


class _Norm(nn.Module):
    """A BatchNorm, over whole batches."""

    def __init__(self, norm: _BatchNorm, crew: Crew) -> None:
        super().__init__()
        self.norm, self.crew = norm, crew

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        norm = self.norm
        if not norm.training and norm.running_mean is not None:
            found: Tensor = norm(input)
            return found
        share = norm.momentum
        if norm.training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            share = 1 / float(norm.num_batches_tracked) if share is None else share
        running = (norm.running_mean, norm.running_var) if norm.training else (None, None)
        return normalized(input, *running, norm.weight, norm.bias, share or 0.0, norm.eps, crew=self.crew)


class _Functional(nn.Module):
    """A function over whole batches."""

    def __init__(self, function: Callable[..., Tensor], crew: Crew) -> None:
        super().__init__()
        self.function, self.crew = function, crew

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        value: Tensor = self.function(*args, **kwargs, crew=self.crew)
        return value


def normalized(  # noqa: PLR0917  # torch's order
    value: Tensor, mean: Tensor | None, variance: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    share: float, eps: float, *, crew: Crew,
) -> Tensor:  # fmt: skip
    """BatchNorm of a part (n, C, ...) by the statistics of the whole batch, of which running ones take a share.

    Raises:
        ValueError: There is one value a channel, as torch says as well.
    """
    x: Tensor = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    dims, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
    count = crew.whole * x[0, 0].numel()
    if count < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    own, middle = (moment.double() for moment in torch.var_mean(x, dims, correction=0))
    together: Tensor = crew.summed(torch.stack([middle, own + middle.square()]) * crew.share)
    middle, square = together.unbind()
    spread_ = (square - middle.square()).clamp_min(0)
    if mean is not None and variance is not None:
        with torch.no_grad():
            mean.lerp_(middle.to(mean.dtype), share)
            variance.lerp_((spread_ * (count / (count - 1))).to(variance.dtype), share)
    x = (x - middle.to(x.dtype).view(shape)) * (spread_ + eps).rsqrt().to(x.dtype).view(shape)
    x = x if weight is None else x * weight.view(shape)
    x = x if bias is None else x + bias.view(shape)
    return x.to(value.dtype)


def _batch_norm(  # noqa: PLR0917  # torch's signature
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,  # noqa: A002
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *, crew: Crew,  # noqa: FBT001, FBT002
) -> Tensor:  # fmt: skip
    """As :func:`torch.nn.functional.batch_norm`."""
    if training:
        return normalized(input, running_mean, running_var, weight, bias, momentum, eps, crew=crew)
    found: Tensor = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return found


def _standardized(tap: Tensor, *, crew: Crew) -> Tensor:
    return _by_batch(tap.float(), None, EPS, crew=crew)


def _by_batch(value: Tensor, weight: Tensor | None, eps: float, *, crew: Crew) -> Tensor:
    if crew.whole * value[0, 0].numel() == 1:
        return value - value
    return normalized(value, None, None, weight, None, 0.0, eps, crew=crew)


def _over_batches(function: Callable[..., Tensor]) -> Callable[[Crew], nn.Module]:
    return lambda crew: _Functional(function, crew)


def _drawn(function: Callable[..., Tensor]) -> Callable[[Crew], nn.Module]:
    return lambda crew: _Drop(function, crew)


_FUNCTIONS: Mapping[Any, Callable[[Crew], nn.Module]] = {
    standardized: _over_batches(_standardized), batch_normalized: _over_batches(_by_batch),
    F.batch_norm: _over_batches(_batch_norm),
    **{one: _drawn(one) for one in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, stochastic_depth)},
}  # fmt: skip


def check(program: Program, batch: Batch, crew: Crew, *, where: str) -> None:
    """Compare the losses and buffers of a batch, divided among the processes, with those of the whole in one.

    Args:
        program: The program of a stage.
        batch: The whole batch.
        crew: The processes.
        where: Which stage it is, in words.

    Raises:
        PlanError: They differ: something in the program looks at the images of a batch together.
    """
    crew.whole = len(batch["images"])
    part = crew.part(crew.whole)
    wanted = _observed(program, program, batch)
    found = _observed(program, spread(program, crew), {name: value[part] for name, value in batch.items()})
    for name, one in wanted.items():
        if same(one, found[name]):  # a mask may be infinite
            continue
        error, size = float((one - found[name]).abs().max()), float(one.abs().max())
        if not error <= _CLOSE * size + 1e-6:
            raise PlanError(
                f"in {crew.count} processes '{name}' is not what it is in one, but {error / max(size, 1e-6):.1e} of it "
                "away: something looks at the images of a batch together, or draws random numbers, in a way of its own",
                where=where, hint="run it in one process, without --devices",
            )  # fmt: skip


def _observed(program: Program, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The losses of a batch, and the buffers that it changes, as they are then."""
    device = batch["images"].device
    with torch.no_grad(), attributes_kept(program), buffers_kept(program), seeded(device):
        losses: dict[str, Tensor] = module({name: value.clone() for name, value in batch.items()})
        now = {name: value.double() for name, value in program.named_buffers() if value.numel()}
        return {**{name: value.double() for name, value in losses.items()}, **{n: v.clone() for n, v in now.items()}}
