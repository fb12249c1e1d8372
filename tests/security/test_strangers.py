"""What a stranger made is read, or refused in one sentence, and nothing else happens: no code, no write, no process."""

import base64
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from tests import children
from tests.security.hostile import ATTACKS, PLANTED, main
from tests.security.made import MARK

ROOM = 400 << 20
"""Bytes that reading takes at most beside three times the file."""


@functools.cache
def report() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        (root := Path(folder) / "root").mkdir()
        code, said, errors = children.done(Path(folder), main, root)
    assert code == 0, errors[-2000:]
    found: dict[str, Any] = json.loads(base64.b64decode(said.strip().splitlines()[-1]))
    return found


def harm(attack: str) -> str:
    """What came of an attack; '' where that is nothing."""
    said, events, left, size, memory = report()[attack]
    if events:
        return str(events)
    if left:
        return "it wrote a file"
    if not said.startswith(ATTACKS[attack].said):
        return str(said)
    if len(said) >= 2000:
        return "more than a sentence"
    return f"{memory:,} bytes for a file of {size:,}" if memory > 3 * size + ROOM else ""


def test_an_attack_comes_to_nothing() -> None:
    assert report().keys() == {*ATTACKS, PLANTED}
    found = {attack: harm(attack) for attack in ATTACKS}
    assert not {attack: what for attack, what in found.items() if what}


def test_the_hook_notices_a_reader_that_unpickles() -> None:
    assert harm(PLANTED)
    said, events, left, _, _ = report()[PLANTED]
    assert said == "read"
    assert any("builtins" in event and "exec" in event for event in events), events
    assert any(event.startswith("exec") for event in events), events
    assert any(event.startswith(f"open '{MARK}'") for event in events), events
    assert left == [MARK]
