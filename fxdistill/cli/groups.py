"""Which options belong together: the headings under which the help of a command with many of them lists them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_MANY = 16


@dataclass(frozen=True)
class Group:
    """Options under one heading.

    Attributes:
        heading: Above them.
        names: What the command line calls them, without hyphens in front.
        beside: The option of a command that makes this group one of it; '' for every command.
    """

    heading: str
    names: frozenset[str]
    beside: str = ""


def _group(heading: str, names: str, beside: str = "") -> Group:
    return Group(heading, frozenset(names.split()), beside)


GROUPS = (
    _group("Data and preprocessing", "class-map val measure input size crop interpolation mean std embedding"),
    _group("Layers and widths", "pair forbid align keep criterion via via-epochs via-factory via-arg", "align"),
    _group("Budget", "keep macs params latency on latency-table ranking floor scope steps recover", "macs"),
    _group("Channels", "by round-to protect only", "by"),
    _group("Warm-up", "warm-up-share keep-earlier plateau probe"),
    _group("Cascade", "assistants levels spacing budget nested threshold round-to centred mask-first hints hints-alone "
           "export-levels"),
    _group(
        "Recipe", "batch-size optimizer weight-decay momentum warm-up clip ema label-smoothing augment weight arg "
        "recalibrate-bn precision", "method",
    ),
    _group(
        "Speed", "devices nodes jobs precision compile cuda-graphs channels-last cache cache-size cache-half profile",
        "cache",
    ),
    _group("INT8 and FP16", "int8 fp16 calibrate calibration calibration-images tolerance-accuracy "
           "tolerance-agreement"),
    _group("Model files", "factory factory-arg entry teacher-factory teacher-arg teacher-entry teacher-output "
           "student-factory student-arg student-entry student-output output-entry allow-factory trust-code"),
)  # fmt: skip


def divided(parameters: Sequence[Any]) -> Iterable[tuple[str, list[Any]]]:
    """A command's options by heading, each once: those of no group first, under ``Options``.

    Args:
        parameters: The options of the command, in its order.
    """
    known = {_name(one) for one in parameters}
    groups = [group for group in GROUPS if len(parameters) > _MANY and (not group.beside or group.beside in known)]
    by_heading: dict[str, list[Any]] = {"Options": [], **{group.heading: [] for group in groups}}
    for one in parameters:
        heading = next((group.heading for group in groups if _name(one) in group.names), "Options")
        by_heading[heading].append(one)
    return [(heading, found) for heading, found in by_heading.items() if found]


def _name(parameter: Any) -> str:
    return str(parameter.opts[0]).lstrip("-")
