"""What a stranger made is read, or refused in one sentence, and nothing else happens: no code, no write, no process."""

import base64
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.security.hostile import ATTACKS

ROOT = Path(__file__).parents[2]


@functools.cache
def report() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.security.hostile", folder], capture_output=True, text=True,
            check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found: dict[str, Any] = json.loads(base64.b64decode(done.stdout.strip().splitlines()[-1]))
        return found


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_comes_to_nothing(attack: str) -> None:
    said, events, left = report()[attack]
    assert not events, events
    assert not left, "it wrote a file"
    if attack == "pickle beside weights":
        assert said.startswith("refused (2): the state dict does not fit")  # the weights were read, as data
    else:
        assert said.startswith("refused (2): "), said
