"""What a model answers with, told from its graph: probabilities, their logarithms, or neither.

    softmax(x), sigmoid(x), e / sum e, exp(log p), 1 - p       p, probabilities
    log_softmax(x), log p                                      log p
    p in another form, at another size; p c, p + c, p q        what p is, for constants c
    anything else                                              not known, for all one can tell logits

Losses that take logits take the softmax, or the sigmoid, themselves. Of log p that is p again (the softmax of
log_softmax(x) is softmax(x)); of p it is nearly the same for every class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import fx

from fxdistill.ir import outputs
from fxdistill.ir.graph import Traced, op_name, path_of
from fxdistill.ir.operators import is_a
from fxdistill.operators import Trait

_PROBABILITIES = {"softmax", "softmin", "softmax2d", "sigmoid", "hardsigmoid", "hard_sigmoid", "expit"}
_LOGARITHMS = {"log_softmax", "logsigmoid", "log_sigmoid"}
_SAME = Trait.CARRIES | Trait.VIEW | Trait.CUTS | Trait.PICKS | Trait.PERMUTES | Trait.POOLING
_BOUNDED = {"clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "nan_to_num", "mean", "repeat", "upsample"}
_DIVIDES = {"div", "truediv", "divide", "true_divide"}
_COMBINES = {"add", "mul", "multiply", "cat", "concat", "concatenate", "stack", "maximum", "minimum", *_DIVIDES}
_DEEPEST = 100


@dataclass(frozen=True)
class Origin:
    """Where a value stops being logits.

    Attributes:
        kind: What the value is.
        node: The operation that makes it that.
        operation: Its name.
    """

    kind: Literal["probabilities", "logarithms"]
    node: fx.Node
    operation: str

    @property
    def path(self) -> str:
        """The path of the operation."""
        return path_of(self.node)


def origin(traced: Traced, value: fx.Node | None = None) -> Origin | None:
    """What a prediction is, and which operation makes it that; None for logits and for what is not known.

    Args:
        traced: A traced model.
        value: Another value of its graph.
    """
    return _Reader(traced)(traced.output if value is None else value)


def logits_entry(traced: Traced) -> str:
    """The entry of a structured output that holds the logits of its prediction, where that is probabilities; or ''."""
    found = origin(traced)
    if found is None or found.kind != "probabilities" or not found.node.all_input_nodes:
        return ""
    reader = _Reader(traced)
    before = reader.same(found.node.all_input_nodes[0])
    places = outputs.entries(traced.output_value)
    return next((place for place, value in places if isinstance(value, fx.Node) and reader.same(value) is before), "")


class _Reader:
    """Reads one graph; each value once."""

    def __init__(self, traced: Traced) -> None:
        self.name: Callable[[fx.Node], str] = lambda node: (
            op_name(node, traced.module).lstrip("_").removeprefix("special_").removesuffix("_backward_data")
        )
        self.known: dict[fx.Node, Origin | None] = {}

    def __call__(self, node: fx.Node, depth: int = 0) -> Origin | None:
        if node not in self.known and depth < _DEEPEST:
            self.known[node] = self._of(node, depth)
        return self.known.get(node)

    def same(self, node: fx.Node) -> fx.Node:
        """The value before changes of form."""
        while node.op.startswith("call") and self._keeps(self.name(node)) and node.all_input_nodes:
            node = node.all_input_nodes[0]
        return node

    @staticmethod
    def _keeps(name: str) -> bool:
        return any(is_a(name, trait) for trait in _SAME)

    def _of(self, node: fx.Node, depth: int) -> Origin | None:
        if not node.op.startswith("call") or not node.all_input_nodes:
            return None
        name = self.name(node)
        if name in _PROBABILITIES or (name in _DIVIDES and self._is_share(node)):
            return Origin("probabilities", node, "share of a sum" if name in _DIVIDES else name)
        if name in _LOGARITHMS:
            return Origin("logarithms", node, name)
        inputs = [self(source, depth + 1) for source in self._read(node, name)]
        first = inputs[0] if inputs else None
        if first is None or any(one is None or one.kind != first.kind for one in inputs):
            return None
        if name in ("exp", "log"):
            wanted, made = ("logarithms", "probabilities") if name == "exp" else ("probabilities", "logarithms")
            return Origin(made, node, name) if first.kind == wanted else None  # type: ignore[arg-type]
        if name in ("sub", "rsub", "subtract"):  # one less p, where the constant comes first
            constant = node.args[0] if name != "rsub" else node.args[-1]
            return first if first.kind == "probabilities" and not isinstance(constant, fx.Node) else None
        return first

    def _read(self, node: fx.Node, name: str) -> list[fx.Node]:
        """The inputs that decide: all of what is combined, the first one of what keeps its values; none otherwise."""
        if name in _COMBINES:
            return node.all_input_nodes
        known = name in _BOUNDED or name in ("exp", "log", "sub", "rsub", "subtract") or self._keeps(name)
        return node.all_input_nodes[:1] if known else []

    def _is_share(self, node: fx.Node) -> bool:
        """Whether a quotient is ``e / sum e``, whatever keeps the sum off zero."""
        if len(node.args) < 2 or not all(isinstance(value, fx.Node) for value in node.args[:2]):
            return False
        whole = node.args[1]
        while isinstance(whole, fx.Node) and self.name(whole) in (*_BOUNDED, "add"):
            whole = whole.all_input_nodes[0]
        return isinstance(whole, fx.Node) and self.name(whole) == "sum" and whole.all_input_nodes[0] is node.args[0]
