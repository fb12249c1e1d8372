"""A family of models from one cascade: its assistants, cut out and exported as the joint phase leaves them.

Each is proved and compared as the student is, written as a bundle and as ONNX behind the same gate, and measured on the
test images. The student itself is what is exported in any case, in the shape that its seed gave it.
"""

from collections.abc import Callable

from torch import nn

from fxdistill.compiler.levels import harden
from fxdistill.ir.running import load_whole_state
from fxdistill.measure.parity import Parity
from fxdistill.modelfiles import bundle, graphs
from fxdistill.plan.members import Hardened, Masked
from fxdistill.runtime.run import kept
from fxdistill.runtime.run.arms import cut, take_up
from fxdistill.runtime.run.execution import Execution
from fxdistill.runtime.run.hardening import as_graph, compare, hardened_members
from fxdistill.runtime.run.trials import Trial


def exported(run: Execution) -> nn.Module:
    """The exported member on the CPU, with its trained weights; what is cut out has the shape that its seed gave it.

    Raises:
        ParityError: What was cut out anew does not answer as the masked member.
    """
    plan, name = run.plan, run.plan.export.member
    path = run.rundir.bundle_path(name)
    held = bundle.read(path)
    if isinstance(plan.members[name], Hardened):  # of another seed, or a run that was continued: another shape
        if held.graph is not None:
            run.modules[name] = graphs.from_data(held.graph, where=str(path))
        else:  # no file holds more than its weights
            _as_trained(run, kept.exported_seed(plan, run.task, run.checkpoint.finished))
            cut(run, plan.arm(plan.export.arm))
    module = run.modules[name].cpu()
    load_whole_state(module, held.state)
    return module


def _as_trained(run: Execution, seed: int) -> dict[str, Masked]:
    """The masked members, which become what training under a seed made of them."""
    found: dict[str, Masked] = {}
    for arm in run.plan.arms:
        levels = {name: member for name in arm.trains if isinstance(member := run.plan.members[name], Masked)}
        if levels:
            take_up(run, Trial(seed, arm.name))
        found |= levels
    return found


def export_levels(run: Execution, export: Callable[[str, nn.Module], Parity]) -> dict[str, dict[str, float]]:
    """Cut out, check, write and measure the assistants, under the seed whose student is exported.

    Args:
        run: The execution, everything trained. What was cut out takes the place of the masked member in its modules.
        export: Writes a member as ONNX, and says how far the file is from it.

    Returns:
        By member its metrics, ``parameters`` and ``macs``, and the largest ``error`` of its file.

    Raises:
        ParityError: What was cut out, or a file, does not answer as the member does.
    """
    seed = kept.exported_seed(run.plan, run.task, run.checkpoint.finished)
    first = {of for _, of, _ in hardened_members(run.plan)}
    levels = _as_trained(run, seed)  # as they were when that student was cut out
    return {
        name: _exported(run, name, member, export)
        for name, member in levels.items() if member.is_masked and name not in first
    }  # fmt: skip


def _exported(
    run: Execution, name: str, member: Masked, export: Callable[[str, nn.Module], Parity]
) -> dict[str, float]:  # fmt: skip
    masked = as_graph(run.modules[name], name)
    small = harden(masked, member, input_shape=run.plan.shape_of(name))
    compare(run.plan, name, small.module, masked, dataset=run.dataset, task=run.task)
    run.modules[name] = small.module
    for remark in kept.keep(run.plan, run.rundir, name, small.module.cpu()):
        run.observer.on_diagnostic(remark)
    parity, sizes = export(name, small.module), {"parameters": float(small.parameters), "macs": float(small.macs)}
    return {**run.measured(name), **sizes, "error": parity.max_abs_error}
