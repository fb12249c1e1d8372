"""Trace: exact in both modes, with stable paths, right costs, and nothing changed in the module."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.models.inception import InceptionOutputs

from fxdistill.errors import ModelError, PassError
from fxdistill.ir.contract import PassManager
from fxdistill.ir.graph import Traced, macs_of, main_output, memory, path_of, shape_of, written
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Rung
from tests import tiny_models
from tests.tiny_models import BODIES, SHAPE, awake


def trace(module: nn.Module, shape: tuple[int, ...] = SHAPE, **options: Any) -> Traced:
    return Trace(shape, **options)(module).value


def state(module: nn.Module) -> dict[str, object]:
    """Everything about a module that tracing must leave as it is."""
    return {
        "tensors": {n: t.clone() for n, t in module.state_dict().items()},
        "modes": [m.training for m in module.modules()],
        "gradients": [p.requires_grad for p in module.parameters()],
        "attributes": [sorted(vars(m)) for m in module.modules()],
    }


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors, others = one["tensors"], other["tensors"]
    same = tensors.keys() == others.keys() and all(torch.equal(tensors[n], others[n]) for n in tensors)
    return same and {**one, "tensors": 0} == {**other, "tensors": 0}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_answers_as_the_module_and_leaves_it_alone(name: str, training: bool) -> None:
    module = awake(BODIES[name](8))
    module.train(not training)
    before, generator = state(module), torch.get_rng_state()
    traced = trace(module, training=training)
    assert equal(state(module), before)
    assert torch.equal(torch.get_rng_state(), generator)
    images = torch.randn(3, *SHAPE[1:])
    module.train(training)
    torch.manual_seed(1)
    expected = module(images.clone())
    after = {n: b.clone() for n, b in module.named_buffers()}
    module.load_state_dict(before["tensors"])  # type: ignore[arg-type]
    module.train(not training)
    with traced.running() as graph:
        torch.manual_seed(1)
        assert torch.equal(graph(images.clone()), expected)
    assert all(torch.equal(b, after[n]) for n, b in module.named_buffers())
    assert {id(p) for p in graph.parameters()} <= {id(p) for p in module.parameters()}


@pytest.mark.parametrize("training", [False, True])
def test_what_does_not_trace_is_exported_in_both_modes(training: bool) -> None:
    module = awake(tiny_models.Steered())
    before = state(module)
    result = Trace((1, *SHAPE[1:]), training=training)(module)
    assert result.value.rung == "export"
    assert equal(state(module), before)
    (first, *_) = result.diagnostics
    assert (first.code, first.severity) == ("trace-rung", "note")
    assert "symbolic" in first.why
    images = torch.randn(5, *SHAPE[1:])  # another batch than the one that was traced
    module.train(training)
    torch.manual_seed(3)
    expected = module(images)
    module.load_state_dict(before["tensors"])  # type: ignore[arg-type]
    torch.manual_seed(3)
    assert torch.equal(result.value.module(images), expected)


@pytest.mark.parametrize("rung", ["symbolic", "leaves", "export"])
def test_costs_do_not_depend_on_the_rung(rung: Rung) -> None:
    traced = trace(tiny_models.depthwise().eval(), rungs=(rung,))
    batch, _, height, width = SHAPE
    first = batch * height * width * 8 * 3 * 9
    grouped = batch * height * width * 8 * 1 * 9
    assert traced.macs == first + grouped + batch * 8 * 5


def test_costs_of_attention() -> None:
    layer = nn.TransformerEncoderLayer(d_model=16, nhead=4, dim_feedforward=32, dropout=0.0, batch_first=True)
    tokens, width = 9, 16
    traced = trace(nn.Sequential(layer).eval(), (2, tokens, width))
    projections, products, feedforward = 4 * width * width, 2 * tokens * width, 2 * width * 32
    assert traced.macs == 2 * tokens * (projections + products + feedforward)


def test_costs_of_attention_in_the_memory_that_its_kernel_gives() -> None:
    class Viewing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            heads = x.unflatten(2, (2, 4)).transpose(1, 2)
            return nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).view(x.shape)

    tokens, width = 9, 8
    assert trace(Viewing().eval(), (2, tokens, width)).macs == 2 * 2 * tokens * tokens * width


def test_attention_behind_control_flow_on_shapes_is_exported() -> None:
    """Torch's fused kernel for it in eval mode rounds otherwise than its parts, which an exported graph has."""

    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x if x.shape[1] < 32 else x[:, ::2]
            found: Tensor = self.attention(x, x, x, need_weights=False)[0]
            return found

    fast = torch.backends.mha.get_fastpath_enabled()
    assert trace(Attentive().eval(), (2, 64, 8)).rung == "export"
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_costs_of_convolutions() -> None:
    layers = (nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3), nn.ConvTranspose2d(6, 4, 2, stride=2))
    module = nn.Sequential(*layers, nn.Conv2d(4, 2, (1, 3), bias=False))
    traced = trace(module.eval(), (1, 3, 8, 8))
    costs = [macs_of(node) for node in traced.graph.nodes if node.op == "call_module"]
    assert costs == [4 * 4 * 6 * 1 * 9, 4 * 4 * 6 * 4 * 4, 8 * 6 * 2 * 4 * 3]


