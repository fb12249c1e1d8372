"""A family of models from one cascade: its assistants, cut out and exported as the joint phase leaves them.

Each is proved and compared as the student is, written as a bundle and as ONNX behind the same gate, and measured on the
test images.
"""

from collections.abc import Callable

from torch import nn

from fxdistill.compiler.cascade import harden
from fxdistill.measure.parity import Parity
from fxdistill.plan.members import Masked
from fxdistill.runtime import kept
from fxdistill.runtime.arms import take_up
from fxdistill.runtime.execution import Execution
from fxdistill.runtime.hardening import as_graph, compare, hardened_members
from fxdistill.runtime.trials import Trial


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
    found: dict[str, dict[str, float]] = {}
    for arm in run.plan.arms:
        levels = [(name, member) for name in arm.trains if isinstance(member := run.plan.members[name], Masked)]
        if levels:
            take_up(run, Trial(seed, arm.name))  # as they were when that student was cut out
        for name, member in levels:
            if member.is_masked and name not in first:
                found[name] = _exported(run, name, member, export)
    return found


def _exported(
    run: Execution, name: str, member: Masked, export: Callable[[str, nn.Module], Parity]
) -> dict[str, float]:  # fmt: skip
    masked = as_graph(run.modules[name], name)
    cut = harden(masked, member, input_shape=run.plan.shape_of(name))
    compare(run.plan, name, cut.module, masked, dataset=run.dataset, task=run.task)
    run.modules[name] = cut.module
    for remark in kept.keep(run.plan, run.rundir, name, cut.module.cpu()):
        run.observer.on_diagnostic(remark)
    parity, sizes = export(name, cut.module), {"parameters": float(cut.parameters), "macs": float(cut.macs)}
    return {**run.measured(name), **sizes, "error": parity.max_abs_error}
