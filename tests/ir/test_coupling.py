"""The coupling as data: layers, members, locks and chains, on a coupling that was written down by hand."""

import torch
from torch import fx

from fxdistill.ir.coupling import Coupling, Lock, core, flat_layers, varying
from fxdistill.ir.survivors import Survivors


def spread(labels: list[int], dim: int, shape: tuple[int, ...]) -> torch.Tensor:
    view = [1] * len(shape)
    view[dim] = -1
    return torch.tensor(labels).view(view).expand(shape)


def coupling() -> Coupling:
    """a (4 channels, the last two locked) -> b, with labels 1 to 4 in the classes 1, 1, 2, 3."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_module("a", (x,))
    b = graph.call_module("b", (a,))
    graph.output(b)
    for node in graph.nodes:
        node.meta["path"] = node.name
    shape = (1, 4, 5, 5)
    return Coupling(
        graph=graph,
        values={
            "x": (),
            "a": (spread([1, 2, 3, 4], 1, shape),),
            "b": [(spread([3, 4], 1, (1, 2)),), None],
            "output": None,
        },
        parameters={
            "m.a.weight": {0: spread([1, 2, 3, 4], 0, (4, 3))},
            "m.b.weight": {1: spread([1, 2, 3, 4], 1, (2, 4)), 0: spread([0, 0], 0, (2, 4))},
            "n.bias": {0: torch.tensor([3, 4])},
        },
        roles={("m.a.weight", 0): "out", ("m.b.weight", 1): "in"},
        class_of=torch.tensor([0, 1, 1, 2, 3]),
        locks={2: Lock("is wanted", "b"), 3: Lock("is wanted", "b")},
    )


def test_labels_of_a_node():
    c = coupling()
    assert c.class_count == 3
    assert c.channel_dim("a") == 1
    assert c.classes("a") == (1, 1, 2, 3)
    (labels,) = c.layers("a")
    assert labels.shape == (1, 4, 5, 5)
    assert labels.stride()[2:] == (0, 0)
    assert c.layers("x") == ()
    assert c.channel_dim("b") is None
    assert c.classes("b") == ()
    assert [layer.tolist() for layer in flat_layers(c.structure("b"))] == [[[2, 3]]]


def test_members_and_groups():
    c = coupling()
    assert [(m.parameter, m.path, m.dim, m.kind, m.indices) for m in c.slices(1)] == [
        ("m.a.weight", "m.a", 0, "out", (0, 1)),
        ("m.b.weight", "m.b", 1, "in", (0, 1)),
    ]
    assert c.slices(99) == ()
    assert c.groups == ((1,), (2, 3))
    assert c.group_of(3) == (2, 3)
    assert c.group_of(99) == (99,)


def test_what_survives():
    c = coupling()
    alive = Survivors(c, {1}).of_tensor("a")
    assert alive is not None
    assert alive.full[0, :, 0, 0].tolist() == [False, False, True, True]
    assert alive.shape == (1, 4, 5, 5)
    assert Survivors(c, {1}).of("x") is None
    weight = Survivors(c, {2}).of_parameter("m.b.weight")
    assert weight is not None
    assert weight.full.tolist() == [[True, True, False, True]] * 2
    assert Survivors(c, {1}).of_parameter("unknown") is None
    assert c.parameter_labels("m.a.weight")[0][:, 0].tolist() == [1, 1, 2, 3]


def test_locks_and_chains():
    c = coupling()
    assert c.locked(1) is None
    assert c.locked(2) == "is wanted at 'b'"
    assert c.chain("a", 2) == ("a", "b")
    assert c.chain("a", 1) == ()
    assert c.chain("nowhere", 2) == ()
    assert 3 in c.carried("a")
    assert 3 not in c.carried("x")


def test_core_cuts_what_is_broadcast():
    labels = torch.arange(3).view(1, 3, 1).expand(2, 3, 4)
    assert core(labels).shape == (1, 3, 1)
    assert varying(labels) == (1,)
    assert varying(torch.zeros(2, 3, dtype=torch.int64)) == ()
    assert varying(torch.tensor([[1, 2], [1, 2]])) == (1,)
    assert core(labels[:, 1:])[0, :, 0].tolist() == [1, 2]