@pytest.mark.parametrize("width", [1, 2])
def test_costs_of_a_sum_of_products_whatever_the_width(width: int) -> None:
    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(width, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("nchw,ck->nkhw", x[:, :width], self.weight)

    assert trace(Summing().eval(), (2, 3, 8, 8)).macs == 2 * 8 * 8 * width * 5


def test_one_image_in_training_mode_has_its_own_shapes_and_cost() -> None:
    """Batch statistics need two images; what does not grow with the batch, such as a bias of four heads, stays."""

    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.heads = nn.BatchNorm1d(4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            bias = self.heads.weight * 2
            logits: Tensor = self.norm(self.heads(x.mean((2, 3)) @ torch.ones(3, 4))) + bias.sum(0)
            return logits

    traced = trace(Biased(), (1, 3, 8, 8), training=True)
    shapes = {path_of(node): shape_of(node) for node in traced.graph.nodes}
    assert shapes["mul"] == (4, 4)
    assert shapes["norm"] == (1, 4)
    assert traced.macs == 3 * 4 + 4 * 4


def test_paths_are_those_of_modules_and_do_not_collide() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.relu_1 = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            total: Tensor = self.relu(self.relu_1(self.relu(self.relu(x)))) + x
            return total

    paths = [path_of(node) for node in trace(Twice()).graph.nodes]
    assert paths == ["x", "relu", "relu_1", "relu_1_1", "relu_2", "add", "output"]


def test_graph_text() -> None:
    text = str(trace(tiny_models.residual().eval()).graph).strip()
    assert [line.split(" : ")[0].strip() for line in text.splitlines()[1:-1]] == [
        "%x", "%body_stem_0", "%body_stem_1", "%body_stem_2", "%body_first", "%relu", "%body_second_0",
        "%body_second_1", "%add", "%relu_1", "%mean", "%head",
    ]  # fmt: skip


def test_memory_that_is_written_to_is_noted() -> None:
    traced = trace(tiny_models.overwriting_a_view().eval())
    nodes = {path_of(node): node for node in traced.graph.nodes}
    (writer,) = [node for node in traced.graph.nodes if written(node, traced.module)]
    group = memory(traced.graph, traced.module)
    assert path_of(writer) == "body.mul_"
    assert group[nodes["body.conv"]] == group[nodes["body.identity"]] == group[writer] != group[nodes["body.relu"]]


def test_a_place_of_inplace_by_position_is_known() -> None:
    class Positional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.dropout(x * 1, 0.5, False, True), True)

    traced = trace(Positional())
    for node in traced.graph.nodes:
        node.meta.pop("writes", None)  # known from the call alone
    assert [path_of(n) for n in traced.graph.nodes if written(n, traced.module)] == ["dropout", "relu"]


def test_a_buffer_that_changes_in_eval_mode_is_not_lost() -> None:
    module = tiny_models.Counting().eval()
    traced = trace(module)
    assert module.calls == 0
    assert traced.rung == "export"
    traced.module(torch.randn(SHAPE))
    assert module.calls == 1


class Sized(nn.Module):
    """Takes images of one size alone."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 2, 3, 2, 1), nn.Linear(2 * (side // 2) ** 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))  # type: ignore[no-any-return]


class Remembering(nn.Module):
    """Keeps what it computed for a size of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.register_buffer("places", torch.zeros(1), persistent=False)

    def forward(self, x: Any) -> Tensor:
        if type(x) is not fx.Proxy:
            self.places = torch.arange(float(x.shape[-1]))
        return self.conv(x)  # type: ignore[no-any-return]


class Reading(nn.Module):
    """Makes what no shape tells: values decide how large it is."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x[x > 0].sum()


class Beside(nn.Module):
    """Reads a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def facts(traced: Traced) -> list[object]:
    kept = ("path", "scope", "shape", "macs", "writes", "shares")
    return [traced.rung, str(traced.graph), *({k: node.meta.get(k) for k in kept} for node in traced.graph.nodes)]


@pytest.mark.parametrize(
    "make",
    [
        *BODIES.values(), lambda: Sized(96), Remembering, Reading, Beside, tiny_models.Counting,
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(), nn.InstanceNorm2d(4)),
        lambda: nn.Sequential(nn.Flatten(2), nn.LSTM(96 * 96, 4, batch_first=True)),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.Flatten(2), nn.TransformerEncoderLayer(36, 4, 8)),
    ],
)  # fmt: skip
def test_a_quick_trace_says_what_a_thorough_one_says(make: Callable[[], nn.Module]) -> None:
    module, shape = awake(make()), (1, 3, 96, 96)
    before = state(module)
    found = []
    for quick in (False, True):
        evaluated = trace(module, shape, quick=quick)
        trained = trace(module, shape, quick=quick, training=True, eval_mode=evaluated)
        found.append((facts(evaluated), facts(trained)))
    assert found[0] == found[1]
    assert equal(state(module), before)


