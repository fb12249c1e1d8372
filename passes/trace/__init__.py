"""Trace: a module becomes an FX graph with stable paths, shapes and costs.

A ladder, each rung tried in turn:

1. ``symbolic``: ``torch.fx`` symbolic trace; modules of ``torch.nn`` are leaves.
2. ``leaves``: the same, with what is known not to trace (torchvision's operators, timm's registries) as leaves.
3. ``export``: ``torch.export`` with a dynamic batch, back as a graph of ATen operators.

Tracing must not change outputs: on a seeded batch the graph and the module agree **exactly**, in the mode that was
traced. A trace freezes that mode (functional dropout, stochastic depth, auxiliary heads), so a model that is trained
is traced in both. What both modes have is called alike (:mod:`fxdistill.passes.trace.paths`). A graph has one input,
the images: other arguments keep their defaults. Parameters and buffers of the graph are the module's own, not copies.
"""

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InvariantError, ModelError, first_line
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.graph import Shape, Traced
from fxdistill.ir.running import attributes_kept, buffers_kept, example, hold, in_mode, quiet, says_nothing
from fxdistill.passes.trace.measure import annotate
from fxdistill.passes.trace.paths import name_nodes
from fxdistill.passes.trace.probe import Probe, random_kept, uncompiled
from fxdistill.passes.trace.rungs import RUNGS
from fxdistill.plan.schema import Rung

_SMALL = 64
"""Pixels a side of images that are small, and yet larger than what nearly all networks reduce to nothing."""


@dataclass(frozen=True)
class Trace(Pass[nn.Module, Traced]):
    """Trace a module.

    Attributes:
        input_shape: Shape of one batch, the batch size first.
        training: The mode to trace; the module itself is left in the mode that it had. A trace of the training mode
            takes its paths from a trace of the eval mode, which is made along with it.
        entry: Which entry of a structured output is the prediction, '' for the rule of :mod:`fxdistill.ir.outputs`.
        rungs: The rungs to try, in order; in training mode the one that serves the eval mode comes first.
        eval_mode: For the training mode, the module's trace in eval mode, where it has been made already.
        quick: Whether to compare graph and module on images of at most 64 pixels a side, where the module takes such
            and keeps nothing of their size: for who looks at a graph, and leaves the proof to who runs it.
    """

    input_shape: Shape
    training: bool = False
    entry: str = ""
    rungs: tuple[Rung, ...] = ("symbolic", "leaves", "export")
    eval_mode: Traced | None = None
    quick: bool = False

    def requires(self, source: nn.Module) -> None:
        """The input shape is a batch of something, and the images are all that the module must be given."""
        if len(self.input_shape) < 2 or any(size < 1 for size in self.input_shape):
            raise ModelError(
                f"{self.input_shape} is no shape of a batch", where=type(source).__name__,
                hint="give batch size, channels, height and width, e.g. --input 1x3x224x224",
            )  # fmt: skip
        if isinstance(source, torch.jit.ScriptModule):
            raise ModelError(
                "the model is TorchScript, which has no Python forward left to trace", where=type(source).__name__,
                hint="give the nn.Module that it was scripted or traced from",
            )  # fmt: skip
        own = {name for name, _ in (*source.named_children(), *source.named_parameters(), *source.named_buffers())}
        taken = sorted(own & {"code", "graph"})
        if taken:
            raise ModelError(
                f"the model has a part called '{taken[0]}', a name that torch.fx graphs use themselves",
                where=type(source).__name__, hint="give that parameter, buffer or submodule another name",
            )  # fmt: skip
        _takes_images_alone(source)

    def run(self, source: nn.Module) -> PassResult[Traced]:
        """Climb the ladder until a rung's graph reproduces the module exactly.

        Raises:
            ModelError: The module does not run on the input shape, or no rung traces it.
        """
        with random_kept(), uncompiled(source):
            return self._quickly(source) or self._traced(source, self.rungs, self.input_shape[1:])

    def _quickly(self, source: nn.Module) -> PassResult[Traced] | None:
        """The trace by its first rung, compared on small images; None where that is not to be had."""
        first = self.rungs[0] if self.eval_mode is None else self.eval_mode.rung
        small = (self.input_shape[1], *(min(side, _SMALL) for side in self.input_shape[2:]))
        alone = self.training and self.eval_mode is None
        if not self.quick or alone or first == "export" or small == self.input_shape[1:]:  # export fixes the size
            return None
        before = _sizes(source)
        with contextlib.suppress(Exception):  # what small images are too small for says nothing
            found = self._traced(source, (first,), small)
            return found if _sizes(source) == before else None
        return None

    def _traced(self, source: nn.Module, rungs: tuple[Rung, ...], size: Shape) -> PassResult[Traced]:
        eval_mode, failures = self._eval_mode(source, rungs, size) if self.training else (None, [])
        first = () if eval_mode is None else (eval_mode.rung,)
        probe, traced = self._climbed(source, dict.fromkeys((*first, *rungs)), failures, size, training=self.training)
        name_nodes(traced.module, eval_mode)
        with _undisturbed(source, training=self.training), traced.running():
            annotate(traced.module, probe)
            remarks = (*_remarks(traced, failures), *_not_compared(traced, probe), *_static_batch(traced, probe))
        return PassResult(traced, modified=True, diagnostics=remarks)

    def ensures(self, source: nn.Module, value: Traced) -> None:
        """Outputs bit for bit, the module's own tensors, one input, and a path of its own for each node.

        Raises:
            InvariantError: One of these does not hold.
        """
        own = dict((*source.named_parameters(remove_duplicate=False), *source.named_buffers(remove_duplicate=False)))
        for name, tensor in (*value.module.named_parameters(), *value.module.named_buffers()):
            if tensor is not own.get(name, tensor) or (isinstance(tensor, nn.Parameter) and name not in own):
                raise InvariantError(f"the trace copied the tensor '{name}'")
        paths = [node.meta["path"] for node in value.graph.nodes if node.op != "get_attr"]
        if len(set(paths)) != len(paths):
            raise InvariantError("two nodes of the trace share a path")
        if sum(node.op == "placeholder" for node in value.graph.nodes) != 1:
            raise InvariantError("the trace has another input beside the images")
        if _is_what_was_compared(source, value):
            return
        with random_kept(), uncompiled(source), quiet():
            probe = Probe(source, value.input_shape, training=value.training)
            with _undisturbed(source, training=value.training), value.running() as module:
                probe.compare(module)

    def _eval_mode(
        self, source: nn.Module, rungs: tuple[Rung, ...], size: Shape
    ) -> tuple[Traced | None, list[str]]:  # fmt: skip
        """The trace whose paths a trace of the training mode takes, and the rungs that it failed at.

        There is none where a model only trains.
        """
        if self.eval_mode is not None:
            return self.eval_mode, []
        failures: list[str] = []
        try:
            _, traced = self._climbed(source, rungs, failures, size, training=False)
        except ModelError:
            return None, []
        name_nodes(traced.module)
        return traced, failures

    def _climbed(
        self, source: nn.Module, rungs: Iterable[Rung], failures: list[str], size: Shape, *, training: bool
    ) -> tuple[Probe, Traced]:
        """The first rung that serves one mode; why those before it did not is added to ``failures``."""
        probe = Probe(source, self.input_shape, training=training, size=size)
        for rung in rungs:
            with _undisturbed(source, training=training):
                held = tuple(name for name, part in source.named_modules() if name and training and not part.training)
                try:
                    module = RUNGS[rung](source, probe)
                    hold(module.train(training), held)
                    probe.compare(module)
                except Exception as cause:  # noqa: BLE001  # any failure of a rung is a reason to try the next
                    failures.append(f"{rung}: {first_line(cause)}")
                    continue
            return probe, Traced(module, rung, training, self.input_shape, self.entry, held, compared=module.code)
        raise ModelError(
            "the model could not be traced: " + "; ".join(dict.fromkeys(failures)),
            where=type(source).__name__,
            hint="keep data-dependent control flow out of forward, or put it into a module of its own and script that: "
            "torch.jit.script(module)",
        )


