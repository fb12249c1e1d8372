"""ONNX files: weights that lie elsewhere, operators that load, graphs that take memory, files that are none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, helper

from fxdistill.runtime.deployment import deploy
from tests.security.made import EVIL, Attack, Make, file

OPSET = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1), helper.make_opsetid("com.microsoft", 1)]


def model(*nodes: Any, weights: tuple[TensorProto, ...] = (), **metadata: str) -> ModelProto:
    """A classifier of digits that ends with these nodes, from ``m`` to ``y``."""
    first = [
        helper.make_node("Flatten", ["input"], ["f"]),
        helper.make_node("Slice", ["f", "zero", "ten", "one"], ["m"]),
    ]
    numbers = [
        helper.make_tensor(name, TensorProto.INT64, [1], [n]) for name, n in (("zero", 0), ("ten", 10), ("one", 1))
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1, 8, 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([*first, *nodes], "g", inputs, outputs, [*numbers, *weights])
    made = helper.make_model(graph, opset_imports=OPSET)
    made.ir_version = 8
    helper.set_model_props(made, {f"fxdistill.{name}": value for name, value in metadata.items()})
    return made


def external(*places: str, **more: str) -> TensorProto:
    """Weights that lie in a file."""
    made = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[10], data_location=TensorProto.EXTERNAL)
    for key, value in (*(("location", place) for place in places), *more.items()):
        entry = made.external_data.add()
        entry.key, entry.value = key, value
    return made


ADD = helper.make_node("Add", ["m", "w"], ["y"])
SAME = helper.make_node("Identity", ["m"], ["y"])


def written(made: ModelProto, more: Callable[[Path], object] = lambda _: None) -> Make:
    """The file, in a folder below one that holds a secret."""

    def make(folder: Path) -> Path:
        (folder / "secret").write_bytes(bytes(40))
        (folder / "in").mkdir()
        more(folder / "in")
        (folder / "in" / "a.onnx").write_bytes(made.SerializeToString())
        return folder / "in" / "a.onnx"

    return make


def used(path: Path) -> object:
    return deploy.evaluate(path, data="digits")


def constant(value: TensorProto) -> Any:
    return helper.make_node("Constant", [], ["w"], value=value)


def inside() -> Any:
    """A condition whose branches have weights of their own."""
    branch = helper.make_graph(
        [helper.make_node("Add", ["m", "w"], ["b"])], "b", [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)], [external("../secret")],
    )  # fmt: skip
    truth = helper.make_node("Constant", [], ["t"], value=helper.make_tensor("t", TensorProto.BOOL, [1], [True]))
    return truth, helper.make_node("If", ["t"], ["y"], then_branch=branch, else_branch=branch)


def huge(size: int) -> tuple[Any, ...]:
    shape = helper.make_node("Constant", [], ["s"], value=helper.make_tensor("s", TensorProto.INT64, [1], [size]))
    return shape, helper.make_node("ConstantOfShape", ["s"], ["y"])


REFERS: dict[str, Make] = {
    "weights above": written(model(ADD, weights=(external("../secret"),))),
    "weights at an absolute place": written(model(ADD, weights=(external("/etc/hostname"),))),
    "weights below": written(model(ADD, weights=(external("x/../../secret"),))),
    "weights in a place of Windows": written(model(ADD, weights=(external("..\\secret"),))),
    "weights behind a link": written(
        model(ADD, weights=(external("x"),)), lambda folder: (folder / "x").symlink_to("../secret")
    ),
    "weights that are not there": written(model(ADD, weights=(external("x"),))),
    "weights in a device": written(model(ADD, weights=(external("/dev/zero"),))),
    "weights in two places": written(model(ADD, weights=(external("a.onnx", "../secret"),))),
    "weights in no place": written(model(ADD, weights=(external(),))),
    "weights in a place with a NUL": written(model(ADD, weights=(external("a\0b"),))),
    "weights in a folder": written(model(ADD, weights=(external("."),))),
    "weights of a constant": written(model(constant(external("../secret")), ADD)),
    "weights in a branch": written(model(*inside())),
    "weights in memory of the process": written(model(ADD, weights=(external("*/_ORT_MEM_ADDR_/*", offset="4096"),))),
    "an operator of others": written(model(helper.make_node("Evil", ["m"], ["y"], domain="evil"))),
    "an operator that loads": written(
        model(helper.make_node("EPContext", ["m"], ["y"], domain="com.microsoft", ep_cache_context="../secret"))
    ),
    "an operator that is Python": written(model(helper.make_node("PyOp", ["m"], ["y"], domain="ai.onnx.contrib"))),
    "an operator that there is not": written(model(helper.make_node("Evil", ["m"], ["y"]))),
    "zeros of 4 TB": written(model(*huge(2**40))),
    "zeros of -1": written(model(*huge(-1))),
    "metadata that is none": written(model(SAME, preprocessing='{"size": [100000000, 8]}')),
    "metadata, deep": written(model(SAME, classes="[" * 100_000)),
    "metadata, a task that is a path": written(model(SAME, task="../x")),
    "no answer": written(model()),
    "garbage": file("a.onnx", b"\x08\x08\x12\x07pytorch" + bytes(range(256))),
    "a pickle": file("a.onnx", EVIL),
    "nothing": file("a.onnx", b""),
    "half of one": file("a.onnx", model(SAME).SerializeToString()[:-30]),
}
ATTACKS: dict[str, Attack] = {f"onnx, {name}": Attack(make, used) for name, make in REFERS.items()}
