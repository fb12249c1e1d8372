"""Several processes, real ones, take the steps that one takes: losses, gradients, statistics, checkpoints."""

import itertools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.nn import functional as F

from fxdistill.compiler.build import build, specialize
from fxdistill.errors import FxdistillError, InputError, PlanError, RunDirError
from fxdistill.losses import LOSSES, Context
from fxdistill.modelfiles import bundle, factories
from fxdistill.plan.file import load
from fxdistill.plan.training import ScoreOptimizer
from fxdistill.runtime.processes import devices, launch, spread, stopping
from fxdistill.runtime.processes.crew import Crew, Standing
from fxdistill.runtime.run.execution import Settings
from tests import runs
from tests.runtime import test_cascade
from tests.runtime.test_checkpoint import equal
from tests.runtime.test_stopping import asking

RUN = Settings(device="cpu", allow=runs.ALLOW)


def together(work: Callable[[int], Any], count: int = 2) -> list[Any]:
    """What each of some forked processes makes of its rank, or the error that it ends with."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def one(rank: int, file: Path) -> None:
        place: dict[str, int | str] = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "GROUP_RANK": 0,
        }
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}
        os.environ.update({name: str(value) for name, value in place.items()})
        try:
            found = work(rank)
        except BaseException as error:  # noqa: BLE001  # the parent looks at it
            traceback.print_exc()
            found = error
        file.write_bytes(pickle.dumps(found))

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(count)]
        pids = []
        for rank, file in enumerate(files):
            pid = os.fork()
            if not pid:
                one(rank, file)
                os._exit(0)
            pids.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * count
        return [pickle.loads(file.read_bytes()) for file in files]  # written above


def joined(work: Callable[[Crew], Any], count: int = 2) -> list[Any]:
    """The same with a crew of processes that are joined."""

    def one(rank: int) -> Any:
        distributed.init_process_group("gloo", rank=rank, world_size=count)
        return work(Crew(rank, count))

    return together(one, count)


# As a whole


def plan() -> Path:
    """Standardized taps, cross-entropy, PKT; gradients as they are (SGD), and batches of an odd number of images."""

    def change(content: dict[str, Any]) -> None:
        (arm,), content["control"] = content["arms"], None
        arm["stages"] = arm["stages"][-2:]
        for stage in arm["stages"]:
            stage["epochs"] = 1
            stage["optimizer"] = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
        pkt = {"loss": "pkt", "pair": content["pairs"][-1]["name"], "weight": 50.0}
        arm["stages"][-1]["losses"].append({**pkt, "student": "student", "teacher": "teacher"})
        content["data"]["batch_size"] = 251

    return runs.edited("several", change)


def ran(out: Path, *, settings: Settings = RUN, ask: int = 0, count: int = 2) -> list[Any]:
    """A run in several processes: what each returns; the first is asked to stop after some steps."""

    def one(rank: int) -> Any:
        watch = asking(signal.SIGTERM, after=ask) if ask and not rank else None
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        return runs.execute(plan(), out, settings, watch)

    return together(one, count)


def test_two_processes_train_as_one_does_and_resume_bit_for_bit(tmp_path: Path) -> None:
    runs.execute(plan(), tmp_path / "one", replace(RUN, cache="off"))
    results = ran(tmp_path / "two")
    assert results[0] == results[1]
    assert results[0]["arms"] == json.loads((tmp_path / "two" / "result.json").read_text())["arms"]
    assert results[0]["processes"] == 2
    kept = {report["why"] for arm in results[0]["arms"] for report in arm.get("reuse", {}).values()}
    assert kept == {"nothing is kept in a run of several processes"}
    one, two = runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two")
    assert len(one) == len(two)
    for mine, theirs in zip(two, one, strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], rel=2e-5)
        assert mine["metrics"] == pytest.approx(theirs["metrics"], abs=0.006)  # three images of 537
    found, wanted = (bundle.state_of(tmp_path / name / "student.pt") for name in ("two", "one"))
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=2e-5), name

    stopped = ran(tmp_path / "again", ask=7, settings=replace(RUN, save_seconds=1e6))
    assert [type(one) for one in stopped] == [SystemExit, SystemExit]
    assert [one.code for one in stopped] == [143, 143]
    with pytest.raises(RunDirError, match="processes 2"):
        runs.execute(plan(), tmp_path / "again", replace(RUN, resume=True))
    ran(tmp_path / "again", settings=replace(RUN, resume=True))
    equal(tmp_path / "again", tmp_path / "two")


def test_a_cascade_in_two_processes_keeps_the_channels_that_it_keeps_in_one(tmp_path: Path) -> None:
    plan = test_cascade.planned(assistants=1)
    (joint,) = plan.arms[0].stages
    moving = joint.changed(scores=ScoreOptimizer(name="sgd", lr=20.0))
    arms = [plan.arms[0].changed(stages=[moving]), *plan.arms[1:]]
    path = test_cascade.written(plan.changed(arms=arms), "cascade-of-two")
    settings = replace(RUN, force=True, cache="off")
    runs.execute(path, tmp_path / "one", settings)
    together(lambda _: runs.execute(path, tmp_path / "two", settings))
    one, two = runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two")
    assert [row["stage"] for row in two] == [row["stage"] for row in one]
    for mine, theirs in zip(two, one, strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], rel=2e-3)
        assert mine.get("kept") == theirs.get("kept")
    found, wanted = (bundle.state_of(tmp_path / name / "student.pt") for name in ("two", "one"))
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in wanted.items()}
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-2, atol=1e-3), name


@pytest.mark.parametrize("wrong", [{"compile": True}, {"profile": True}, {"cache": Path("rows")}, {"devices": 3}])
def test_what_goes_with_one_process_alone_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
            patch.setenv(name, value)
        with pytest.raises(InputError, match=r"one process|3 devices"):
            runs.execute(runs.plan_file(), tmp_path / "run", replace(RUN, **wrong))
    assert not (tmp_path / "run").exists()


# In parts


@pytest.mark.parametrize("whole", [1, 2, 3, 5, 8])
def test_every_image_is_in_one_part_and_a_small_batch_is_everybodys(whole: int) -> None:
    crews = [Crew(rank, 3, whole=whole) for rank in range(3)]
    parts = [list(range(whole))[crew.part(whole)] for crew in crews]
    if whole < 3:
        assert parts == [list(range(whole))] * 3
    else:
        assert [*itertools.chain(*parts)] == list(range(whole))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert sum(crew.share for crew in crews) == pytest.approx(1)


def test_what_is_joined_has_the_gradients_of_one_process() -> None:
    values = torch.randn(5, 3, dtype=torch.double)

    def loss(rows: Tensor) -> Tensor:
        return (rows @ rows.t()).softmax(1).square().mean() + rows.std(0).prod()

    def work(crew: Crew) -> Any:
        crew.whole = 5
        weight = torch.full((3,), 1.5, dtype=torch.double, requires_grad=True)
        rows = values[crew.part(5)] * weight
        total = loss(crew.gathered(rows)) + crew.summed(rows.square().mean() * crew.share)
        total.backward()
        assert weight.grad is not None
        return total.detach(), weight.grad

    weight = torch.full((3,), 1.5, dtype=torch.double, requires_grad=True)
    wanted = loss(values * weight) + (values * weight).square().mean()
    wanted.backward()
    found = joined(work)
    assert all(torch.allclose(value, wanted.detach()) for value, _ in found)
    assert weight.grad is not None
    assert torch.allclose(torch.stack([gradient for _, gradient in found]).mean(0), weight.grad)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_and_dropout_of_parts_are_those_of_the_whole(momentum: float | None) -> None:
    values = torch.randn(7, 3, 4, 4) * 3 + 100

    def layers() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.BatchNorm2d(3, momentum=momentum), nn.Dropout(0.3)).train()

    def ran_(call: Callable[[Tensor], Tensor], norm: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        x = x.clone().requires_grad_()
        torch.manual_seed(1)
        for _ in range(2):
            answer = call(x)
        (answer.square() * torch.arange(4)).sum().backward()
        assert x.grad is not None
        return answer.detach(), x.grad, *(value.clone() for value in norm.state_dict().values())

    def work(crew: Crew) -> Any:
        crew.whole, model = 7, layers()
        norm, drop = spread._Norm(model[0], crew), spread._Drop(model[1], crew)  # type: ignore[arg-type]
        return ran_(lambda x: drop(input=norm(input=x)), model[0], values[crew.part(7)])

    assert [*signature(spread._batch_norm).parameters][:-1] == [*signature(F.batch_norm).parameters]
    model = layers()
    answer, gradient, *state = ran_(model, model[0], values)
    for (found, mine, *kept), part in zip(joined(work), (slice(3), slice(3, 7)), strict=True):
        assert torch.allclose(found, answer[part], atol=1e-4)
        assert torch.allclose(mine, gradient[part], atol=1e-3)
        assert all(torch.allclose(one, other, rtol=1e-5) for one, other in zip(kept, state, strict=True))


@pytest.mark.parametrize("name", [name for name in LOSSES.names() if LOSSES.get(name).by_image])
def test_a_loss_that_is_said_to_be_a_mean_over_images_is_one(name: str) -> None:
    loss = LOSSES.get(name)
    torch.manual_seed(0)
    shape = (5, 6, 3, 3) if loss.reads_taps else (5, 6)
    values = [torch.randn(shape) for _ in loss.reads]
    arguments = loss.arguments() if loss.arguments is not None else None
    context = Context(dict.fromkeys(loss.reads, shape), classes=6, train_size=5)
    call: Any = loss.function or loss.build(context, arguments)  # type: ignore[misc]
    parts = [call(*(value[part] for value in values)) * size / 5 for part, size in ((slice(2), 2), (slice(2, 5), 3))]
    assert torch.allclose(sum(parts), call(*values), rtol=1e-5)


class Centred(nn.Module):
    """Looks at all images of a batch in a way that nobody knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