def test_a_quick_trace_is_compared_as_well() -> None:
    """A choice that a tracer freezes shows on small images too; and a model that does not run says so of its size."""

    class Drawn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * random.random()

    with pytest.raises(ModelError, match="could not be traced: symbolic: the graph's output differs"):
        trace(Drawn(), (1, 3, 96, 96), quick=True)
    with pytest.raises(ModelError, match="does not run on an input of shape 1x3x96x96"):
        trace(Sized(64), (1, 3, 96, 96), quick=True)


@pytest.mark.parametrize("size", [32, 224, 256])
def test_an_example_of_another_shape_is_another_shape(size: int) -> None:
    with pytest.raises(ModelError, match="does not run") as caught:
        trace(Sized(64), (1, 3, size, size))
    assert "e.g. --input 1x3x" in caught.value.hint
    assert f"1x3x{size}x{size};" not in caught.value.hint


def test_double_precision() -> None:
    module = awake(tiny_models.residual().double().eval())
    traced = trace(module)
    images = torch.randn(SHAPE, dtype=torch.float64)
    assert torch.equal(traced.module(images), module(images))


def writes_named_tuples() -> bool:
    """Whether a graph may end in one; 2.11's may not."""
    graph = fx.Graph()
    image = graph.placeholder("image")
    graph.output(InceptionOutputs(image, image))
    try:
        return bool(fx.GraphModule(nn.Module(), graph)(1) == (1, 1))
    except NameError:
        return False


@pytest.mark.parametrize(("as_dict", "training"), [(False, True), (False, False), (True, False)])
@pytest.mark.parametrize("rung", ["symbolic", "export"])
def test_the_prediction_of_a_structured_output(as_dict: bool, training: bool, rung: Rung) -> None:
    if rung == "export" and training and not writes_named_tuples():
        pytest.skip("this torch writes a graph's named tuple by a name that it does not define")
    module = tiny_models.Auxiliary(as_dict=as_dict)
    traced = trace(module, training=training, rungs=(rung,))
    assert shape_of(traced.output) == (2, 5)
    source = traced.output.args[0] if rung == "export" else traced.output
    assert "main" in str(traced.output.meta["scope"] or traced.output.target), source


def test_an_output_without_tensor_is_refused() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.chunk(x, 2, 1)

    with pytest.raises(Exception, match="the model's output is not a tensor"):
        main_output(trace(Halves()).graph)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 8, 8), "does not run on an input of shape 1x4x8x8"),
        ((1, 3, 0, 8), "no shape of a batch"),
        ((3,), "no shape"),
    ],
)
def test_a_wrong_input_shape_is_the_users(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        PassManager().run(Trace(shape), tiny_models.plain())
    assert caught.value.exit_code == 2
    assert "--input" in caught.value.hint


def test_a_model_that_no_rung_traces_names_every_rung() -> None:
    class Chance(nn.Module):
        """Never the same twice, whatever the seed."""

        count = 0

        def forward(self, x: Tensor) -> Tensor:
            Chance.count += 1
            return x * Chance.count

    with pytest.raises(ModelError, match=r"symbolic: .*; leaves: .*; export: "):
        trace(Chance())


def test_a_pass_error_chains_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("fxdistill.passes.trace.annotate", broken)
    with pytest.raises(PassError, match="the pass 'trace' failed: RuntimeError: no") as caught:
        PassManager().run(Trace(SHAPE), tiny_models.plain())
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("name", ["code", "graph"])
def test_names_that_graphs_use_themselves_are_refused(name):
    net = nn.Sequential(nn.Flatten())
    net.add_module(name, nn.Linear(4, 2))
    with pytest.raises(ModelError, match=f"a part called '{name}'") as caught:
        Trace(input_shape=(1, 4))(net)
    assert "another name" in caught.value.hint
