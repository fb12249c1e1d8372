"""The plan, written from what a compilation knows."""

from torch import nn

from fxdistill.compiler.compilation import DISTILLED, Compilation
from fxdistill.compiler.versions import versions
from fxdistill.errors import InputError
from fxdistill.ir import outputs
from fxdistill.ir.graph import Traced
from fxdistill.plan.document import VERSION, Plan
from fxdistill.plan.members import Hardened
from fxdistill.plan.schema import InputSpec, ModelRef, Plugin
from fxdistill.plan.training import Control
from fxdistill.registry import GROUPS, origin


def drafted(c: Compilation) -> Plan:
    """The plan of a compilation whose arms are made, without what its stages cost."""
    options = c.options
    given = {
        name: _described(c.refs[name], module, c.traced[name]).changed(preprocessing=options.preprocessing.get(name))
        for name, module in c.models.items()
    }
    plan = Plan(
        version=VERSION, method=c.method.name, task=options.task, seed=options.seed, members={**given, **c.made},
        input=InputSpec(shape=list(options.input_shape)), data=options.data, pairs=list(c.pairs), kept=list(c.kept),
        arms=list(c.arms), control=_control(c), seeds=[options.seed + repeat for repeat in range(options.repeats)],
        precision=options.precision, recalibration=options.recalibrate, versions=versions(),
    )  # fmt: skip
    return plan.changed(plugins=_plugins(c, plan))


def _control(c: Compilation) -> Control | None:
    """The arm without a teacher; None where nothing but a teacher says what to learn, or nobody wants it.

    Raises:
        InputError: It is asked for, and there can be none.
    """
    missing = ""
    if c.method.alone:
        missing = f"the method '{c.method.name}' makes its student while it trains"
    elif c.supervised is None:
        here = "of images without labels" if c.task.supervised is not None else f"in the task '{c.options.task}'"
        missing = f"nothing but a teacher says what to learn {here}"
    if missing and c.options.control:
        raise InputError(f"there is no control arm: {missing}", where="--control", hint="leave it out")
    if missing or c.options.control is False or c.supervised is None:
        return None
    main = c.arms[-1].stages[-1]
    return Control(of=DISTILLED, losses=[c.supervised], optimizer=main.optimizer, schedule=main.schedule)


def _plugins(c: Compilation, plan: Plan) -> list[Plugin]:
    """The names in the plan that do not come with this package."""
    data = c.options.data
    scored = [one.criterion for one in c.made.values() if not isinstance(one, Hardened)]
    used = {
        "method": [name for name, _ in c.method.parts], "task": [c.options.task],
        "loss": [term.loss for arm in plan.all_arms for stage in arm.stages for term in stage.losses],
        "criterion": [*(kept.criterion for kept in c.kept), *scored],
        "data source": [data.spec.partition(":")[0]] if data.spec is not None else [],
        "augmentation": [name.partition(":")[0] for name in data.augmentation],
    }  # fmt: skip
    return [
        Plugin(kind=kind, name=name, distribution=found.distribution, version=found.version)
        for kind, names in used.items()
        for name in dict.fromkeys(names)
        if (found := origin(GROUPS[kind], name)) is not None
    ]


def _described(ref: ModelRef, module: nn.Module, traced: Traced) -> ModelRef:
    entry = traced.entry or outputs.choose(traced.output_value)
    size = sum(p.numel() for p in module.parameters())
    return ref.changed(rung=traced.rung, macs=traced.macs_of_image, parameters=size, output=entry)