def test_what_looks_at_a_batch_in_a_way_of_its_own_is_found_out() -> None:
    planned = load(plan())  # makes the student's module
    student = factories.build(*runs.STUDENT, seed=4, allow=runs.ALLOW)
    batch = {"images": torch.rand(5, 1, 8, 8), "labels": torch.arange(5), "index": torch.arange(5)}

    def work(crew: Crew) -> str:
        program = build(planned, factories.build(*runs.TEACHER, seed=3), student)
        for stage in program.stages:
            one = specialize(program, stage.name).train()
            one.get_submodule("student").register_buffer("mask", torch.tensor(-torch.inf))
            spread.check(one, batch, crew, where=stage.name)
        main = specialize(program, "main").train()
        main.get_submodule("student").bn2 = nn.Sequential(Centred(), main.get_submodule("student.bn2"))
        with pytest.raises(PlanError, match="together") as wrong:
            spread.check(main, batch, crew, where="main")
        return wrong.value.where

    assert joined(work) == ["main", "main"]


def test_what_the_first_process_says_holds_in_all() -> None:
    def work(crew: Crew) -> Any:
        def fails() -> None:
            raise RunDirError("it is taken", where="there", hint="take another")

        with pytest.raises(RunDirError) as wrong:
            crew.first(fails)
        inside = crew.first(lambda: (crew.is_several, crew.part(8), crew.most(5)))
        return str(wrong.value), crew.first(os.getpid), inside, crew.most(crew.rank * 15)

    one, two = joined(work)
    assert one == two
    assert one[0] == str(RunDirError("it is taken", where="there", hint="take another"))
    assert one[2:] == ((False, slice(0, 8), 5), 15)


