"""Containers: what goes in comes out, the same bytes each time, and no flipped bit goes unseen."""

import hashlib
import json
import pickle
import random
import struct
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors

from fxdistill import container
from fxdistill.errors import ModelError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.text(max_size=6) | st.integers() | st.sampled_from(["tensor", "tuple", "items"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


def back(content, **names):
    return container.from_bytes(
        container.to_bytes("kind", content, where="here"), where="here", kinds=("kind",), **names
    )[1]


def alike(one, other):
    if isinstance(one, float):
        return isinstance(other, float) and (one == other or (one != one and other != other))
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and one == other


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), PLAIN, max_size=4))
def test_plain_values_come_back_as_they_were(content):
    try:
        json.dumps(list(map(str, content)), ensure_ascii=False).encode()
        found = back(content)
    except UnicodeEncodeError:
        return
    assert alike(content, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_tensors_of_every_shape_come_back_bit_for_bit(dtype):
    tensors = [torch.ones(shape).to(dtype) for shape in ((), (0,), (3, 0, 2), (2, 3))]
    tensors.append(torch.arange(12).reshape(3, 4).to(dtype).t())
    found = back({"tensors": tensors})["tensors"]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors, found, strict=True))


def test_a_tensor_in_two_places_is_one_tensor_and_views_are_not_stored_twice_as_whole():
    whole = torch.randn(1000)
    written = container.to_bytes(
        "kind", {"a": whole, "b": whole, "part": whole[:3], "other": whole.view(10, 100)}, where=""
    )
    found = container.from_bytes(written, where="", kinds=("kind",))[1]
    assert found["a"] is found["b"]
    assert torch.equal(found["part"], whole[:3])
    assert torch.equal(found["other"], whole.view(10, 100))
    assert len(written) < 2.2 * whole.nbytes


def test_a_small_view_does_not_drag_its_storage_along():
    assert len(container.to_bytes("kind", {"part": torch.zeros(1 << 20)[:4]}, where="")) < 4096


def test_the_same_content_gives_the_same_bytes_and_any_reader_of_safetensors_finds_the_tensors():
    content = {"x": {"state": [torch.arange(5.0), torch.eye(2)]}, "y": (1, 2)}
    one, other = (container.to_bytes("kind", content, where="") for _ in range(2))
    assert one == other
    assert {tuple(t.shape) for t in load_safetensors(one).values()} == {(5,), (2, 2)}


def test_a_file_is_written_tensor_by_tensor_and_never_made_in_memory_as_a_whole(tmp_path):
    content = {name: torch.randn(64, 64, 16, 16).to(memory_format=torch.channels_last) for name in "ab"}
    tracemalloc.start()
    container.write(tmp_path / "file", "kind", {**content, "few": torch.arange(3, dtype=torch.int8)})
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 19 < content["a"].nbytes
    found = container.read(tmp_path / "file", kinds=("kind",))[1]
    assert all(torch.equal(found[name], value) for name, value in content.items())


def test_every_flipped_bit_is_found():
    written = container.to_bytes("kind", {"weights": torch.randn(40), "name": "model"}, where="here")
    draw = random.Random(0)
    places = [*range(200), *(draw.randrange(len(written)) for _ in range(200))]
    for place in places:
        damaged = bytearray(written)
        damaged[place] ^= 1 << draw.randrange(8)
        with pytest.raises(ModelError):
            container.from_bytes(bytes(damaged), where="here", kinds=("kind",))


@pytest.mark.parametrize("cut", [0, 7, 60, 120, -1])
def test_a_truncated_file_is_refused(cut):
    with pytest.raises(ModelError):
        container.from_bytes(
            container.to_bytes("kind", {"a": torch.ones(9)}, where="")[:cut], where="", kinds=("kind",)
        )


def sealed(text: str, tensors: bytes = b"", named: dict[str, object] | None = None) -> bytes:
    """A made file, with a right seal over whatever it says."""

    header = json.dumps({"__metadata__": {"fxdistill": text}, **(named or {})}, separators=(",", ":")).encode()
    whole = bytearray(struct.pack("<Q", len(header)) + header + tensors)
    if whole[container._SEAL] == b"0" * 64:
        whole[container._SEAL] = hashlib.sha256(whole).hexdigest().encode()
    return bytes(whole)


