"""Graphs as data: bit for bit the model that was written, trainable, and nothing in a made file that could run."""

import copy
import sys
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.nn import functional, utils
from torch.nn.utils import parametrizations

from fxdistill import container
from fxdistill.errors import ModelError
from fxdistill.modelfiles import graphs
from fxdistill.modelfiles.graphs.vocabulary import functions
from fxdistill.passes.trace import Trace

SHAPE = (2, 3, 32, 32)


class Mixed(nn.Module):
    """Slices, methods, constants, attributes, keywords, a tied weight, a buffer that is not persistent."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, padding=1), nn.Conv2d(8, 8, 1)
        self.blocks = nn.Sequential(OrderedDict({"block1-0": nn.Identity()}))
        self.b.weight.requires_grad = False
        self.norm, self.drop, self.act = nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Hardtanh(-1.0, float("inf"))
        self.c = nn.Conv2d(8, 8, 1)
        self.c.weight = self.b.weight
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.7))
        self.shift: torch.Tensor
        self.register_buffer("shift", torch.arange(8.0).view(1, 8, 1, 1), persistent=False)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        y = self.drop(self.act(self.norm(self.blocks(self.a(x)))))
        n, c = y.shape[0], y.size(1)
        y = self.b(y) * self.scale + self.c(y).to(torch.float32)
        y = functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)[..., ::2, 1:] - self.shift
        y = torch.where(y > 0, y, torch.zeros_like(y).fill_(0.1)).clamp(max=3.0)
        return {"logits": self.fc(y.mean(dim=(2, 3)).reshape(n, c)), "maps": (y, y.flatten(1).softmax(-1))}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.attend = nn.GRU(3 * 32, 8, batch_first=True), nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=functional.gelu, dropout=0.0)

    def forward(self, x):
        y = self.rnn(x.permute(0, 2, 1, 3).flatten(2))[0]
        y = self.attend(query=y, key=y, value=y)[0]
        return self.layer(functional.scaled_dot_product_attention(query=y, key=y, value=y)).mean(1)


def models():
    torch.manual_seed(0)
    return Mixed(), Recurrent(), torchvision.models.mobilenet_v3_small(num_classes=7)


def written(model, rungs=("symbolic",)):
    traced = Trace(SHAPE, rungs=rungs)(model.eval()).value
    with traced.running():
        return traced, container.to_bytes("graph", graphs.to_data(traced.module, where="here"), where="")


def read(whole):
    return graphs.from_data(container.from_bytes(whole, where="here", kinds=("graph",))[1], where="here")


def leaves(value):
    return torch.utils._pytree.tree_leaves(value)


@pytest.mark.parametrize(
    ("model", "rung"),
    [*((model, "symbolic") for model in models()), (torchvision.models.shufflenet_v2_x0_5(), "export")],
)
def test_what_is_read_answers_bit_for_bit_and_has_the_same_paths(model, rung):
    traced, whole = written(model, (rung,))
    found = read(whole)
    images = torch.randn(SHAPE)
    with torch.no_grad():
        expected, got = model(images.clone()), found(images.clone())
    assert all(torch.equal(a, b) for a, b in zip(leaves(expected), leaves(got), strict=True))
    again = Trace(SHAPE)(found).value
    assert [n.meta["path"] for n in traced.graph.nodes] == [n.meta["path"] for n in again.graph.nodes]
    assert container.to_bytes("graph", graphs.to_data(found, where=""), where="") == whole


def test_training_it_is_training_the_model():
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v3_small(num_classes=7)
    found = read(written(model)[1])
    images = torch.randn(4, *SHAPE[1:])
    for one in (model.train(), found.train()):
        torch.manual_seed(1)
        one(images).square().sum().backward()
    gradients = dict(found.named_parameters())
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(p.grad, gradients[n].grad) for n, p in model.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), found.buffers(), strict=True))


def test_tied_weights_stay_tied_frozen_ones_frozen_and_buffers_what_they_were():
    model = Mixed()
    found = read(written(model)[1])
    assert found.b.weight is found.c.weight
    assert not found.b.weight.requires_grad
    assert found.state_dict().keys() == fx.symbolic_trace(model).state_dict().keys()  # torch 2.11 keeps 'shift', too
    assert dict(found.named_buffers()).keys() == dict(model.named_buffers()).keys()


def doubled(layer):
    layer.register_forward_hook(lambda _layer, _inputs, output: output * 2)
    return layer


@pytest.mark.parametrize(
    "change",
    [parametrizations.weight_norm, utils.weight_norm, utils.spectral_norm, doubled],
    ids=["parametrized", "by a hook", "spectral", "output"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated.*")
def test_what_hooks_compute_is_written_as_operations(change):
    torch.manual_seed(0)
    model = nn.Sequential(change(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Flatten(), change(nn.Linear(288, 5))).eval()
    found = graphs.from_data(graphs.of_model(model, input_shape=(1, 3, 8, 8), where="here"), where="here").eval()
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(found(images), model(images))
    assert dict(found.named_parameters()).keys() == dict(model.named_parameters()).keys()


class Own(nn.Module):
    def forward(self, x):
        return x + 1 if float(x.sum()) != float("inf") else x


def own_function(x):
    return x * 2


def refused_models():
    hooked = nn.Sequential(nn.Conv2d(3, 4, 1))
    hooked[0].register_forward_hook(lambda *_: None)
    graph, root = fx.Graph(), nn.Module()
    root.own = Own()
    graph.output(graph.call_module("own", (graph.placeholder("x"),)))
    yield "layer", fx.GraphModule(root, graph), "'own' is a Own"
    graph = fx.Graph()
    graph.output(graph.call_function(own_function, (graph.placeholder("x"),)))
    yield "function", fx.GraphModule(nn.Module(), graph), "own_function"
    graph = fx.Graph()
    graph.output(graph.call_method("apply_", (graph.placeholder("x"), 1)))
    yield "method", fx.GraphModule(nn.Module(), graph), "apply_"
    yield "hook", fx.symbolic_trace(hooked), "hook"


@pytest.mark.parametrize(("name", "model", "said"), list(refused_models()))
def test_what_cannot_be_written_down_is_refused_by_name(name, model, said):
    with pytest.raises(ModelError, match=said):
        graphs.to_data(model, where="here")


def simple():
    torch.manual_seed(0)
    return graphs.to_data(fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())), where="")


def node(op, target, args=({"node": "input_1"},), name="new", **kwargs):
    return {
        "op": op,
        "name": name,
        "target": target,
        "scope": "",
        "args": args,
        "kwargs": {"dict": list(kwargs.items())},
    }


MARK = "__import__('sys').__dict__.__setitem__('fxdistill_ran', 1)"
ATTACKS = {
    "function of another module": node("call_function", "os.system", ("true",)),
    "import": node("call_function", "builtins.__import__", ("os",)),
    "eval": node("call_function", "builtins.eval", (MARK,)),
    "torch.load": node("call_function", "torch.load", ("x",)),
    "torch.save": node("call_function", "torch.save", ({"node": "input_1"}, "x")),
    "torch.from_file": node("call_function", "torch.from_file", ("x",)),
    "aten.from_file": node("call_function", "aten.from_file.default", ("x",)),
    "aten packet of another name": node("call_function", "aten.add.__class__", ()),
    "another library of operators": node("call_function", "image.write_file.default", ("x",)),
    "torchvision.io": node("call_function", "torchvision.write_file", ("x",)),
    "operator.attrgetter": node("call_function", "operator.attrgetter", ("x",)),
    "operator.methodcaller": node("call_function", "operator.methodcaller", ("x",)),
    "operator.call": node("call_function", "operator.call", ("x",)),
    "getattr of what is no attribute of a tensor": node(
        "call_function", "builtins.getattr", ({"node": "input_1"}, "__class__")
    ),
    "getattr by a node": node("call_function", "builtins.getattr", ({"node": "input_1"}, {"node": "input_1"})),
    "method that calls back": node("call_method", "apply_"),
    "method with code behind it": node("call_method", f"relu(), {MARK}"),
    "dunder method": node("call_method", "__reduce_ex__", ({"node": "input_1"}, 2)),
    "name with code in it": node("call_method", "relu", name=f"x = {MARK} #"),
    "attribute with code in it": node("get_attr", f"a', {MARK}, '", ()),
    "layer with code in its path": node("call_module", f"0'), {MARK}, ('"),
    "input with code in it": node("placeholder", f"y={MARK}", ()),
    "keyword with code in it": node("call_method", "relu", **{f"a={MARK}, b": 1}),
    "keyword that is Python's": node("call_method", "relu", **{"lambda": 1}),
    "unknown kind of value": node("call_method", "relu", ({"code": MARK},)),
    "unknown constant": node("call_method", "to", ({"node": "input_1"}, {"constant": "load"})),
    "unknown function as a value": node("call_method", "to", ({"node": "input_1"}, {"function": "os.system"})),
    "unknown kind of node": node("exec", MARK),
    "node that is not there": node("call_method", "relu", ({"node": "ghost"},)),
    "layer that is not there": node("call_module", "9"),
    "name that is no text": node("call_method", "relu", name=5),
    "globals of a layer's method": node("get_attr", "0.__init__.__globals__", ()),
    "method of a layer": node("get_attr", "0.forward", ()),
    "class of a layer": node("get_attr", "0.__class__", ()),
    "attribute of a layer": node("get_attr", "0._parameters", ()),
    "layer as a value": node("get_attr", "0", ()),
    "method of a layer, called": node("call_module", "0.forward"),
    "function that max would call": node("call_function", "builtins.max", (["x"],), key={"function": "torch.zeros"}),
    "attribute by its dunder": node("call_method", "__getattr__", ({"node": "input_1"}, "x")),
    "dunder of a known name": node("call_function", "builtins.getattr", ({"node": "input_1"}, "__new__")),
    "input that is called self": node("placeholder", "self", (), name="other"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_made_node_is_refused_and_runs_nothing(attack):
    data = simple()
    made = copy.deepcopy(ATTACKS[attack])
    data["nodes"] = [*data["nodes"][:-1], made, data["nodes"][-1]]
    with pytest.raises(ModelError, match="graph in the file"):
        graphs.from_data(data, where="here")
    assert not hasattr(sys, "fxdistill_ran")


def layer(**changes):
    data = simple()
    data["modules"]["modules"]["0"] |= changes
    return data


@pytest.mark.parametrize(
    "data",
    [
        layer(**{"class": "Own"}),
        layer(**{"class": "DataParallel"}),
        layer(**{"class": "__class__"}),
        layer(attributes={"forward": "text"}),
        layer(attributes={"__class__": "text"}),
        layer(attributes={"_forward_hooks": {"dict": []}}),
        layer(attributes={"x y": 1}),
        layer(attributes={"__deepcopy__": {"function": "torch.zeros"}}),
        layer(**{"class": ""}),
        {**simple(), "nodes": [{**simple()["nodes"][0], "target": "self"}, simple()["nodes"][-1]]},
        layer(attributes={"stride": {"function": "os.system"}}),
        layer(parameters={"weight": {"value": "text", "grad": True}}),
        layer(parameters={"a.b": {"value": torch.ones(1), "grad": True}}),
        layer(buffers={"weight": {"value": None, "persistent": True}}),
        layer(modules={f"a', {MARK}, '": simple()["modules"]}),
        layer(modules=[]),
        {**simple(), "nodes": []},
        {"nodes": []},
        {"modules": [], "nodes": 5},
    ],
)
def test_a_made_layer_is_refused(data):
    with pytest.raises(ModelError, match="graph in the file"):
        graphs.from_data(data, where="here")
    assert not hasattr(sys, "fxdistill_ran")


def test_the_table_holds_nothing_that_reads_or_writes_files_or_calls_what_it_is_given():
    names = {name.partition(".")[2] for name in functions()}
    assert not names & {
        "load",
        "save",
        "from_file",
        "compile",
        "vmap",
        "apply",
        "map",
        "call",
        "attrgetter",
        "eval",
        "exec",
    }
    assert {"add", "cat", "relu", "conv2d", "getattr"} <= names


def test_a_model_that_only_torch_export_can_trace_is_refused_for_what_cannot_be_written() -> None:
    class Assigned(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.zeros_like(x)
            y[:, :1] = x[:, 1:2]
            return y

    with pytest.raises(ModelError, match=r"cannot be written down as a graph(.|\n)*save it with the factory"):
        graphs.of_model(Assigned(), input_shape=SHAPE, where="a.pt")
