"""What a pass is, and the manager that runs passes.

A pass is a frozen dataclass: its fields are its options. It reads one thing and returns another inside a
:class:`PassResult`, which also says whether anything was modified and carries the diagnostics. The contract,
enforced here on every run:

    requires(source)  →  run(source)  →  ensures(source, value)  →  proves(source, value)

Requirements are checked on the source, guarantees **on the result**, and a pass that does not declare itself
``in_place`` must leave its source's graphs as they were. What shows only where the result runs is proved; a manager
for results that nothing runs, and whose passes are run again for those that something does, leaves that out. User
errors (:class:`InputError`) travel through as they are; anything else that goes wrong becomes a :class:`PassError` that
names the pass and those before it.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import fx

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import FxdistillError, InvariantError, PassError

Source = TypeVar("Source")
Value = TypeVar("Value")


@dataclass(frozen=True)
class PassResult(Generic[Value]):
    """What a pass made, whether that differs from its source, and its remarks."""

    value: Value
    modified: bool
    diagnostics: tuple[Diagnostic, ...] = ()


class Pass(ABC, Generic[Source, Value]):
    """One step of the compiler. Subclasses are frozen dataclasses."""

    in_place: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The name of the pass in reports: the class name in lower case."""
        return type(self).__name__.lower()

    def requires(self, source: Source) -> None:
        """Raise where the source is not what the pass can work on."""

    @abstractmethod
    def run(self, source: Source) -> PassResult[Value]:
        """Do the work."""

    def ensures(self, source: Source, value: Value) -> None:
        """Raise :class:`InvariantError` where the result is not what the pass promises."""

    def proves(self, source: Source, value: Value) -> None:
        """The same for what is found out by running source and result."""

    def __call__(self, source: Source, *, prove: bool = True) -> PassResult[Value]:
        """Run under the contract, with or without what is found out by running the result.

        Raises:
            InvariantError: A guarantee does not hold, or the source was changed by a pass that is not in place.
        """
        before = None if self.in_place else graph_states(source)
        self.requires(source)
        result = self.run(source)
        if before is not None and graph_states(source) != before:
            raise InvariantError(f"the pass '{self.name}' changed its source without declaring it")
        self.ensures(source, result.value)
        if prove:
            self.proves(source, result.value)
        return result


@dataclass(frozen=True)
class PassRecord:
    """What the manager keeps of one pass: its name, seconds taken, and what the result said."""

    name: str
    seconds: float
    modified: bool
    diagnostics: tuple[Diagnostic, ...]


@dataclass
class PassManager:
    """Runs passes one by one, times them and collects what they say.

    Attributes:
        records: What is kept of each.
        prove: Whether passes prove what only running their results shows.
    """

    records: list[PassRecord] = field(default_factory=list)
    prove: bool = True

    def run(self, step: Pass[Source, Value], source: Source) -> Value:
        """Run one pass and return its value.

        Raises:
            FxdistillError: As the pass raised it, when it was raised on purpose for the user.
            PassError: The pass broke; names the pass and those before it, chained from the cause.
        """
        start = time.perf_counter()
        try:
            result = step(source, prove=self.prove)
        except InvariantError as cause:
            raise self._failed(step, cause) from cause
        except FxdistillError:
            raise
        except Exception as cause:
            raise self._failed(step, cause) from cause
        seconds = time.perf_counter() - start
        self.records.append(PassRecord(step.name, seconds, result.modified, result.diagnostics))
        return result.value

    def timing(self) -> str:
        """What the passes took, and coupling of it: ``7.1 s in 13 passes, 0.4 s of it to couple``."""
        total = sum(record.seconds for record in self.records)
        couple = sum(record.seconds for record in self.records if record.name == "couple")
        return f"{total:.1f} s in {len(self.records)} passes, {couple:.1f} s of it to couple"

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Everything said so far, in the order of the passes, each remark once."""
        return tuple(dict.fromkeys(d for record in self.records for d in record.diagnostics))

    def _failed(self, step: Pass[Any, Any], cause: Exception) -> PassError:
        before = ", ".join(record.name for record in self.records) or "none"
        return PassError(
            f"the pass '{step.name}' failed: {type(cause).__name__}: {cause}",
            where=f"pass '{step.name}', after: {before}",
            hint="this is a limit or a fault of fxdistill; report it with the model's name and the traceback",
        )


def graph_states(source: object) -> list[list[tuple[Any, ...]]]:
    """What every FX graph directly inside a source (itself, tuple items, dataclass fields) is made of, node by node."""
    return [
        [(node, node.op, node.name, node.target, node.args, node.kwargs) for node in graph.nodes]
        for graph in dict.fromkeys(_graphs(source))
    ]


def _graphs(source: object, depth: int = 0) -> Iterator[fx.Graph]:
    if isinstance(source, fx.GraphModule):
        yield source.graph
    elif isinstance(source, fx.Graph):
        yield source
    elif depth < 3 and isinstance(source, Mapping):
        yield from _graphs(list(source.values()), depth)
    elif depth < 3 and isinstance(source, tuple | list):
        for item in source:
            yield from _graphs(item, depth + 1)
    elif depth < 3 and is_dataclass(source) and not isinstance(source, type):
        for entry in fields(source):
            yield from _graphs(getattr(source, entry.name), depth + 1)
