"""What a report says in words: the verdict on a run, and how it is repeated."""

import shlex
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from fxdistill.data.sources import SOURCES
from fxdistill.measure.parity import Parity
from fxdistill.modelfiles import registered
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Hardened
from fxdistill.plan.schema import ModelRef
from fxdistill.plan.training import CONTROL
from fxdistill.report.layout import not_apart, points, spread
from fxdistill.tasks import Task

_FEW = 3
"""Differences that a verdict has at most."""


def verdict(plan: Plan, result: Mapping[str, Any] | None, task: Task) -> str:
    """What came out, in a sentence."""
    if result is None:
        return "This run is not complete: what follows is as far as it has come."
    helped, many = dict(_helped(plan, result, task)), differences(plan, result, task)
    told = [said for name, said in helped.items() if not many or name == plan.export.arm]
    return "; ".join([_reached(plan, result, task), *told, _gate(plan, result)]) + "."


def differences(plan: Plan, result: Mapping[str, Any] | None, task: Task) -> tuple[str, ...]:
    """How far each arm is from the one beside it, where these are too many for a verdict."""
    found = tuple(said for _, said in _helped(plan, result or {}, task))
    return found if len(found) > _FEW else ()


def _reached(plan: Plan, result: Mapping[str, Any], task: Task) -> str:
    member, own = plan.export.member, result["summary"].get(plan.export.arm)
    if own is None:
        return f"The {member} is trained; the test images have no labels, so that nothing was measured on them"
    seeds = sum(arm["name"] == plan.export.arm and task.primary in arm for arm in result["arms"])
    said = f"The {member} reaches {task.primary} {spread(own['mean'], own['deviation'], task, seeds)}"
    said += f" over {seeds} seeds" if seeds > 1 else " under one seed"
    taught = {name: found[task.primary] for name, found in result["members"].items() if task.primary in found}
    if taught:
        said += f", {' and '.join(f'the {name} {task.shown(value)}' for name, value in taught.items())}"
    return said + _smaller(plan, result, next(iter(result["members"]), ""))


def _smaller(plan: Plan, result: Mapping[str, Any], teacher: str) -> str:
    """How much smaller the exported member is than its first teacher; '' where that is not known, or it is not."""
    own, other, arms = plan.members[plan.export.member], plan.members.get(teacher), result["arms"]
    cut = [arm for arm in arms if isinstance(own, Hardened) and arm["name"] == plan.export.arm]
    shares = []
    for what, name in (("parameters", "parameters"), ("macs", "multiply-accumulates")):
        small = statistics.fmean(arm.get(what, 0) for arm in cut) if cut else getattr(own, what)
        large = getattr(other, what, 0)
        if 0 < small < large:
            shares.append(f"{small / large:.1%} of its {name}")
    return f", with {' and '.join(shares)}" if shares else ""


def _helped(plan: Plan, result: Mapping[str, Any], task: Task) -> Iterator[tuple[str, str]]:
    """The arms, and how far each is from the one beside it, with the interval of the difference."""
    for name, found in result.get("differences", {}).items():
        beside = "training without a teacher" if found["beside"] == CONTROL else found["beside"]
        who = "distillation" if name == plan.export.arm and found["beside"] == CONTROL else name
        said = f"{who} is {points(found['mean'], task)} from {beside}"
        if found["low"] is None:
            few = "one seed" if found["seeds"] == 1 else f"the same under {found['seeds']} seeds"
            yield name, f"{said} ({few}, which tells no interval)"
            continue
        low, high = (points(found[end], task, unit=False) for end in ("low", "high"))
        said += f" ({low} to {high} in 95\u00a0%, over {found['seeds']} seeds in pairs)"
        yield name, said + not_apart(found["low"], found["high"])


def _gate(plan: Plan, result: Mapping[str, Any]) -> str:
    parity = Parity(**result["parity"])
    return f"{plan.export.member}.onnx answers as it does: {parity} on {parity.images:,} test images"


def again(plan: Plan, result: Mapping[str, Any] | None) -> str:
    """The command that repeats a run, in its directory, with what was asked for beside the plan.

    In which folder frozen values were kept, in how many processes seeds were trained, and what was only shown, is left
    out.
    """
    how = result or {}
    parts = ["fxdistill", "run", "plan.json", "-o", "again"]
    if how.get("device"):
        parts += ["--device", "cuda" if str(how["device"]).startswith("cuda") else "cpu"]
    if how.get("precision") not in (None, plan.precision):
        parts += ["--precision", str(how["precision"])]
    if how.get("compile"):
        parts += ["--compile", "auto" if how["compile"] == "auto" else "on"]
    if "channels_last" in how:
        parts += ["--channels-last", "on" if how["channels_last"] else "off"]
    parts += ["--cuda-graphs", "off"] if how.get("cuda_graphs") == "off" else []
    parts += ["--cache", "off"] if how.get("cache") == "off" else []
    parts += ["--cache-half"] if how.get("cache_half") else []
    parts += ["--devices", str(how["processes"])] if how.get("processes") else []
    parts += ["--evaluate-every", str(how["evaluate_every"])] if how.get("evaluate_every") else []
    parts += ["--force"] if how.get("forced") else []
    return shlex.join([*parts, *_permitted(plan)])


def _permitted(plan: Plan) -> Iterator[str]:
    """The options that let code run which is not called unasked: factories of the user's own, files that hold code."""
    given = [ref for ref in plan.members.values() if isinstance(ref, ModelRef)]
    modules = [ref.factory.partition(":")[0] for ref in given if ref.factory]
    own = [module for module in modules if not registered.claims(module)]
    source = plan.data.spec.partition(":")[0] if plan.data and plan.data.spec else ""
    own += [source] if source and source not in SOURCES.names() else []
    for module in dict.fromkeys(own):
        yield from ("--allow-factory", module)
    if any(ref.trusted for ref in given):
        yield "--trust-code"
