"""Versions of what decides about a plan and a run."""

import functools
import importlib.metadata


def versions() -> dict[str, str]:
    """Installed versions by distribution."""
    return dict(_installed())


@functools.cache
def _installed() -> dict[str, str]:
    """Looked up once: each takes a search of all that is installed."""
    names = ("fxdistill", "torch", "torchvision", "torch-pruning", "onnx", "timm")
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
