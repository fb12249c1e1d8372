"""fxdistill: a graph-level compression compiler for PyTorch vision models.

    plan = fxdistill.compile(teacher, student, fxdistill.Options(input_shape=(1, 3, 224, 224)))
    program = fxdistill.build(plan, teacher, student)
    losses = program.stage("warm-up-1")(images, labels)

Names are imported when they are first used, so that ``import fxdistill`` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxdistill.compiler.build import build as build
    from fxdistill.compiler.options import Options as Options
    from fxdistill.compiler.pipeline import compile as compile  # noqa: A004
    from fxdistill.diagnostics import Diagnostic as Diagnostic
    from fxdistill.errors import FxdistillError as FxdistillError
    from fxdistill.errors import InputError as InputError
    from fxdistill.ir.program import Program as Program
    from fxdistill.modelfiles.bundle import save as save
    from fxdistill.modelfiles.load import LoadedModel as LoadedModel
    from fxdistill.modelfiles.load import load as load
    from fxdistill.modelfiles.source import parse_source as parse_source
    from fxdistill.plan.document import Plan as Plan
    from fxdistill.plan.file import load as load_plan
    from fxdistill.runtime.execute import Settings as Settings
    from fxdistill.runtime.execute import execute as run

_HOMES = {
    "Diagnostic": "diagnostics", "FxdistillError": "errors", "InputError": "errors",
    "LoadedModel": "modelfiles.load", "Options": "compiler.options", "Plan": "plan.document",
    "Program": "ir.program", "build": "compiler.build", "compile": "compiler.pipeline",
    "Settings": "runtime.execute", "run": "runtime.execute:execute", "load": "modelfiles.load",
    "load_plan": "plan.file:load", "parse_source": "modelfiles.source", "save": "modelfiles.bundle",
}  # fmt: skip

__all__ = [  # noqa: RUF022  # as a reader needs them; the names are defined in __getattr__
    "compile", "build", "run", "load", "save", "parse_source", "load_plan",
    "Options", "Settings", "Plan", "Program", "LoadedModel", "Diagnostic", "FxdistillError", "InputError",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fxdistill' has no attribute '{name}'")
    module, _, other = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"fxdistill.{module}"), other or name)
