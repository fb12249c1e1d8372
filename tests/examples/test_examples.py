"""The examples, run as a reader would, in the process of the tests."""

import contextlib
import io
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = {
    "own_loop.py": ("warm-up-1 {'mse[block1]'", "main {'cross-entropy'", "student 9"),
    "resnet50_to_resnet18.py": ("layer1.2.relu_2 -> layer1.1.relu_1: keep 64 of 256", "warm-up-1: 3 epochs"),
}


@pytest.mark.parametrize("name", SAID)
def test_an_example(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    monkeypatch.setattr("sys.argv", [name])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    for words in SAID[name]:
        assert words in said.getvalue()
