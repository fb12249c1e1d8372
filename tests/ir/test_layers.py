"""The layers that take the time: their shapes, their widths when channels go, and the time of a whole model."""

import torch
from torch import nn

from fxdistill.ir.cost import cost_of
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced, macs_of
from fxdistill.ir.layers import Layer, Timing, layers_of
from fxdistill.passes.couple import Couple
from fxdistill.passes.trace import Trace

IMAGE = (2, 3, 16, 16)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=4), nn.ConvTranspose2d(12, 6, 2, stride=2),
        nn.ConvTranspose2d(6, 12, 3, padding=1), nn.ConvTranspose2d(12, 6, 3, stride=2, groups=3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    ).eval()  # fmt: skip


def coupled(module: nn.Module) -> tuple[Traced, Coupling]:
    traced = Trace(IMAGE)(module).value
    return traced, Couple()(traced).value


def test_layers_are_as_they_stand_in_the_model_and_multiply_as_often() -> None:
    traced, coupling = coupled(net())
    found = [placed.layer for placed in layers_of(traced, coupling)]
    assert found == [
        Layer(3, 8, 1, (2, 16, 16), (8, 8), (3, 3)),
        Layer(8, 8, 8, (2, 8, 8), (8, 8), (3, 3)),
        Layer(8, 12, 1, (2, 8, 8), (8, 8), (1, 1)),
        Layer(12, 12, 4, (2, 8, 8), (8, 8), (3, 3)),
        Layer(6, 12, 1, (2, 16, 16), (8, 8), (2, 2)),  # transposed ones, the other way round
        Layer(12, 6, 1, (2, 16, 16), (16, 16), (3, 3)),
        Layer(6, 12, 3, (2, 33, 33), (16, 16), (3, 3)),
        Layer(6, 5, 1, (2,)),
    ]
    assert sum(one.macs(one.inputs, one.outputs) for one in found) == sum(map(macs_of, traced.graph.nodes))
    assert (found[1].groups_at(5), found[3].groups_at(8)) == (5, 4)


def test_what_is_removed_is_not_read_nor_made_and_time_is_a_share_of_the_whole() -> None:
    traced, coupling = coupled(net())
    first = [one for one in coupling.classes("0") if one]
    asked: list[tuple[Layer, int, int]] = []

    def times(layer: Layer, reads: int, makes: int) -> float:
        asked.append((layer, reads, makes))
        return layer.macs(reads, makes)

    cost = cost_of(traced, coupling, first, timing=Timing(times, 3.0))
    assert cost.spent_without(()).latency == 3_000_000_000
    asked.clear()
    spent = cost.spent_without(first[:3])
    assert [widths[1:] for widths in asked[:3]] == [(3, 5), (5, 5), (5, 12)]
    assert spent[:2] == cost.of(torch.tensor([one not in first[:3] for one in first]))
    assert spent.latency == round(3e9 * spent.macs / traced.macs_of_image)
    assert cost_of(traced, coupling, first).spent_without(()).latency == 0
