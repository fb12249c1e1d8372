"""ONNX files."""

from tests.security.made import Attack

ATTACKS: dict[str, Attack] = {}