def test_the_same_step_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stopping.Request()
    asked.join(0)
    assert not asked.made
    asked.join(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        asked.grant()
    assert Standing.here() == Standing()
    monkeypatch.setenv("RANK", "1")
    assert Standing.here() == Standing()  # torchrun says more


# From outside


def commanded(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, sys, time\n{code}"]


def launched(code: str, *, nodes: int = 1) -> int:
    return launch.launch(commanded(code), devices=2, nodes=nodes)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_GRACE", 0.3)


def test_processes_are_started_in_their_places_and_the_first_failure_ends_all(tmp_path: Path) -> None:
    told = f"open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write(os.environ['WORLD_SIZE'])"
    assert launched(told) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2", "2"]
    start, deaf = time.monotonic(), "signal.signal(15, signal.SIG_IGN)\n"
    assert launched("sys.exit(2) if os.environ['RANK'] == '1' else time.sleep(60)") == 2
    assert launched(f"{deaf}sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)") == 3
    assert time.monotonic() - start < 30
    with pytest.raises(FxdistillError, match="process 1 of the run was ended by signal 9"):
        launched("os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(60)")


@pytest.mark.parametrize("code", [0, 2])
def test_a_complete_run_is_one_on_a_machine_that_outlives_the_first(code: int) -> None:
    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = TCPStore("127.0.0.1", host.port, is_master=False)
    del host
    with subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"]) as process:
        process.wait()
        assert bool(launch._watched([process], store)) == bool(code)


def test_a_signal_goes_on_to_all() -> None:
    threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    assert launched("signal.signal(15, lambda *_: sys.exit(143))\ntime.sleep(60)") == 143


def test_one_process_speaks() -> None:
    def work(rank: int) -> Any:
        port = int(os.environ["MASTER_PORT"])
        store = TCPStore("127.0.0.1", port, is_master=not rank, wait_for_workers=False)
        found = launch.speaks(2)
        time.sleep(1)
        return found if rank else (found, launch._code(store))

    (first, code), second = together(work)
    assert {first, second} == {True, False}
    assert code == 2
    assert launch.speaks(1)
    assert launch.lost(RuntimeError("Connection closed by peer")) is None


def test_where_what_started_them_is_gone_the_first_speaks_and_torch_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for rank in (0, 1):
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        for name, value in {**place, "MASTER_ADDR": "127.0.0.1"}.items():
            monkeypatch.setenv(name, str(value))
        assert launch.speaks(1) == (rank == 0)
    assert capfd.readouterr() == ("", "")


def test_machines_have_to_say_which_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="which of the 2 machines"):
        launched("", nodes=2)
    monkeypatch.setenv("NODE_RANK", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(InputError, match="which of the 2 machines"):
        launched("", nodes=2)


def test_machines_wait_for_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name, value in (("NODE_RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(port))):
        monkeypatch.setenv(name, value)
    told = f"open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write(os.environ['WORLD_SIZE'])"
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_WAIT", timedelta(seconds=1))
        with pytest.raises(FxdistillError, match="do not find each other"):
            launched(told, nodes=2)
    assert not [*tmp_path.iterdir()]
    second = f"raise SystemExit(launch.launch({commanded(told)!r}, devices=2, nodes=2))"
    second = f"from fxdistill.runtime.processes import launch; launch._GRACE = 0.3; {second}"
    with subprocess.Popen([sys.executable, "-c", second], env={**os.environ, "NODE_RANK": "1"}) as other:
        assert launched(told, nodes=2) == 0
        assert other.wait(60) == 0
    assert {place.name: place.read_text() for place in tmp_path.iterdir()} == dict.fromkeys("0123", "4")


def test_a_child_ends_with_its_parent() -> None:
    code = "from fxdistill.runtime.processes import launch; import time; launch.follow(); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env={**os.environ, launch.CHILD: "1"})
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(60) == -signal.SIGTERM


def test_processes_wait_for_what_the_first_one_does_alone() -> None:
    def work(_rank: int) -> Any:
        devices.started("cpu", "32-true", 2)
        group: Any = distributed.group.WORLD
        distributed.barrier()  # nobody ends while another one is yet to connect
        return group._get_backend(torch.device("cpu")).options._timeout

    assert min(together(work)) >= timedelta(days=1)  # torch's own half hour is less than an export may measure


def test_devices_are_those_that_were_asked_for() -> None:
    fabric, crew = devices.started("cpu", "32-true", 1)
    assert (fabric.world_size, crew) == (1, Crew())
    with pytest.raises(InputError, match="2 devices were asked for"):
        devices.started("cpu", "32-true", 2)
