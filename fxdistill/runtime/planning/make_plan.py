"""A plan from Python: what ``fxdistill plan`` does, with the same defaults.

    plan = fxdistill.make_plan("teacher.pt", "student.pt", "plan.json", data="imagefolder:photos", epochs=30)
    fxdistill.run("plan.json", "run")

``fxdistill.compile`` is the same of modules in memory, for a loop of one's own.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fxdistill import checking
from fxdistill.compiler.compilation import AUXILIARY, STUDENT, TEACHER
from fxdistill.compiler.options import Options
from fxdistill.errors import InputError
from fxdistill.files import writable, write_text
from fxdistill.methods import composed
from fxdistill.modelfiles.load import LoadedModel, load
from fxdistill.modelfiles.source import parse_source
from fxdistill.plan.document import Plan
from fxdistill.preprocessing import NOTHING
from fxdistill.runtime.planning.planner import planned
from fxdistill.runtime.planning.preprocess import Wish

AUTO = "auto"
Model = str | Path | LoadedModel


@checking.checked("teacher", "student", "via")
def make_plan(
    teacher: Model, student: Model | None = None, path: str | Path = "plan.json", *, data: str | Path | None = None,
    method: str = "indistill", task: str = "classification", via: Model | None = None,
    input_shape: tuple[int, ...] | None = None, preprocessing: Mapping[str, Wish] = MappingProxyType({}),
    entries: Mapping[str, str] = MappingProxyType({}), class_map: str | Path | None = None, seed: int = 0,
    measure: bool = True, allow: Sequence[str] = (), trust_code: bool = False,
    edit: Callable[[Plan], Plan] = lambda made: made, **decisions: Any,
) -> Plan:  # fmt: skip
    """Pair the layers of two models, choose the channels, and write a plan that :func:`fxdistill.run` carries out.

    Args:
        teacher: A file, or a factory as ``package.module:name?key=value``; of a state dict that needs a factory, what
            ``fxdistill.load(fxdistill.parse_source(file, factory=…))`` gives.
        student: Likewise; None for a method that makes its student out of the teacher.
        path: The file to write.
        data: A data spec; None for a plan that cannot be run.
        method: A method's name, composed with ``+`` or not.
        task: The task's name.
        via: An assistant between the two; ``auto`` for one where the gap is large.
        input_shape: Shape of one batch; None for that of the models or the data.
        preprocessing: By ``teacher``, ``student`` and ``auxiliary``, what they do to an image before they look at it,
            or what is to be other than they say.
        entries: Of each of them which entry of a structured output is the prediction, where it is not to be found.
        class_map: A file with the models' classes, for data that has some of them.
        seed: Everything random comes from it.
        measure: Whether to measure the teacher on the data, and to refuse one at chance.
        allow: Modules whose factories may be called.
        trust_code: Whether files may be unpickled: they can run any code.
        edit: What is changed of the plan before it is written.
        decisions: ``batch_size``, ``val``, ``augment``, ``force`` and ``embedding`` as the command line has them, and
            the fields of :class:`fxdistill.Options`: ``epochs``, ``lr``, ``align``, ``repeats`` …

    Returns:
        The plan that was written.

    Raises:
        InputError: A model or the data cannot be found or read, or they do not fit each other; nothing was written.
    """
    auto = isinstance(via, str) and via == AUTO
    models_given: dict[str, Model | None] = {TEACHER: teacher, AUXILIARY: None if auto else via, STUDENT: student}
    if composed(method).alone != (student is None):
        what = "makes its student out of the teacher" if student is not None else "needs a student"
        raise InputError(f"the method '{method}' {what}", where="student", hint="see `fxdistill methods`")
    checking.keywords(decisions, planned, Options)
    data = None if data is None else str(data)
    of_data = {"class_map": class_map, **{name: decisions.get(name) for name in ("val", "augment")}}
    idle = [name for name, said in of_data.items() if said and data is None]
    idle += ["via_epochs"] if via is None and decisions.get("via_epochs") is not None else []
    if idle:
        raise InputError(
            f"'{idle[0]}' would do nothing: what it is about is not given", where=idle[0],
            hint="give data, or for via_epochs an assistant; or leave it out",
        )  # fmt: skip
    named = {name: model for name, model in models_given.items() if model is not None or name == TEACHER}
    by_name = {"preprocessing": preprocessing, "entries": entries, "embedding": decisions.get("embedding", {})}
    if odd := [(where, name) for where, said in by_name.items() for name in said if name not in named]:
        raise InputError(
            f"'{odd[0][1]}' is not the name of a model here", where=odd[0][0], hint=f"its names are {', '.join(named)}"
        )
    writable(Path(path), *(model for model in named.values() if isinstance(model, str | Path)), class_map)
    models = {name: _loaded(model, seed=seed, allow=allow, trust_code=trust_code) for name, model in named.items()}
    made = planned(
        Path(path), models, data=data, method=method, task=task, input_shape=input_shape, seed=seed, measure=measure,
        wishes={name: preprocessing.get(name, NOTHING) for name in models},
        entries={name: entries.get(name) for name in models}, allow=allow, edit=edit,
        class_map=None if class_map is None else Path(class_map), via=AUTO if auto else None, **decisions,
    ).plan  # fmt: skip
    write_text(Path(path), made.to_json())
    return made


def _loaded(model: Model | None, *, seed: int, allow: Sequence[str], trust_code: bool) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    if not isinstance(model, str | Path):
        raise InputError(
            f"a plan names files, and this is a {type(model).__name__}", where="models",
            hint="write it with fxdistill.save first; fxdistill.compile plans for modules in memory",
        )  # fmt: skip
    return load(parse_source(str(model), trust_code=trust_code, allow=allow), seed=seed)
