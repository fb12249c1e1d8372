"""Operators from elsewhere: one file, or one entry point, and every pass knows the operation."""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxdistill.operators
from fxdistill import registry
from fxdistill.compiler.build import build, specialize
from fxdistill.compiler.shrink_model import ShrunkResult, shrink_model
from fxdistill.errors import InputError, InvariantError, PairingError
from fxdistill.ir import operators
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced
from fxdistill.operators import OPERATORS
from fxdistill.passes.couple import Couple, rules
from fxdistill.passes.match import Match, MatchSource
from fxdistill.passes.match.candidates import Survey
from fxdistill.passes.shrink import masked, rewrites
from fxdistill.passes.specialize import frozen_values
from fxdistill.passes.trace import Trace
from tests.tiny_models import SHAPE, Body, Classifier, awake, planned

IMAGE = (2, 3, 8, 8)
Install = Callable[..., None]

LINE = """
from fxdistill.operators import Operator, Trait

OPERATOR = Operator(names=("special_xlog1py",), traits=Trait.ELEMENTWISE, labels="elementwise")
"""
CODE = '''
"""x minus its mean over the channels, whose number is stated."""

from fxdistill.operators import Operator
from fxdistill.passes.couple.operations import pointwise


def rewrite(node, run, masks):
    node.args = (node.args[0], run.env[node.args[0]].shape[1])


def masked(call, alive):
    x = call.args[0]
    return x - (x * alive).sum(1, keepdim=True) / alive.sum(1, keepdim=True).clamp(min=1)


OPERATOR = Operator(names=("centred",), labels=pointwise, rewrite=rewrite, masked=masked)
'''


@torch.library.custom_op("fxdistill_tests::centred", mutates_args=())
def centred(x: Tensor, width: int) -> Tensor:
    """An operation that states a width and takes a statistic over channels."""
    return x - x.sum(1, keepdim=True) / width


@centred.register_fake
def _(x: Tensor, _width: int) -> Tensor:
    return torch.empty_like(x)


def _forget() -> None:
    registry._files.cache_clear()
    operators.table.cache_clear()
    for name in [n for n in sys.modules if n.startswith("fxdistill.operators.from_elsewhere")]:
        del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a file into another folder of the package's path."""

    def put(text: str) -> None:
        (tmp_path / "from_elsewhere.py").write_text(text)
        monkeypatch.setattr(fxdistill.operators, "__path__", [*fxdistill.operators.__path__, str(tmp_path)])
        _forget()

    yield put
    monkeypatch.undo()
    _forget()


class Gated(nn.Module):
    """One convolution gates another by ``x * log1p(y)``."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(3, width, 3, padding=1)
        self.mix, self.head = nn.Conv2d(width, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.special.xlog1py(self.a(x), torch.sigmoid(self.b(x)))
        return self.head(self.mix(x).relu().mean((2, 3)))


class Centred(nn.Module):
    """A convolution whose channels are centred by an operation of a library."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.mix, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.mix(centred(self.a(x), 8)).relu().mean((2, 3)))


def sources(net: nn.Module) -> tuple[Traced, Coupling]:
    traced = Trace(IMAGE)(net.eval()).value
    return traced, Couple()(traced).value


def locked(coupling: Coupling, name: str) -> bool:
    classes = coupling.parameter_labels(f"{name}.weight")[0].flatten().tolist()
    return all(class_id in coupling.locks for class_id in classes)


def halved(net: nn.Module) -> ShrunkResult:
    return shrink_model(net, input_shape=IMAGE, keep=0.5)


def test_without_its_file_an_operation_is_a_barrier_with_a_remark() -> None:
    for net, name in ((Gated(), "special_xlog1py"), (Centred(), "centred")):
        _, coupling = sources(net)
        assert locked(coupling, "a")
        (remark,) = coupling.diagnostics
        assert remark.code == "opaque-node"
        assert f"no label rule for '{name}'" in remark.why
        assert halved(net).widths == {"a": (8, 8), "mix": (6, 3), "head": (5, 5)} | (
            {"b": (8, 8)} if name == "special_xlog1py" else {}
        )


def test_a_file_of_one_line_couples_and_shrinks_with_proof(install: Install) -> None:
    install(LINE)
    _, coupling = sources(Gated())
    assert coupling.diagnostics == ()
    a, b = (coupling.parameter_labels(f"{name}.weight")[0].flatten().tolist() for name in "ab")
    assert a == b
    result = halved(Gated())
    assert result.widths == {"a": (8, 4), "b": (8, 4), "mix": (6, 3), "head": (5, 5)}
    assert result.proof.error <= 1e-4