def _sizes(module: nn.Module) -> dict[str, Shape]:
    """The shapes of a module's buffers: some modules keep what they computed for a size of images."""
    return {name: tuple(buffer.shape) for name, buffer in module.named_buffers()}


def _is_what_was_compared(source: nn.Module, value: Traced) -> bool:
    """Whether a trace has the code that answered like the module, over the module's own parts and tensors."""
    own = {id(part) for part in (*source.modules(), *source.parameters(), *source.buffers())}
    graph = value.module
    called = [graph.get_submodule(str(node.target)) for node in value.graph.nodes if node.op == "call_module"]
    used = [*called, *graph.parameters(), *graph.buffers()]
    return value.compared == graph.code and all(id(part) in own for part in used)


def _takes_images_alone(source: nn.Module) -> None:
    try:
        parameters = list(inspect.signature(source.forward).parameters.values())
    except (TypeError, ValueError):  # compiled code may not tell
        return
    images = next((p for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)), None)
    if images is None:
        raise ModelError(
            "forward does not take the images as its first argument", where=type(source).__name__,
            hint="write it as forward(self, images)",
        )  # fmt: skip
    for parameter in parameters:
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter is not images and parameter.default is parameter.empty and not variadic:
            raise ModelError(
                f"forward needs '{parameter.name}' beside the images", where=type(source).__name__,
                hint=f"give '{parameter.name}' a default, or wrap the model in a module that passes it on",
            )  # fmt: skip


@contextlib.contextmanager
def _undisturbed(source: nn.Module, *, training: bool) -> Iterator[None]:
    """The module in one mode, and silence; afterwards module and process are as they were."""
    with in_mode(source, training=training), buffers_kept(source), attributes_kept(source), quiet():
        yield


def _remarks(traced: Traced, failures: list[str]) -> Iterator[Diagnostic]:
    for failure in dict.fromkeys(failures):
        yield Diagnostic(
            code="trace-rung", severity="note", where=type(traced.module).__name__,
            why=f"traced by '{traced.rung}', because {failure}",
        )  # fmt: skip


def _not_compared(traced: Traced, probe: Probe) -> Iterator[Diagnostic]:
    """NaN equals NaN, whatever the graph does."""
    if says_nothing(probe.expected):
        yield Diagnostic(
            code="not-compared", severity="warning", where=type(traced.module).__name__,
            why="the model answers images of noise, and positive ones as well, with no finite number, so that its "
            "trace could not be compared with it", hint="give a model, and weights, that answer with numbers",
        )  # fmt: skip


def _static_batch(traced: Traced, probe: Probe) -> Iterator[Diagnostic]:
    """An exported graph may hold for one batch size alone."""
    batch = len(probe.images)
    if traced.rung != "export":
        return
    try:
        with buffers_kept(traced.module):
            probe.call(traced.module, example(traced.module, (batch + 1, *probe.input_shape[1:])))
    except Exception as cause:  # noqa: BLE001  # whatever the reason
        yield Diagnostic(
            code="static-batch", severity="warning", where=type(traced.module).__name__,
            why=f"the trace takes batches of exactly {batch}: {first_line(cause)}",
            hint="plan with --input of the batch size that is trained with, a divisor of the data",
        )  # fmt: skip
