"""Bundles: graphs that would do more than compute, content that lies about itself, factories that do not only build."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fxdistill import container
from fxdistill.modelfiles import factories
from fxdistill.modelfiles.load import load
from fxdistill.runtime.deployment import deploy
from tests.security.made import EVIL, MARK, TOUCH, Attack, Content, Make, bundle_with, file, plan_with

Change = Callable[[Content], object]
INPUT = {"node": "input_1"}
HUGE = 2**40


def used(path: Path) -> object:
    """The model read and run: its answers on real images."""
    return deploy.evaluate(str(path), data="digits")


def node(op: str, target: str, *args: Any, at: int = 1, name: str = "new", **kwargs: Any) -> Change:
    """A graph with one node more."""

    def change(content: Content) -> None:
        made = {"op": op, "name": name, "target": target, "scope": "", "args": args}
        content["graph"]["nodes"].insert(at, {**made, "kwargs": {"dict": [list(pair) for pair in kwargs.items()]}})

    return change


def keyword(name: str) -> Change:
    """A graph with a call that has an argument of this name."""
    return lambda content: (
        node("call_method", "relu", INPUT)(content),
        _second(content).update(kwargs={"dict": [[name, 1]]}),
    )


def _second(content: Content) -> Content:
    nodes: list[Content] = content["graph"]["nodes"]
    return nodes[1]


def instead(op: str, target: str, *args: Any, **kwargs: Any) -> Change:
    """A graph whose answer is that of this node."""

    def change(content: Content) -> None:
        node(op, target, *args, at=-1, **kwargs)(content)
        content["graph"]["nodes"][-1]["args"] = ({"node": "new"},)

    return change


def call(target: str, *args: Any, **kwargs: Any) -> Change:
    return node("call_function", target, *args, **kwargs)


def chain(*nodes: tuple[str, str, Any]) -> Change:
    """Nodes one after the other behind the first layers, each with its arguments."""

    def change(content: Content) -> None:
        for number, (op, target, args) in enumerate(nodes):
            node(op, target, *args, at=3 + number, name=f"n{number}")(content)

    return change


def layer(**changes: Any) -> Change:
    """A graph whose first layer has other attributes."""
    return lambda content: content["graph"]["modules"]["modules"]["0"]["attributes"].update(changes)


def last(content: Content) -> Content:
    nodes: list[Content] = content["graph"]["nodes"]
    return nodes[-1]


REFUSED: dict[str, Change] = {
    "eval": call("builtins.eval", TOUCH),
    "exec by another name": call("operator.exec", TOUCH),
    "__import__": call("builtins.__import__", "os"),
    "open": call("builtins.open", MARK, "w"),
    "torch.load": call("torch.load", MARK),
    "torch.save": call("torch.save", INPUT, MARK),
    "torch.from_file": call("torch.from_file", MARK, True, 4),
    "from_file": call("aten.from_file.default", MARK),
    "from_file by its packet": call("aten.from_file", MARK),
    "from_file in another space": call("functional.from_file", MARK),
    "write_file": call("image.write_file.default", MARK, INPUT),
    "write_file of torchvision": call("torchvision.write_file", MARK),
    "an operator of prims": call("prims._make_token.default"),
    "a higher-order operator": call("higher_order.cond", INPUT),
    "print": call("aten._print.default", MARK),
    "the source of a function": call("torch.compile", TOUCH),
    "dotted name": call("torch.serialization.load", MARK),
    "a module in the name": call("os.path.join", "a"),
    "in place of nothing": call("torch.evil_", INPUT),
    "method that calls back": node("call_method", "apply_", INPUT, {"function": "torch.relu"}),
    "method that maps": node("call_method", "map_", INPUT, INPUT, {"function": "torch.add"}),
    "method that shares memory": node("call_method", "share_memory_", INPUT),
    "method with a hook": node("call_method", "register_hook", INPUT, {"function": "torch.relu"}),
    "method that pickles": node("call_method", "__reduce_ex__", INPUT, 2),
    "method by its dunder": node("call_method", "__getattr__", INPUT, "x"),
    "constructor by its dunder": node("call_method", "__new__", INPUT),
    "code in a method": node("call_method", f"relu(), exec({TOUCH!r})", INPUT),
    "code in an attribute": node("get_attr", f"a'), exec({TOUCH!r}), ('"),
    "code in a name": node("call_method", "relu", INPUT, name=f"x = exec({TOUCH!r}) #"),
    "code in a line's end": node("call_method", "relu", INPUT, name="x\nimport os"),
    "code in a keyword": keyword(f"a=exec({TOUCH!r}), b"),
    "code in an input": node("placeholder", f"y=exec({TOUCH!r})", at=0),
    "globals of a method": node("get_attr", "0.__init__.__globals__", at=3),
    "globals, and exec as a key": chain(
        ("get_attr", "0.__init__.__globals__", ()),
        ("call_function", "operator.getitem", ({"node": "n0"}, "__builtins__")),
        ("call_function", "operator.getitem", ({"node": "n1"}, "exec")),
        ("call_function", "builtins.max", ([TOUCH], {"node": "n2"})),
    ),
    "a bound method": node("get_attr", "0.forward", at=3),
    "a class": node("get_attr", "0.__class__", at=3),
    "hooks of a layer": node("get_attr", "0._forward_hooks", at=3),
    "a layer as a value": node("get_attr", "0", at=3),
    "a method as a layer": node("call_module", "0.forward", INPUT),
    "key": call("builtins.max", ["x"], key={"function": "torch.zeros"}),
    "getattr of a dunder": call("builtins.getattr", INPUT, "__class__"),
    "getattr of a known name's dunder": call("builtins.getattr", INPUT, "__new__"),
    "getattr of a node": call("builtins.getattr", INPUT, INPUT),
    "getattr of what is stored": call("builtins.getattr", INPUT, "_typed_storage"),
    "setattr": call("builtins.setattr", INPUT, "data", 1),
    "a reference to what is not there": node("call_method", "relu", {"node": "ghost"}),
    "a reference to itself": node("call_method", "relu", {"node": "new"}),
    "a cycle": chain(("call_method", "relu", ({"node": "n1"},)), ("call_method", "relu", ({"node": "n0"},))),
    "two inputs": node("placeholder", "other", at=1),
    "two outputs": node("output", "output", INPUT, at=2, name="out"),
    "an input called self": lambda content: content["graph"]["nodes"][0].update(target="self", name="x"),
    "a layer of one's own": lambda c: c["graph"]["modules"]["modules"]["0"].update({"class": "os.system"}),
    "a layer that is a container": lambda c: c["graph"]["modules"]["modules"]["0"].update({"class": ""}),
    "another forward": layer(forward={"function": "torch.relu"}),
    "another class": layer(__class__="x"),
    "another copy": layer(__deepcopy__={"function": "torch.zeros"}),
    "another state": layer(__setstate__={"function": "torch.zeros"}),
    "a hook": layer(_forward_hooks={"dict": [[1, {"function": "torch.relu"}]]}),
    "a function of os": layer(padding={"function": "os.system"}),
    "a layer in itself under another name": lambda c: c["graph"]["modules"]["modules"].update({"a.b": {}}),
    "no nodes": lambda c: c["graph"].update(nodes=[]),
    "nodes that are none": lambda c: c["graph"].update(nodes=[1, "x", None]),
    "modules that are none": lambda c: c["graph"].update(modules=[]),
    "no graph, no factory": lambda c: c.update(graph=None),
    "weights of another shape": lambda c: c["state"].update({"0.weight": c["state"]["0.bias"]}),
    "weights that are missing": lambda c: c["state"].pop("0.weight"),
    "weights that are no tensors": lambda c: c["state"].update({"0.weight": "text"}),
    "a shape of text": lambda c: c.update(input_shape=["1", "1", "8", "8"]),
    "a shape of nothing": lambda c: c.update(input_shape=[0, 1, 8, 8]),
    "preprocessing that is none": lambda c: c.update(preprocessing={"size": [10**9, 10**9], "mean": []}),
    "a factory of os": lambda c: c.update(factory="os:system", kwargs={"command": "id"}, graph=None),
    "a factory of one's own": lambda c: c.update(factory="evil:build", graph=None),
    "a factory in a path": lambda c: c.update(factory="/tmp/evil:build", graph=None),
    "a factory that unpickles": lambda c: c.update(factory="torch:load", kwargs={"f": MARK}, graph=None),
}
USED: dict[str, Change] = {
    "zeros of 4 TB": instead("call_function", "torch.zeros", [HUGE]),
    "a repeated input of 256 TB": instead("call_method", "repeat", INPUT, HUGE, 1, 1, 1),
    "an input padded to 4 TB": instead("call_function", "functional.pad", INPUT, [0, HUGE]),
    "a power that is none": instead("call_function", "operator.pow", 10.0, 10**6),
    "a layer of another size": lambda c: c["graph"]["modules"]["modules"]["2"]["attributes"].update(output_size=HUGE),
    "a layer with text": layer(stride="x"),
    "a layer without attributes": lambda c: c["graph"]["modules"]["modules"]["0"].update(attributes={}),
    "a stride of nothing": layer(stride=(0, 0)),
    "an answer that is text": instead("call_method", "type", INPUT),
    "an answer that is a function": instead("call_function", "builtins.getattr", INPUT, "type"),
    "an answer that is a chain": instead("call_function", "builtins.getattr", INPUT, "grad_fn"),
    "an answer of another shape": instead("call_function", "torch.mean", INPUT),
    "an answer that is none": lambda c: last(c).update(args=(None,)),
    "a view beyond its memory": instead("call_function", "aten.as_strided.default", INPUT, [HUGE], [1]),
}


def sealed(text: str, tensors: dict[str, Any] | None = None) -> bytes:
    """A container that says this, with a right seal."""
    seal = '{"seal":"' + "0" * 64 + '","kind":"model","version":1,"content":'
    header = json.dumps({"__metadata__": {"fxdistill": seal + text + "}"}, **(tensors or {})}, separators=(",", ":"))
    whole = bytearray(struct.pack("<Q", len(header)) + header.encode() + bytes(16))
    whole[container._SEAL] = hashlib.sha256(whole).hexdigest().encode()
    return bytes(whole)


def tensor(dtype: str, shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


ONE = '{"state":{"a":{"tensor":"0"}},"kwargs":{},"metadata":{}}'
SEALED: dict[str, bytes] = {
    "nothing": sealed("{}"), "a list": sealed("[]"), "NaN": sealed('{"a":NaN}'), "infinity": sealed('{"a":-Infinity}'),
    "a name twice": sealed('{"state":{},"state":{}}'), "depth": sealed("[" * 50_000 + "]" * 50_000),
    "lists in lists": sealed('{"a":' + "[" * 900 + "]" * 900 + "}"),
    "a mark in a mark": sealed('{"float":{"float":"1"}}'),
    "a tensor that is not there": sealed(ONE), "a key that is a list": sealed('{"items":[[[],1]]}'),
    "tensors in one another": sealed(ONE, {"0": tensor("F32", [4], 0, 16), "1": tensor("F32", [4], 0, 16)}),
    "a shape of 2**62": sealed(ONE, {"0": tensor("F32", [2**62, 4], 0, 16)}),
    "a negative shape": sealed(ONE, {"0": tensor("F32", [-4], 0, 16)}),
    "another number of bytes": sealed(ONE, {"0": tensor("F64", [4], 0, 16)}),
    "tensors beyond the file": sealed(ONE, {"0": tensor("F32", [2**30], 0, 2**32)}),
    "17 MB of lists": sealed('{"a":[' + "[]," * 5_800_000 + "[]]}"),
}  # fmt: skip


def factory(name: str, kwargs: dict[str, Any]) -> Make:
    """A factory with arguments, as a plan or a bundle has it; ``...`` stands for a pickle that runs code."""

    def make(folder: Path) -> Path:
        evil = folder / "evil.pth"
        evil.write_bytes(EVIL)
        given = {key: str(evil) if value is ... else value for key, value in kwargs.items()}
        (folder / "a.json").write_text(json.dumps([name, given]))
        return folder / "a.json"

    return make


def built(path: Path) -> object:
    name, kwargs = json.loads(path.read_text())
    return factories.build(name, kwargs, most=1 << 28)


HUB, URL = "hf-hub:evil/model", "http://localhost:1/evil.pth"
FACTORIES: dict[str, tuple[str, dict[str, Any]]] = {
    "timm: unpickles": ("timm.models._hub:load_state_dict_from_path", {"path": ...}),
    "timm: appends": ("timm.utils:update_summary", {"epoch": 1}),
    "timm: empties": ("timm.utils.summary:trim_summary", {"filename": ...}),
    "timm: a data set": ("timm.data:create_dataset", {"name": "hfds/evil"}),
    "timm: fetches": ("timm.models._hub:download_cached_file", {"url": URL}),
    "timm: imports": ("timm.models._builder:_import_class", {"class_string": "antigravity"}),
    "timm: loads": ("timm.models:load_checkpoint", {"checkpoint_path": ...}),
    "timm: checkpoint": ("timm:resnet18", {"checkpoint_path": ...}),
    "timm: pretrained": ("timm:resnet18", {"pretrained": True}),
    "timm: pretrained by a number": ("timm:resnet18", {"pretrained": 1}),
    "timm: pretrained_cfg": ("timm:resnet18", {"pretrained_cfg": {"url": URL}}),
    "timm: pretrained_cfg by name": ("timm:resnet18", {"pretrained_cfg": "a1_in1k", "pretrained": True}),
    "timm: pretrained_cfg_overlay": ("timm:resnet18", {"pretrained_cfg_overlay": {"file": MARK}}),
    "timm: a file in what is nested": ("timm:resnet18", {"block_args": {"file": MARK}}),
    "timm: cache_dir": ("timm:resnet18", {"cache_dir": "/tmp"}),
    "timm: hub": ("timm:create_model", {"model_name": HUB}),
    "timm: hub by hf_hub": ("timm:create_model", {"model_name": "hf_hub:evil/model"}),
    "timm: a folder": ("timm:create_model", {"model_name": "local-dir:/tmp"}),
    "timm: itself": ("timm:create_model", {"model_name": "create_model"}),
    "timm: features of a hub": ("timm:create_model", {"model_name": f"{HUB}@x", "features_only": True}),
    "timm: a class by its path": ("timm:resnet18", {"norm_layer": "os.system"}),
    "timm: a layer that is a mapping": ("timm:resnet18", {"act_layer": {"a/b": "c:d"}}),
    "timm: weights of gigabytes": ("timm:resnet18", {"num_classes": 2**21}),
    "timm: weights of terabytes": ("timm:vit_tiny_patch16_224", {"embed_dim": 2**40}),
    "torchvision: weights": ("torchvision.models:resnet18", {"weights": "DEFAULT"}),
    "torchvision: weights of the backbone": (
        "torchvision.models.segmentation:fcn_resnet50", {"weights_backbone": "DEFAULT"},
    ),
    "torchvision: get_model": ("torchvision.models:get_model", {"name": "resnet18"}),
    "torchvision: get_weight": ("torchvision.models:get_weight", {"name": "ResNet18_Weights.DEFAULT"}),
    "torchvision: a class": ("torchvision.models.resnet:ResNet", {"block": "x", "layers": [1]}),
    "torchvision: what it imports": ("torchvision.models.resnet:load_state_dict_from_url", {"url": URL}),
    "torchvision: files": ("torchvision.io:write_file", {"filename": MARK}),
    "torchvision: widths of terabytes": ("torchvision.models:resnet18", {"width_per_group": 2**40}),
    "transformers: from_pretrained": ("transformers:AutoModel.from_pretrained", {"x": HUB}),
    "transformers: an automatic class": ("transformers:AutoModelForImageClassification", {"_name_or_path": HUB}),
    "transformers: a pipeline": ("transformers:pipeline", {"model": HUB}),
    "transformers: code of a hub": ("transformers:ViTForImageClassification", {"auto_map": {"AutoModel": HUB}}),
    "transformers: remote code": ("transformers:ViTForImageClassification", {"trust_remote_code": True}),
    "torch.hub": ("torch.hub:load", {"repo_or_dir": "evil/model", "model": "x"}),
    "torch.load": ("torch:load", {"f": ...}),
    "torch.jit": ("torch.jit:load", {"f": ...}),
    "os": ("os:system", {"command": "id"}),
    "builtins": ("builtins:exec", {"source": TOUCH}),
    "subprocess": ("subprocess:run", {"args": ["id"]}),
    "ours, what it imports": ("fxdistill.models:nn", {}),
    "ours, loading": ("fxdistill.modelfiles.kinds:unpickle", {"path": ...}),
    "ours, weights of terabytes": ("fxdistill.models:convnet", {"widths": [2**40, 2**40]}),
    "ours, weights of gigabytes": ("fxdistill.models:convnet", {"widths": [2**12, 2**12]}),
    "ours, as many layers": ("fxdistill.models:resnet", {"widths": [64, 64], "blocks": 10**6}),
}  # fmt: skip
ATTACKS: dict[str, Attack] = {
    **{f"graph, {name}": Attack(bundle_with(change), load) for name, change in REFUSED.items()},
    **{f"graph used, {name}": Attack(bundle_with(change), used) for name, change in USED.items()},
    **{f"container, {name}": Attack(file("a.pt", made), load) for name, made in SEALED.items()},
    "container of another kind": Attack(
        file("a.pt", lambda: container.to_bytes("checkpoint", {"state": None}, where="")), load
    ),
    "bundle, a factory of gigabytes": Attack(
        bundle_with(lambda c: c["kwargs"].update(widths=[2**13, 2**13]), factory=True), load
    ),
    **{f"factory, {name}": Attack(factory(what, kwargs), built) for name, (what, kwargs) in FACTORIES.items()},
    "plan, a pickle that it says is trusted": Attack(
        plan_with(lambda p: p["members"]["teacher"].update(path="evil.pt", sha256="0" * 64, trusted=True)),
        deploy.evaluate,
    ),
}
