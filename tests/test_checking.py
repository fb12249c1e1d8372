"""What Python hands to the public functions: paths where there are names, and what the command line would refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxdistill
from fxdistill import models
from fxdistill.errors import InputError
from fxdistill.methods.cascade import Cascade
from fxdistill.passes.schedule.curriculum import Curriculum
from fxdistill.tasks import TASKS
from tests import runs

CASCADE = fxdistill.Options((1, 1, 8, 8), method="cascade")


SHAPE = (1, 1, 8, 8)


def pair() -> tuple[nn.Module, nn.Module]:
    return models.convnet(widths=[8, 16]), models.convnet(widths=[8, 16])


def planned() -> tuple[fxdistill.Plan, nn.Module, nn.Module]:
    two = pair()
    return fxdistill.compile(*two, fxdistill.Options(SHAPE, method="kd")), *two


def split(images: int, labels: int, dtype: torch.dtype = torch.uint8) -> fxdistill.Split:
    return fxdistill.Split(torch.zeros(images, *SHAPE[1:], dtype=dtype), torch.zeros(labels, dtype=torch.int64))


def data() -> Any:
    return fxdistill.load_data(Path("digits"))


def test_a_path_is_as_good_as_its_name(tmp_path: Path) -> None:
    teacher, table = runs.workshop() / "teacher.pt", tmp_path / "classes.txt"
    assert fxdistill.load(fxdistill.parse_source(teacher)).sha256 == fxdistill.load(teacher).sha256
    assert fxdistill.evaluate(teacher, Path("digits")) == fxdistill.evaluate(str(teacher), "digits")
    assert fxdistill.Settings(cache=str(tmp_path)) == fxdistill.Settings(cache=tmp_path)
    how: dict[str, Any] = {"method": "kd", "measure": False}
    plans = [
        fxdistill.make_plan(teacher, teacher, tmp_path / "plan.json", data=spec, **how)
        for spec in (Path("digits"), "digits")
    ]
    assert plans[0] == plans[1]
    table.write_text("\n".join(map(str, range(10))))
    with pytest.raises(InputError, match="cannot be met"):  # it was read, data and class map
        fxdistill.compress(teacher, tmp_path / "out", data=Path("digits"), macs=1e-6, class_map=str(table))


def test_a_list_is_as_good_as_a_tuple_and_an_int_as_a_float() -> None:
    pins: Any = [["a", "b"]]
    assert fxdistill.Options((1, 1, 8, 8), pins=pins, lr=1).pins == pins


@pytest.mark.parametrize(
    ("teacher", "student", "which"),
    [
        (torch.float16, torch.float32, "teacher are float16"), (torch.float32, torch.float64, "student are float64"),
        (torch.bfloat16, torch.bfloat16, "teacher are bfloat16"), (torch.float64, torch.float64, ""),
    ],
)  # fmt: skip
def test_models_of_another_precision_than_images_are_refused(
    teacher: torch.dtype, student: torch.dtype, which: str
) -> None:
    first, second = pair()
    first, second = first.to(teacher), second.to(student)
    if not which:  # all in double precision: a loop of one's own may have them so
        fxdistill.compile(first, second, fxdistill.Options(SHAPE, method="kd"))
        return
    with pytest.raises(InputError, match=f"the weights of the {which}\n.*\n.*give model.float"):
        fxdistill.compile(first, second, fxdistill.Options(SHAPE, method="kd"))


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: fxdistill.batches(data().train, 0), "0 is no whole number from 1 on"),
        (lambda: fxdistill.batches(data().train, 8, start=-1), "-1 is no whole number from 0 on"),
        (lambda: fxdistill.batches(data().train, 8, views=0), "0 is no whole number from 1 on"),
        (lambda: fxdistill.batches(data(), 8), "a Dataset is no split"),
        (lambda: fxdistill.batches(split(4, 3), 8), "4 images, 3 labels"),
        (lambda: fxdistill.batches(split(4, 4, torch.int64), 8), "images are torch.int64"),
        (lambda: fxdistill.batches(split(4, 4), 8, device="gpu"), "'gpu' is no device"),
        (lambda: fxdistill.load_data(3), "3 is no data"), # type: ignore[arg-type]
        (lambda: fxdistill.load_plan(None), "None is no path"),  # type: ignore[arg-type]
        (lambda: fxdistill.show(3), "3 is no what"),  # type: ignore[arg-type]
        (lambda: fxdistill.compile("t.pt", None, CASCADE), "a str is no module"),  # type: ignore[arg-type]
        (lambda: fxdistill.Settings(device="gpu"), r"'gpu' is no device[^|]*give 'auto' . 'cpu' . 'cuda'"),  # type: ignore[arg-type]
        (lambda: fxdistill.Settings(compile="on"), "'on' is no compile"),  # type: ignore[arg-type]
        (lambda: fxdistill.Settings(evaluate_every=0), "0 is no whole number from 1 on"),
        (lambda: fxdistill.Settings(save_seconds=float("nan")), "nan is no number from 0 on"),
        (lambda: fxdistill.make_plan("t.pt", "s.pt", seed="1"), r"'1' is no seed\n.*\n.*give int$"),  # type: ignore[arg-type]
        (lambda: fxdistill.make_plan("t.pt", "s.pt", epochs="3"), "'3' is no epochs"),
        (lambda: fxdistill.make_plan("t.pt", "s.pt", epoch=3), "there is no argument 'epoch'.*did you mean 'epochs'"),
        (lambda: fxdistill.make_plan("t.pt", "s.pt", allow="mk"), "'mk' is no allow"),
        (lambda: fxdistill.make_plan(None, "s.pt"), "this is a NoneType"),  # type: ignore[arg-type]
        (lambda: fxdistill.make_plan(runs.workshop() / "teacher.pt", "t.pt", via=np.zeros(3)), "a ndarray"),  # type: ignore[arg-type]
        (lambda: fxdistill.compile(*pair(), fxdistill.Options(SHAPE, lr=101)), "lr is 101\n.*100 at most"),
        (lambda: fxdistill.compile(*pair(), fxdistill.Options(SHAPE, epochs=2_000_000)), "epochs is 2000000"),
        (lambda: fxdistill.Options(SHAPE, repeats=10**9), "1000000000 is no whole number from 1 to 1,000"),
        (lambda: fxdistill.Options(SHAPE, via_epochs=-1), "-1 is no whole number from 0 to 1,000,000"),
        (lambda: fxdistill.compile(*pair(), fxdistill.Options(SHAPE), batch=(torch.zeros(4, 1, 8, 8), torch.zeros(3))),
         r"images and labels of shape \(4, 1, 8, 8\) and \(3,\) are no batch"),
        (lambda: fxdistill.specialize(fxdistill.build(*planned()), "main", taught=1), "no whole number from 0 to 0"),
        (lambda: fxdistill.evaluate(pair()[0], "digits", input_shape=(1, 3, -2, 4)), "images cannot be read at -2x4"),
        (lambda: fxdistill.bench({"a": pair()[0]}, input_shape=SHAPE, threads=10**30), "is no whole number from 1 to"),
        (lambda: fxdistill.shrink("t.pt", keep="0.5"), "'0.5' is no keep"),  # type: ignore[arg-type]
        (lambda: fxdistill.shrink("t.pt", scopes={"a": "b"}), "{'a': 'b'} is no scopes"),  # type: ignore[dict-item]
        (lambda: fxdistill.compress("t.pt", "o", data="digits", lr="1"), "'1' is no lr"),
        (lambda: fxdistill.compress("t.pt", "o", data="digits", lrs=1), "there is no argument 'lrs'"),
        (lambda: fxdistill.run("p.json", "o", {}), "{} is no settings"),  # type: ignore[arg-type]
        (lambda: fxdistill.run("p.json", "o", seed=5), "there is no argument 'seed'.*did you mean 'seeds'"),
        (lambda: fxdistill.run("p.json", "o", seeds="5"), "'5' is no seeds"),
        (lambda: fxdistill.run("p.json", "o", seeds=0), "0 is no whole number from 1 to 1,000"),
        (lambda: fxdistill.run("p.json", "o", seeds=10**9), "1000000000 is no whole number from 1 to 1,000"),
        (lambda: fxdistill.export("m.pt", opset=True), "True is no opset"),
        (lambda: fxdistill.evaluate("m.pt", input_shape=(1, "3")), "is no input_shape"),  # type: ignore[arg-type]
        (lambda: fxdistill.Options((1, 1, 8, 8), epochs=np.int64(3)), r"np.int64\(3\) is no epochs"),  # type: ignore[arg-type]
        (lambda: fxdistill.Options((1, 1, 8, 8), pins=("a", "b")), "is no pins"),  # type: ignore[arg-type]
        (lambda: fxdistill.Settings(allow="mk"), "'mk' is no allow"),  # type: ignore[arg-type]
        (lambda: Cascade(keep="0.5"), "'0.5' is no keep"),  # type: ignore[arg-type]
        (lambda: Cascade(keep=0.5, hints=1e30), "1e.30 is not a weight for hints"),
        (lambda: Curriculum(probe=np.zeros(3)), "is no probe"),  # type: ignore[arg-type]
        (lambda: Curriculum(share="0.5"), "'0.5' is no share"),  # type: ignore[arg-type]
        (lambda: TASKS.get("retrieval").precise_at([0]), "0 is no whole number from 1 on"),
    ],
)  # fmt: skip
def test_what_the_command_line_would_refuse_is_refused(call: Callable[[], object], what: str) -> None:
    with pytest.raises(InputError, match=f"(?s){what}"):
        call()
