"""What each step of the pipeline made, as text: what ``fxdistill plan --print-after PASS`` prints."""

from collections.abc import Iterable, Iterator, Mapping

from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced, macs_of, path_of, shape_of
from fxdistill.ir.program import Program
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.schema import Kept, Pair, Shrunken
from fxdistill.plan.training import Arm


def traces(traced: Mapping[str, Traced]) -> str:
    """The graphs, a node a line: operation, path, shape, MACs."""
    return "\n\n".join("\n".join([f"{name}, traced: {one.rung}", *_nodes(one)]) for name, one in traced.items())


def _nodes(traced: Traced) -> Iterator[str]:
    for node in traced.graph.nodes:
        if node.op != "get_attr":
            shape = "x".join(map(str, shape_of(node) or ())) or "-"
            yield f"  {node.op:<13}  {shape:<16}  {macs_of(node):>12,}  {path_of(node)}"


def couplings(coupling: Mapping[str, Coupling]) -> str:
    """The groups of coupled channels: how many channels, by what they are produced, and what locks them."""
    return "\n\n".join("\n".join([name, *_groups(one)]) for name, one in coupling.items())


def _groups(coupling: Coupling) -> Iterator[str]:
    for group in coupling.groups:
        slices = coupling.slices(group[0])
        producers = [one.path for one in slices if one.kind == "out"] or [one.parameter for one in slices]
        lock = coupling.locked(group[0])
        kept = f", stays: {lock}" if lock else ""
        yield f"  {len(group):>5} channels of {', '.join(producers) or 'the input'}{kept}"


def pairs(found: Iterable[Pair]) -> str:
    """The pairs with their scores."""
    lines = [
        f"  {pair.name}: {pair.teacher.path} {pair.teacher.shape} = {pair.student.path} {pair.student.shape}, "
        f"score {pair.score:.2f}, {pair.align}"
        for pair in found
    ]
    return "\n".join(lines) or "  no pairs"


def kept(found: Iterable[Kept]) -> str:
    """The kept channels of each sliced pair."""
    lines = [f"  {one.pair}: {one.path} keeps {', '.join(map(str, one.channels))} of {one.width}" for one in found]
    return "\n".join(lines) or "  nothing is sliced"


def members(made: Mapping[str, Shrunken | Masked | Hardened]) -> str:
    """The members that are made from others: what each weight, or each layer, keeps."""
    lines = [
        f"  {name}, of {one.of}: {weight} keeps {count}" for name, one in made.items() for weight, count in _kept(one)
    ]
    return "\n".join(lines) or "  no member is made from another"


def _kept(one: Shrunken | Masked | Hardened) -> Iterator[tuple[str, int]]:
    if isinstance(one, Shrunken):
        yield from ((weight, len(indices)) for weight, indices in one.kept.items())
    elif isinstance(one, Masked):
        yield from ((layer.name, layer.kept) for layer in one.layers)


def arms(found: Iterable[Arm]) -> str:
    """The stages of each arm."""
    return "\n".join(
        f"  {arm.name}, trains {', '.join(arm.trains)}: {stage.name}, {stage.epochs} epochs of "
        f"{' + '.join(f'{term.weight:g} {term.name}' for term in stage.losses)}"
        for arm in found
        for stage in arm.stages
    )


def programs(found: Mapping[str, Program]) -> str:
    """The graphs of programs, as torch.fx prints them."""
    return "\n\n".join(f"{name}, {program.macs:,} MACs\n{program.graph}" for name, program in found.items())
