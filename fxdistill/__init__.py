"""fxdistill: a graph-level compression compiler for PyTorch vision models.

    plan = fxdistill.compile(teacher, student, fxdistill.Options(input_shape=(1, 3, 224, 224)))
    program = fxdistill.build(plan, teacher, student)
    stage = fxdistill.specialize(program, "warm-up-1")
    losses = stage({"images": images, "labels": labels})

Names are imported when they are first used, so that ``import fxdistill`` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxdistill.compiler.build import build as build
    from fxdistill.compiler.build import build_arm as build_arm
    from fxdistill.compiler.build import specialize as specialize
    from fxdistill.compiler.options import Options as Options
    from fxdistill.compiler.pipeline import compile as compile  # noqa: A004
    from fxdistill.compiler.shrink_model import ShrunkResult as ShrunkResult
    from fxdistill.compiler.tap_statistics import measure_taps as measure_taps
    from fxdistill.data.batches import batches as batches
    from fxdistill.data.dataset import Dataset as Dataset
    from fxdistill.data.dataset import Split as Split
    from fxdistill.data.load import load as load_data
    from fxdistill.diagnostics import Diagnostic as Diagnostic
    from fxdistill.errors import FxdistillError as FxdistillError
    from fxdistill.errors import InputError as InputError
    from fxdistill.ir.program import Outputs as Outputs
    from fxdistill.ir.program import Program as Program
    from fxdistill.methods.cascade import Cascade as Cascade
    from fxdistill.modelfiles.bundle import save as save
    from fxdistill.modelfiles.load import LoadedModel as LoadedModel
    from fxdistill.modelfiles.load import load as load
    from fxdistill.modelfiles.source import parse_source as parse_source
    from fxdistill.passes.schedule.curriculum import Curriculum as Curriculum
    from fxdistill.plan.document import Plan as Plan
    from fxdistill.plan.file import load as load_plan
    from fxdistill.plan.training import Plateau as Plateau
    from fxdistill.preprocessing import Preprocessing as Preprocessing
    from fxdistill.report.show import show as show
    from fxdistill.runtime.deployment.comparing import compare as compare
    from fxdistill.runtime.deployment.deploy import evaluate as evaluate
    from fxdistill.runtime.deployment.deploy import export as export
    from fxdistill.runtime.deployment.quantizing import quantize as quantize
    from fxdistill.runtime.deployment.timing import bench as bench
    from fxdistill.runtime.planning.make_plan import make_plan as make_plan
    from fxdistill.runtime.run.execute import execute as run
    from fxdistill.runtime.run.execution import Settings as Settings
    from fxdistill.runtime.smaller.compress import compress as compress
    from fxdistill.runtime.smaller.shrinking import shrink as shrink

_HOMES = {
    "compile": "compiler.pipeline", "build": "compiler.build", "build_arm": "compiler.build",
    "specialize": "compiler.build", "measure_taps": "compiler.tap_statistics",
    "make_plan": "runtime.planning.make_plan", "run": "runtime.run.execute:execute",
    "shrink": "runtime.smaller.shrinking", "compress": "runtime.smaller.compress",
    "evaluate": "runtime.deployment.deploy", "export": "runtime.deployment.deploy", "show": "report.show",
    "quantize": "runtime.deployment.quantizing", "bench": "runtime.deployment.timing",
    "compare": "runtime.deployment.comparing",
    "load": "modelfiles.load", "save": "modelfiles.bundle", "parse_source": "modelfiles.source",
    "load_plan": "plan.file:load", "load_data": "data.load:load", "batches": "data.batches",
    "Options": "compiler.options", "Cascade": "methods.cascade", "Curriculum": "passes.schedule.curriculum",
    "Plateau": "plan.training", "Settings": "runtime.run.execution",
    "Plan": "plan.document", "Program": "ir.program", "Outputs": "ir.program",
    "LoadedModel": "modelfiles.load", "ShrunkResult": "compiler.shrink_model",
    "Dataset": "data.dataset", "Split": "data.dataset", "Diagnostic": "diagnostics", "Preprocessing": "preprocessing",
    "FxdistillError": "errors", "InputError": "errors",
}  # fmt: skip

__all__ = [  # noqa: RUF022  # as a reader needs them; the names are defined in __getattr__
    "make_plan", "run", "compile", "build", "build_arm", "specialize", "measure_taps",
    "shrink", "compress", "evaluate", "export", "quantize", "bench", "compare", "show",
    "load", "save", "parse_source", "load_plan", "load_data", "batches",
    "Options", "Cascade", "Curriculum", "Plateau", "Settings", "Plan", "Program", "Outputs", "LoadedModel",
    "ShrunkResult", "Dataset", "Split", "Preprocessing", "Diagnostic", "FxdistillError", "InputError",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fxdistill' has no attribute '{name}'")
    module, _, other = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"fxdistill.{module}"), other or name)


def __dir__() -> list[str]:
    return sorted(__all__)