def test_a_file_of_one_line_makes_an_operation_tappable(install: Install) -> None:
    pins = (("special_xlog1py", "special_xlog1py"),)
    with pytest.raises(PairingError, match="it is not known which dimension holds its channels"):
        Match(pins=pins)(_pair())
    install(LINE)
    (pair,) = Match(pins=pins)(_pair()).value
    assert (pair.teacher.width, pair.student.width, pair.teacher.channel_dim) == (8, 4, 1)


def _pair() -> MatchSource:
    return MatchSource(Survey(*sources(Gated(8))), Survey(*sources(Gated(4)), "student"))


@pytest.mark.parametrize("known", [False, True])
def test_a_slice_sinks_through_an_operation_that_has_a_file(install: Install, known: bool) -> None:
    if known:
        install(LINE)
    parts: dict[str, nn.Module] = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(3, 8, 3)}
    body = Body(parts, lambda m, x: torch.special.xlog1py(m.a(x), m.b(x).sigmoid()))
    teacher, student = Classifier(body, 8), Classifier(nn.Conv2d(3, 2, 3), 2)
    plan = planned("body", "body", (2, 8, 6, 6), (2, 2, 6, 6), kept=[1, 6])
    program = build(plan, awake(teacher.eval()).double(), awake(student).double())
    program = specialize(program, "warm-up-1")
    called = [str(node.target) for node in program.graph.nodes]
    assert ("teacher.body.a_kept_2" in called) == ("teacher.body.b_kept_2" in called) == known
    images = torch.randn(SHAPE, dtype=torch.float64)
    (value,) = frozen_values(program, images).values()
    torch.testing.assert_close(value, body(images)[:, [1, 6]], rtol=1e-12, atol=1e-12)


def test_a_file_may_bring_rules_of_its_own(install: Install) -> None:
    install(CODE)
    result = halved(Centred())
    assert result.widths == {"a": (8, 4), "mix": (6, 3), "head": (5, 5)}
    (node,) = [n for n in result.module.graph.nodes if "centred" in str(n.target)]
    assert node.args[1] == 4


@pytest.mark.parametrize("rule", ["rewrite", "masked"])
def test_a_rule_that_is_missing_is_noticed_by_the_proof(install: Install, rule: str) -> None:
    install(CODE.replace(f", {rule}={rule}", ""))
    with pytest.raises(Exception, match="disagrees with the masked full one, first at 'centred'") as caught:
        halved(Centred())
    assert isinstance(caught.value.__cause__, InvariantError)


def test_an_operation_spelled_in_others(install: Install) -> None:
    install(
        "import torch\nfrom fxdistill.operators import Operator\n"
        "OPERATOR = Operator(names=('special_xlog1py',), spelled=lambda x, y: torch.mul(x, torch.log1p(y)))\n"
    )
    assert halved(Gated()).widths == {"a": (8, 4), "b": (8, 4), "mix": (6, 3), "head": (5, 5)}


def test_an_entry_point_does_the_same(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(LINE)  # so that there is a module to point at
    point = EntryPoint("xlog1py", "fxdistill.operators.from_elsewhere:OPERATOR", "fxdistill.operators")
    monkeypatch.setattr(registry, "_files", lambda _: {})
    monkeypatch.setattr(registry, "_entry_points", lambda _: {"xlog1py": (point,)})
    operators.table.cache_clear()
    assert OPERATORS.names() == ("xlog1py",)
    assert sources(Gated())[1].diagnostics == ()


def test_a_wrong_word_is_an_error_and_no_barrier(install: Install) -> None:
    install(LINE.replace('labels="elementwise"', 'labels="elementwis"'))
    with pytest.raises(InputError, match="names the unknown rule 'elementwis'") as caught:
        sources(Gated())
    assert "did you mean 'elementwise'?" in caught.value.hint


def test_a_file_that_names_a_known_operation_is_refused(install: Install) -> None:
    install(LINE.replace("special_xlog1py", "relu"))
    with pytest.raises(InputError, match="the operation 'relu' is known already"):
        sources(Gated())


def test_every_word_of_the_table_is_known_to_its_pass_and_used() -> None:
    known = operators.table().values()
    words = [{getattr(entry, field) for entry in known} for field in ("labels", "rewrite", "masked")]
    assert words[0] - {""} == set(rules.RULES) | set(rules._SPELLED)
    assert words[1] - {""} == set(rewrites._RULES)
    assert words[2] - {""} == set(masked.RULES)
