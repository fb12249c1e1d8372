"""The order of the tests, and what they share."""

import pytest

from tests.plugins import add

__all__ = ["add"]
_FORKING = (("runtime", "test_checkpoint.py"), ("runtime", "test_crew.py"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First those that fork: once anything has started autograd's threads, a forked child can no longer train."""
    items.sort(key=lambda item: item.path.parts[-2:] not in _FORKING)
