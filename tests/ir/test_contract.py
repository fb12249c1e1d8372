"""The contract of a pass, and what the manager says when it is broken."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InvariantError, ModelError, PassError
from fxdistill.ir.contract import Pass, PassManager, PassResult, graph_states

REMARK = Diagnostic(code="a-code", severity="note", where="here", why="because")


@dataclass(frozen=True)
class Count(Pass[fx.GraphModule, int]):
    """Counts nodes; can be made to misbehave."""

    fault: str = ""

    def requires(self, source: fx.GraphModule) -> None:
        if self.fault == "user":
            raise ModelError("not this model")

    def run(self, source: fx.GraphModule) -> PassResult[int]:
        if self.fault == "changes":
            source.graph.placeholder("more")
        if self.fault == "breaks":
            raise KeyError("lost")
        return PassResult(len(source.graph.nodes), modified=False, diagnostics=(REMARK,))

    def ensures(self, source: fx.GraphModule, value: int) -> None:
        if self.fault == "lies":
            raise InvariantError("the count is wrong")

    def proves(self, source: fx.GraphModule, value: int) -> None:
        if self.fault == "untrue":
            raise InvariantError("nothing runs like that")


@dataclass(frozen=True)
class Changing(Count):
    """The same, honest about it."""

    in_place = True


def graph() -> fx.GraphModule:
    return fx.symbolic_trace(nn.ReLU())


def test_a_pass_is_timed_and_its_remarks_are_kept_once() -> None:
    manager = PassManager()
    assert manager.run(Count(), graph()) == manager.run(Count(), graph()) == 3
    assert [(record.name, record.modified) for record in manager.records] == [("count", False)] * 2
    assert all(record.seconds >= 0 for record in manager.records)
    assert manager.diagnostics == (REMARK,)


def test_what_is_the_users_fault_travels_as_it_is() -> None:
    with pytest.raises(ModelError, match="not this model"):
        PassManager().run(Count("user"), graph())


@pytest.mark.parametrize(
    ("fault", "cause", "message"),
    [
        ("breaks", KeyError, "the pass 'count' failed: KeyError: 'lost'"),
        ("lies", InvariantError, "the pass 'count' failed: InvariantError: the count is wrong"),
        ("untrue", InvariantError, "the pass 'count' failed: InvariantError: nothing runs like that"),
        ("changes", InvariantError, "the pass 'count' changed its source without declaring it"),
    ],
)
def test_a_broken_pass_is_named_with_those_before_it(fault: str, cause: type[Exception], message: str) -> None:
    manager = PassManager()
    with pytest.raises(PassError, match="after: none"):
        manager.run(Count(fault), graph())
    manager.run(Count(), graph())
    manager.run(Changing(), graph())
    with pytest.raises(PassError, match=message) as caught:
        manager.run(Count(fault), graph())
    assert isinstance(caught.value.__cause__, cause)
    assert caught.value.where == "pass 'count', after: count, changing"
    assert caught.value.exit_code == 1
    assert len(manager.records) == 2


def test_changing_in_place_is_allowed_where_declared() -> None:
    assert PassManager().run(Changing("changes"), graph()) == 4


def test_a_change_deep_in_the_source_is_seen() -> None:
    @dataclass(frozen=True)
    class Holder:
        parts: tuple[fx.Graph, ...]

    @dataclass(frozen=True)
    class Quiet(Pass[Holder, None]):
        def run(self, source: Holder) -> PassResult[None]:
            source.parts[0].call_function(torch.relu, ())
            return PassResult(None, modified=False)

    with pytest.raises(InvariantError, match="changed its source"):
        Quiet()(Holder((graph().graph,)))


def test_what_only_running_shows_can_be_left_to_another_time_and_nothing_else() -> None:
    manager = PassManager(prove=False)
    assert manager.run(Count("untrue"), graph()) == 3
    with pytest.raises(PassError, match="the count is wrong"):
        manager.run(Count("lies"), graph())
    with pytest.raises(PassError, match="changed its source"):
        manager.run(Count("changes"), graph())


def swapped(found: fx.Graph) -> None:
    one, other = (node for node in found.nodes if node.op == "call_module")
    one.target, other.target = other.target, one.target


def rewired(found: fx.Graph) -> None:
    *_, last, output = found.nodes
    output.args = (last.args[0],)


def reordered(found: fx.Graph) -> None:
    first, second, *_ = (node for node in found.nodes if node.op == "placeholder")
    second.append(first)


def with_argument(found: fx.Graph) -> None:
    node = next(node for node in found.nodes if node.op == "call_module")
    node.kwargs = {"more": 1}


@pytest.mark.parametrize("change", [swapped, rewired, reordered, with_argument])
def test_every_change_of_a_graph_is_seen(change: Callable[[fx.Graph], None]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.ReLU(), nn.Sigmoid()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            total: Tensor = self.other(self.one(x)) + y
            return total

    found = fx.symbolic_trace(Two())
    before = graph_states((found, {"the same": found.graph}))
    assert before == graph_states((found, {"the same": found.graph}))
    change(found.graph)
    assert before != graph_states((found, {"the same": found.graph}))
