"""The examples, run as a reader would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = {
    "own_loop.py": ("warm-up-1 {'mse[block1]'", "main {'cross-entropy'", "student 9"),
    "resnet50_to_resnet18.py": ("layer1.2.relu_2 -> layer1.1.relu_1: keep 64 of 256", "warm-up-1: 3 epochs"),
}


@pytest.mark.parametrize("name", SAID)
def test_an_example(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, check=True, cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    for words in SAID[name]:
        assert words in done.stdout
