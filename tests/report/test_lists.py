"""Lists of methods and losses: one entry each, with arguments and sources, those of others too."""

import pytest

from fxdistill.losses import LOSSES
from fxdistill.methods import METHODS
from fxdistill.registry import Origin, Registry
from fxdistill.report.lists import losses_view, methods_view
from tests.plugins import Add


def told() -> tuple[dict[str, str], dict[str, str]]:
    """Methods and losses: what is said behind each name."""
    one, other = ({line.head.plain.strip(): line.text.plain for line in view()} for view in (methods_view, losses_view))
    return one, other


def test_each_has_its_line_with_its_source() -> None:
    methods, losses = told()
    assert list(methods) == list(METHODS.names())
    assert list(losses) == list(LOSSES.names())
    assert methods["dkd"].endswith("; arXiv 2203.08679, CVPR 2022")
    assert losses["dkd"].endswith("; alpha=1.0, beta=8.0, temperature=4.0; arXiv 2203.08679, CVPR 2022")
    assert losses["mse"]  # what says nothing of itself is told by its function
    assert "NAME+METHOD" in methods["indistill"]
    assert all({*methods.values(), *losses.values()})


def test_those_of_others_need_say_nothing(add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from fxdistill.losses import Loss\nLOSS = Loss(('student.tap',), function=lambda tap: tap.mean())\n"
    add(LOSSES, "bare", source)
    origin = {"bare": Origin("other-package", "1.2")}
    monkeypatch.setattr(Registry, "origin", lambda self, name: origin.get(name))
    assert told()[1]["bare"] == "other-package 1.2"


def test_one_that_cannot_be_imported_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    get = Registry.get

    def failing(self: Registry[object], name: str, **kwargs: str) -> object:
        return get(self, "kdd" if name == "kd" else name)

    monkeypatch.setattr(Registry, "get", failing)
    methods, losses = told()
    assert methods["kd"].startswith("there is no method named 'kdd' (did you mean 'kd'?")
    assert list(losses) == list(LOSSES.names())
