"""A model as the command line names it."""

from pathlib import Path
from typing import Any

import pytest

from fxdistill.errors import ModelError
from fxdistill.modelfiles.source import parse_source


def test_factories_with_arguments_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'torchvision.models:resnet18?num_classes=10&norm="x"&name=a=b&flag=true&widths=[1, 2]'
    found = parse_source(text, args=["more=1e-3"], allow=["mine"])
    assert found.path is None
    assert found.factory == "torchvision.models:resnet18"
    assert found.kwargs == {
        "num_classes": 10, "norm": "x", "name": "a=b", "flag": True, "widths": [1, 2], "more": 0.001,
    }  # fmt: skip
    assert found.allow == ("mine",)
    long = parse_source(f"a:b?widths={[4] * 200}&digits={'9' * 5000}")
    assert long.kwargs == {"widths": [4] * 200, "digits": "9" * 5000}
    assert parse_source("dir/model.pt").path == Path("dir/model.pt")
    assert parse_source("C:/model.pt").path == Path("C:/model.pt")
    assert parse_source("m.pt", factory="a.b:c?x=1", args=["y=2"]).kwargs == {"x": 1, "y": 2}
    monkeypatch.chdir(tmp_path)
    Path("odd:name").write_text("")
    assert parse_source("odd:name").path == Path("odd:name")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a:b", {"factory": "c:d"}, "two factories"),
        ("a:b?x=1", {"args": ["x=2"]}, "twice"),
        ("a:b?x=1&x=2", {}, "twice"),
        ("a:b?x", {}, "KEY=VALUE"),
        ("a:b", {"args": ["=1"]}, "KEY=VALUE"),
        ("m.pt", {"factory": "resnet18"}, "not a factory"),
        ("a:b?x=NaN", {}, "NaN is not a JSON number"),
        ("a:b", {"args": ["x=[1, -1e999]"]}, "-1e999 is not a JSON number"),
    ],
)
def test_malformed_factories(text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_source(text, **options)
