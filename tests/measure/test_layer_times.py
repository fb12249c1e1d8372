"""Times of layers: measured at few widths, interpolated among those of a kind, and really measured once."""

import itertools

import pytest

from fxdistill.ir.layers import Layer
from fxdistill.measure.layer_times import Case, InOnnxRuntime, Table

WIDE = Layer(48, 64, 1, (1, 8, 8), (8, 8), (3, 3))
DEPTHWISE = Layer(40, 40, 40, (1, 8, 8), (8, 8), (3, 3))


def test_between_measured_widths_it_is_interpolated() -> None:
    asked: list[Case] = []

    def measure(case: Case) -> float:
        asked.append(case)
        return 3.0 + 2.0 * case.inputs + 5.0 * case.outputs + 0.25 * case.inputs * case.outputs

    table = Table(measure)
    for a, b in itertools.product((8, 16, 24, 40, 48), (8, 24, 48, 56, 64)):
        assert table(WIDE, a, b) == pytest.approx(measure(Case(WIDE, a, b)))
    asked.clear()
    for a, b in itertools.product(range(1, 49), range(1, 65)):
        table(WIDE, a, b)
    assert len(asked) == len(set(asked)) <= 12 * 12
    assert all(1 <= case.inputs <= 48 and 1 <= case.outputs <= 64 for case in asked)
    assert table(WIDE, 0, 8) == table(WIDE, 8, 0) == 0


def test_widths_of_a_kind_are_measured_for_themselves() -> None:
    def measure(case: Case) -> float:
        return (1.0 if case.inputs % 8 == 0 else 4.0) + (1.0 if case.outputs % 8 == 0 else 2.0)

    table = Table(measure)
    assert [table(WIDE, a, b) for a, b in ((24, 32), (23, 32), (24, 31), (23, 31))] == [2, 5, 3, 6]
    odd = Layer(10, 3, 1, (1,))
    assert (table(odd, 10, 3), table(odd, 8, 3)) == (6, 3)  # as wide as it is, whatever that is


def test_a_depthwise_layer_has_one_width() -> None:
    asked: list[Case] = []

    def measure(case: Case) -> float:
        asked.append(case)
        return float(case.outputs)

    table = Table(measure)
    assert [table(DEPTHWISE, n, n) for n in (8, 12, 17, 24, 40)] == pytest.approx([8, 12, 17, 24, 40])
    assert all(case.inputs == case.outputs for case in asked)


def test_layers_that_are_alike_at_some_widths_are_measured_once() -> None:
    asked: list[Case] = []

    def measure(case: Case) -> float:
        asked.append(case)
        return 1.0

    table = Table(measure)
    for layer in (WIDE, WIDE._replace(inputs=24, outputs=32), WIDE._replace(outputs=128)):
        table(layer, 24, 32)
    table(DEPTHWISE, 24, 24)
    table(DEPTHWISE._replace(inputs=24, outputs=24, groups=24), 24, 24)
    table(WIDE._replace(made=(4, 4)), 24, 32)
    widths = [(case.inputs, case.outputs, case.layer.groups, case.layer.made) for case in asked]
    assert widths == [(24, 32, 1, (8, 8)), (24, 24, 24, (8, 8)), (24, 32, 1, (4, 4))]


@pytest.mark.parametrize(
    ("layer", "inputs", "outputs"),
    [
        (WIDE, 48, 64),
        (DEPTHWISE, 21, 21),
        (Layer(16, 32, 4, (2, 9, 9), (5, 5), (3, 3)), 8, 24),
        (Layer(16, 8, 1, (1, 10), (4,), (3,)), 16, 8),
        (Layer(64, 10, 1, (7,)), 33, 10),
    ],
    ids=("plain", "depthwise", "grouped-strided", "one-dimension", "linear"),
)
def test_layers_run_in_onnx_runtime(layer: Layer, inputs: int, outputs: int) -> None:
    assert 0 < InOnnxRuntime()(Case(layer, inputs, outputs)) < 10


def test_more_work_takes_longer() -> None:
    measure = InOnnxRuntime()
    large = Layer(256, 256, 1, (1, 28, 28), (28, 28), (3, 3))  # 1,024 times the work
    assert measure(Case(large, 256, 256)) > 5 * measure(Case(large, 8, 8))
