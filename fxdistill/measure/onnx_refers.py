"""What an ONNX file refers to: weights in files beside it, operators of others. Looked at before it is opened.

ONNX Runtime reads external weights where the file says that they lie, and some operators load what they name. Here a
file may refer to plain files in its own folder, and to operators of ONNX, of ONNX Runtime (without those that load
something), or that the file itself defines.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from fxdistill.errors import ModelError, first_line

_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
_LOADING = frozenset(("EPContext",))
_DEEPEST = 16


def check(path: Path) -> None:
    """Check that a file refers to nothing but what lies in its folder.

    Raises:
        ModelError: It does, or is no ONNX file.
    """
    try:
        wrong = _wrong(onnx.load_model(path, load_external_data=False), path.parent)
    except Exception as cause:  # of protobuf and onnx, which share no base class
        why = f"the file is no ONNX model: {first_line(cause)}"
        raise ModelError(why, where=str(path), hint="export it anew") from cause
    if wrong:
        raise ModelError(
            f"the file refers to {wrong}", where=str(path),
            hint="give a file that holds its weights, or has them in files beside it, and uses ONNX's own operators",
        )  # fmt: skip


def _wrong(model: ModelProto, folder: Path) -> str:
    """What a model must not refer to; '' for nothing."""
    own = {function.domain for function in model.functions}
    trained = [graph for info in model.training_info for graph in (info.initialization, info.algorithm)]
    nodes = [node for function in model.functions for node in function.node]
    for part in (*_graph(model.graph, 0), *(part for graph in trained for part in _graph(graph, 0)), *_nodes(nodes, 0)):
        if isinstance(part, NodeProto):
            if part.domain not in _DOMAINS | own or part.op_type in _LOADING:
                return f"the operator '{part.domain}.{part.op_type}', which is not ONNX's own"
        elif wrong := _place(part, folder):
            return wrong
    return ""


def _graph(graph: GraphProto, depth: int) -> Iterator[NodeProto | TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _nodes(graph.node, depth)


def _nodes(nodes: "list[NodeProto]", depth: int) -> Iterator[NodeProto | TensorProto]:
    if depth > _DEEPEST:
        raise ValueError("its graphs are nested too deeply")
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _attribute(attribute, depth)


def _attribute(attribute: AttributeProto, depth: int) -> Iterator[NodeProto | TensorProto]:
    yield from (attribute.t, *attribute.tensors)
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    for graph in (attribute.g, *attribute.graphs):
        yield from _graph(graph, depth + 1)


def _place(tensor: TensorProto, folder: Path) -> str:
    """What is wrong with where a tensor's numbers lie."""
    if not tensor.external_data and tensor.data_location != TensorProto.EXTERNAL:
        return ""
    places = [entry.value for entry in tensor.external_data if entry.key == "location"]
    if len(places) != 1:
        return f"the weights '{tensor.name}' in no one place"
    (place,) = places
    plain = place not in ("", ".", "..") and not set("/\\\0:") & set(place)
    file = folder / place
    if not plain or file.is_symlink() or not file.is_file():
        return f"weights in '{place}', which is no file in its folder"
    return ""