SEAL = '{"seal":"' + "0" * 64 + '"'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SEAL + "}", "not made as"),
        (SEAL + ',"kind":"kind","version":1,"content":[]}', "not made as"),
        (SEAL + ',"kind":"kind","version":1,"content":{"a":{"tensor":"0"}}}', "not made as"),
        (SEAL + ',"kind":"kind","version":1,"content":{"a":{"tuple":5}}}', "not made as"),
        (SEAL + ',"kind":"kind","version":1,"content":{"a":{"items":[[[],1]]}}}', "not made as"),
        (SEAL + ',"kind":"kind","version":9,"content":{}}', "version 9"),
        (SEAL + ',"kind":"other","version":1,"content":{}}', "'other'"),
        (SEAL + ',"kind":"kind","version":1,"content":' + "[" * 100000 + "]" * 100000 + "}", "not made as"),
        (SEAL + ',"kind":"kind","version":1,"content":{"a":1,"a":2}}', "not made as"),
        (SEAL + ',"kind":"kind","version":1,"content":{},"content":{"a":1}}', "not made as"),
        (SEAL + ',"kind":"kind","version":1,"content":{"a":NaN}}', "not made as"),
        (SEAL + ',"kind":"kind","version":1,"content":{"a":{"float":"text"}}}', "not made as"),
        (SEAL + ',"kind":"kind","version":1,"content":{"a":' + "[" * 300 + "]" * 300 + "}}", "not made as"),
        (SEAL + ',"kind":"kind","version":1,"content":{"a":[' + "[]," * 6_000_000 + "[]]}}", "not made as"),
    ],
)
def test_made_files_are_refused_in_one_sentence(text, said):
    with pytest.raises(ModelError, match=said):
        container.from_bytes(sealed(text), where="here", kinds=("kind",))


@pytest.mark.parametrize("length", [2**62, 2**64 - 1, 2**30])
def test_a_header_that_lies_about_its_length_is_refused(tmp_path, length):
    whole = bytearray(sealed(SEAL + ',"kind":"kind","version":1,"content":{}}'))
    whole[:8], whole[container._SEAL] = struct.pack("<Q", length), b"0" * 64
    whole[container._SEAL] = hashlib.sha256(whole).hexdigest().encode()
    (tmp_path / "made").write_bytes(whole)
    for read in (container.read, container.mapped):
        with pytest.raises(ModelError, match="not made as"):
            read(tmp_path / "made", kinds=("kind",))


@pytest.mark.parametrize(
    ("dtype", "shape", "offsets"),
    [
        ("F32", [2], [0, 4]), ("F32", [-1], [0, 4]), ("F32", [2**62, 8], [0, 8]), ("F7", [1], [0, 4]),
        ("F32", [1], [4, 0]), ("F32", [2], [0, 2**63]), ("F32", [1], [-4, 0]), ("F32", [1], [0, 4]), ("F32", 2, [0, 8]),
        ("F64", [2], [0, 8]),
    ],
)  # fmt: skip
def test_tensors_that_lie_about_themselves_are_refused(dtype, shape, offsets):
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    told = SEAL + ',"kind":"kind","version":1,"content":{"a":{"tensor":"0"}}}'
    with pytest.raises(ModelError, match="not made as"):
        container.from_bytes(sealed(told, bytes(8), {"0": tensor}), where="here", kinds=("kind",))


def test_tensors_that_lie_on_one_another_are_refused():
    told = SEAL + ',"kind":"kind","version":1,"content":{"a":{"tensor":"0"}}}'
    key = SEAL + ',"kind":"kind","version":1,"content":{"a":{"items":[[{"tensor":"0"},1]]}}}'
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert container.from_bytes(sealed(told, bytes(8), {"0": one}), where="here", kinds=("kind",))[1]["a"].shape == (2,)
    with pytest.raises(ModelError, match="not made as"):
        container.from_bytes(sealed(told, bytes(8), {"0": one, "1": one}), where="here", kinds=("kind",))
    with pytest.raises(ModelError, match="not made as"):  # a tensor as a key, which no other one is equal to
        container.from_bytes(sealed(key, bytes(8), {"0": one}), where="here", kinds=("kind",))


def test_what_is_too_deep_or_too_much_is_not_written():
    deep: object = 1
    for _ in range(199):
        deep = (deep,)
    written = container.to_bytes("kind", {"a": deep}, where="")
    with pytest.raises(ModelError, match="too deep"):
        container.to_bytes("kind", {"a": (deep,)}, where="")
    with pytest.raises(ModelError, match="beside tensors"):
        container.to_bytes("kind", {"a": "x" * (1 << 24)}, where="")
    assert container.from_bytes(written, where="", kinds=("kind",))[1]["a"] == deep


def test_what_is_neither_tensor_nor_plain_is_refused_by_its_kind():
    for value, kind in (
        (object(), "object"),
        (b"x", "bytes"),
        ({1, 2}, "set"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
    ):
        with pytest.raises(ModelError, match=kind):
            container.to_bytes("kind", {"a": value}, where="here")
    with pytest.raises(ModelError, match="tensor as a key"):
        container.to_bytes("kind", {"a": {torch.zeros(1): 1}}, where="here")


def test_reading_unpickles_nothing(tmp_path, monkeypatch):
    container.write(tmp_path / "file", "kind", {"a": torch.ones(3), "b": (1, 2.5)})

    def refuse(*_args, **_names):
        raise AssertionError("unpickled")

    for module, names in ((pickle, ("load", "loads", "Unpickler")), (torch, ("load",)), (torch.export, ("load",))):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    assert container.read(tmp_path / "file", kinds=("kind",))[1]["b"] == (1, 2.5)
