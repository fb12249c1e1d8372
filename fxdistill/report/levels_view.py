"""The levels of a cascade, as people read them: what each keeps, of which layers, and what that costs."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from fxdistill.plan.document import Plan
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.training import Stage
from fxdistill.report import outcome
from fxdistill.report.layout import Line, Table, count


def levels_lines(plan: Plan) -> Iterator[RenderableType]:
    """The levels from the student's up, and for each layer what they keep by the scores that training starts with."""
    levels = {name: member for name, member in plan.members.items() if isinstance(member, Masked)}
    if not levels:
        return
    if plan.pairs:
        yield Text()
    first = next(iter(levels.values()))
    channels = sum(layer.channels for layer in first.layers)
    masked = f"{channels} channels in {len(first.layers)} layers can be masked; sizes as scores are at the start"
    yield Line(Text.assemble((f"levels ({len(levels)})", "bold"), f", {masked}"), indent=2)
    yield Table(("level", "keeps", "scores move by", "parameters", "MACs"), tuple(_rows(levels)))
    for name, member in plan.members.items():
        if isinstance(member, Hardened):
            yield Line(Text(f"{name} is cut out of {member.of} when that is trained", "dim"), indent=2)
    names = [name for name, member in levels.items() if member.is_masked]
    rows = (
        (layer.name, str(layer.channels), *(str(levels[name].layers[number].kept) for name in names))
        for number, layer in enumerate(first.layers)
    )
    yield Text()
    yield Table(("layer", "channels", *names), tuple(rows))


def _rows(levels: dict[str, Masked]) -> Iterator[tuple[str, ...]]:
    for name, member in levels.items():
        keeps = f"{member.keep:.1%}" if member.is_masked else "all"
        if member.budget is not None:
            keeps += f", up to {outcome.allowed(member.budget)}"
        keeps += " of each layer" if member.threshold == "layer" and member.is_masked else ""
        keeps += f", in multiples of {member.multiple}" if member.multiple > 1 else ""
        keeps += f", inside of {member.guide}" if member.nested else ""
        moved = (
            "-" if member.guide is None else f"the gradient of {'its own' if member.guide == name else member.guide}"
        )
        moved += ", centred" if member.centred else ""
        yield name, keeps, moved, count(member.parameters), count(member.macs)


def stage_words(stage: Stage) -> str:
    """How scores move in a stage, and who teaches after its teacher."""
    said = ""
    if stage.scores is not None:
        spec = stage.scores
        said += f"; scores by {spec.name} {spec.lr:g}" + (f", momentum {spec.momentum:g}" if spec.momentum else "")
        said += f", in its first {spec.until:.0%}" if spec.until < 1 else ""
    if stage.successors:
        said += f"; then from {', '.join(stage.successors)}, each when its student is better than the one before"
    return said
