"""The public names, pinned: taking one away, or adding one, is a decision."""

import subprocess
import sys

import pytest

import fxdistill

NAMES = {
    "make_plan", "run", "compile", "build", "build_arm", "specialize", "measure_taps", "shrink", "compress",
    "evaluate", "export", "quantize", "bench", "compare", "show", "load", "save", "parse_source", "load_plan",
    "load_data", "batches", "Options", "Cascade", "Curriculum", "Plateau", "Settings", "Plan",
    "Program", "Outputs", "LoadedModel", "ShrunkResult",
    "Dataset", "Split", "Preprocessing", "Diagnostic", "FxdistillError", "InputError",
}  # fmt: skip


def test_the_names() -> None:
    assert set(fxdistill.__all__) == NAMES
    assert len(fxdistill.__all__) == len(NAMES)
    assert set(dir(fxdistill)) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_name_resolves_and_is_documented(name: str) -> None:
    found = getattr(fxdistill, name)
    assert found.__module__.startswith("fxdistill.")
    assert found.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        fxdistill.distil  # noqa: B018


def test_importing_the_package_brings_nothing_heavy() -> None:
    code = "import sys, fxdistill; print([m for m in ('torch', 'torchvision', 'pydantic', 'onnx') if m in sys.modules])"
    code += "; import fxdistill.report.show; print([m for m in ('torchvision', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
