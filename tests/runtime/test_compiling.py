"""Whether to compile: tried, said, kept to, and without a trace in what is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed, Unsupported
from torch._inductor.exc import InvalidCxxCompiler

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError, RunDirError
from fxdistill.ir.program import Program
from fxdistill.modelfiles import bundle
from fxdistill.plan.file import load
from fxdistill.runtime.run import checkpoint
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.training import compiling, loop
from fxdistill.runtime.training.compiling import Choice
from fxdistill.runtime.training.course import Progress
from tests import runs

pytestmark = pytest.mark.usefixtures("few_digits")


@dataclass
class Machine:
    """Seconds that a step takes as it is, compiled, and the first time that it is compiled."""

    plain: float
    quick: float
    first: float
    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


class Compiled(nn.Module):
    """Stands for what the compiler makes: it computes the same, and takes the machine's time."""

    def __init__(self, program: Program, machine: Machine) -> None:
        super().__init__()
        self.program, self.machine, self.calls = program, machine, 0

    def forward(self, batch: dict[str, Tensor]) -> object:
        self.calls += 1
        return self.program(batch)


def chosen(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, *, steps: int, known: dict[str, bool] | None = None,
    error: Exception | None = None,
) -> tuple[bool, str, dict[str, bool]]:  # fmt: skip
    """Whether a stage is compiled, what was said, and what is noted."""
    said: list[str] = []
    monkeypatch.setattr(compiling, "time", machine)
    program = nn.Linear(2, 1)
    monkeypatch.setattr(compiling, "compiled", lambda one: Compiled(one, machine))

    def step(module: nn.Module) -> None:
        if isinstance(module, Compiled):
            if error is not None:
                raise error
            module.calls += 1
            machine.now += machine.first if module.calls == 1 else machine.quick
        else:
            machine.now += machine.plain
        program(torch.ones(2)).sum().backward()

    choice = Choice("arm", {} if known is None else known, lambda where, why: said.append(f"{where}: {why}"))
    made = choice.made("main", program, step, steps=steps)  # type: ignore[arg-type]
    assert all(parameter.grad is None for parameter in program.parameters())
    return isinstance(made, Compiled), "".join(said), choice.chosen


@pytest.mark.parametrize(
    ("machine", "steps", "expected", "told"),
    [
        (Machine(0.2, 0.1, 40.0), 500, True, "compiled: a step takes 100 ms compiled and 200 as it is; compiling"),
        (Machine(0.2, 0.1, 40.0), 300, False, "not compiled: a step takes 100 ms compiled and 200 as it is"),
        (Machine(0.2, 0.3, 1.0), 10_000, False, "not compiled: a step takes 300 ms compiled and 200 as it is"),
        (Machine(0.2, 0.01, 1.0), 100, False, "not compiled: what is left of it takes about 20 s as it is"),
    ],
)  # fmt: skip
def test_it_pays_where_steps_save_more_than_compiling_takes(
    machine: Machine, steps: int, expected: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, said, noted = chosen(monkeypatch, machine, steps=steps)
    assert made == expected == noted["arm/main"]
    assert said.startswith(f"arm 'arm', stage 'main': {told}")


def test_what_was_chosen_is_kept_to_without_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    for known in (True, False):
        machine = Machine(1.0, 0.1, 1.0)
        assert chosen(monkeypatch, machine, steps=10**6, known={"arm/main": known}) == (known, "", {"arm/main": known})
        assert machine.now == 0


def test_what_cannot_be_compiled_runs_as_it_is_and_other_errors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(1.0, 0.1, 1.0)
    made, said, noted = chosen(monkeypatch, machine, steps=1000, error=InvalidCxxCompiler())
    assert not made
    assert noted == {"arm/main": False}
    assert "not compiled: torch.compile cannot compile it: No working C++ compiler" in said
    with pytest.raises(RuntimeError, match="of the model"):
        chosen(monkeypatch, machine, steps=1000, error=RuntimeError("of the model"))


def test_the_reason_is_told_and_not_only_whose_it_is() -> None:
    broken = BackendCompilerFailed(torch.compile, ImportError("kernel.so: file too short\nand more"), None)
    for error, why in ((broken, "ImportError: kernel.so: file too short"), (Unsupported(""), "Unsupported")):
        with pytest.raises(InputError, match=f"cannot compile this program: {why}\n"), compiling.compiler_errors():
            raise error


def quick(monkeypatch: pytest.MonkeyPatch, *, least: float = 0.0) -> list[Program]:
    """Every stage is tried, and what is compiled is the program itself; gives what was compiled."""
    found: list[Program] = []

    def made(program: Program) -> nn.Module:
        found.append(program)
        return Compiled(program, Machine(0, 0, 0))

    monkeypatch.setattr(compiling, "_LEAST", least)
    monkeypatch.setattr(compiling, "compiled", made)
    monkeypatch.setattr(loop, "compiled", made)
    return found


def run(out: Path, *, said: list[Diagnostic], seeds: int | None = None, **options: object) -> None:
    settings = Settings(device="cpu", allow=runs.ALLOW, compile="auto", seeds=seeds, **options)  # type: ignore[arg-type]
    runs.execute(runs.plan_file(), out, settings, Observer(on_diagnostic=said.append))


def test_trying_leaves_no_trace_in_what_is_trained_and_holds_for_all_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    said: list[Diagnostic] = []
    run(tmp_path / "run", said=said, seeds=2)
    told = [one.where for one in said if one.code == "compile"]
    stages = [
        f"arm '{arm.name}', stage '{stage.name}'" for arm in load(runs.plan_file()).all_arms for stage in arm.stages
    ]
    assert told == stages
    kept = ("stage", "epoch", "losses", "metrics")
    rows = [[{k: row[k] for k in kept} for row in runs.metrics(one) if row["seed"] == 0]
            for one in (tmp_path / "run", runs.finished())]  # fmt: skip
    assert rows[0] == rows[1]
    states = [bundle.state_of(one / "student.pt") for one in (tmp_path / "run", runs.finished())]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


class Killed(Exception):
    """Stands for a kill."""


def killed_in_main(said: list[Diagnostic], out: Path) -> Callable[..., None]:
    def on_progress(trial: object, progress: Progress, _: object) -> None:
        if progress.stage.name == "main" and progress.position.epoch == 1:
            raise Killed

    settings = Settings(device="cpu", allow=runs.ALLOW, compile="auto", save_seconds=0)
    with pytest.raises(Killed):
        runs.execute(runs.plan_file(), out, settings, Observer(on_diagnostic=said.append, on_progress=on_progress))
    return on_progress


def test_a_resumed_run_keeps_to_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(Choice, "_tried", lambda _self, program, *_: (compiling.compiled(program), "so"))
    before: list[Diagnostic] = []
    killed_in_main(before, tmp_path / "run")
    assert checkpoint.load(RunDir(tmp_path / "run")).compiled == {
        f"distilled/{stage.name}": True for stage in load(runs.plan_file()).arm("distilled").stages
    }
    with pytest.raises(RunDirError, match=r"the run was begun with .*compile"):
        runs.execute(runs.plan_file(), tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW, resume=True))
    found = quick(monkeypatch)
    monkeypatch.setattr(Choice, "_tried", lambda _self, program, *_: (program, "otherwise"))
    after: list[Diagnostic] = []
    run(tmp_path / "run", said=after, resume=True)
    assert [one.stages[0].name for one in found] == ["main"]  # goes on compiled, and is not tried again
    assert [one.where for one in after if one.code == "compile"] == ["arm 'control', stage 'control'"]
