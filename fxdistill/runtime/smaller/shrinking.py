"""A model made smaller by itself: what ``fxdistill shrink`` does, with the same defaults."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from torch import nn

from fxdistill import checking
from fxdistill.compiler.shrink_model import ShrunkResult
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import ChanceError, ModelError
from fxdistill.ir.contract import PassManager
from fxdistill.methods import RATE
from fxdistill.modelfiles import bundle
from fxdistill.passes.thin.search import Ranking
from fxdistill.runtime.deployment.finding import as_loaded
from fxdistill.runtime.run.execution import Settings
from fxdistill.runtime.smaller.shrunken import Reading, shrunk, timed, wished, write
from fxdistill.runtime.smaller.stepping import Runs, Says, Steps, folder_for, in_steps
from fxdistill.runtime.smaller.taught import carry_out, ready
from fxdistill.runtime.smaller.teaching import Teaching

_UNKNOWING = (
    "check the preprocessing in its file, the order of the labels (--class-map), and the checkpoint; "
    "`fxdistill compress` takes --mean and --std, --size, --teacher-output and --force"
)
"""What to do about a model that answers at random, where no option says how it reads images."""


@checking.checked()
def shrink(
    model: str | Path | nn.Module, path: str | Path | None = None, *, keep: float | None = None,
    macs: float | None = None, params: float | None = None, latency: float | str | None = None,
    on: str = "cpu", latency_table: str | Path | None = None, ranking: Ranking | None = None,
    floor: float | None = None, scopes: Mapping[str, float] = MappingProxyType({}), by: str | None = None,
    round_to: int | None = None, protect: Sequence[str] = (), only: Sequence[str] = (), data: str | Path | None = None,
    task: str = "classification", class_map: str | Path | None = None, input_shape: tuple[int, ...] | None = None,
    factory: str | None = None, args: Sequence[str] = (), seed: int = 0, allow: Sequence[str] = (),
    trust_code: bool = False, passes: PassManager | None = None, checkpoint_entry: str | None = None,
    steps: int = 1, recover: int = 1, lr: float = RATE, settings: Settings | None = None, run: Runs | None = None,
    say: Says = lambda _number, _made: None,
) -> ShrunkResult:  # fmt: skip
    """Make a model physically smaller, and prove that it is the masked original; the model is not changed.

    Args:
        model: A file, a factory, or a module of your own.
        path: The file to write: a bundle, or, where its name ends in .pt2, a program of ``torch.export``, which needs
            nothing of ours; None to write nothing.
        keep: Share of the channels to keep, in (0, 1).
        macs: Multiply-accumulates of an image that it may have instead; below 1 a share of its own. Met within 2 %.
        params: Parameters that it may have, likewise. With both, neither is exceeded.
        latency: Time in ONNX Runtime that it may take: a share of the model's own below 1, or as ``"3ms"``. Within 2 %,
            as the whole was measured, or refused.
        on: What that is measured on: ``cpu`` or ``cuda``.
        latency_table: A file with times of layers on this machine, which gets those that are measured; None for none.
        ranking: What competes: ``global`` (all channels), ``isomorphic`` (those of layers alike) or ``uniform`` (those
            of one layer); None for ``uniform`` with ``keep`` and ``global`` with a budget.
        floor: The least share of its channels that a layer keeps; None for 0 with ``keep``, 0.1 with a budget.
        scopes: Parts with a share of their own, by module path; 1 keeps all of it.
        by: Importance of a channel, by name; as ``NAME+NAME`` by the first layers compete for widths, by the second the
            channels of a layer. None for ``l1``, with data ``l1+interpolative``, and under a budget, if the data has
            labels, ``taylor+interpolative``.
        round_to: Widths become multiples of this; None for 1 with ``keep``, 8 with a latency, and with a budget 8, or
            4, 2 or 1 where layers are narrow or no such widths meet it.
        protect: Module or node paths whose channels stay.
        only: Paths of the modules to prune; empty for the whole model.
        data: A data spec, for criteria that read data.
        task: What the data is for.
        class_map: A file with the model's classes, for data that has some of them.
        input_shape: Shape of one batch; None for that of the file or the data.
        factory: As for :func:`fxdistill.evaluate`.
        args: As for :func:`fxdistill.evaluate`.
        seed: Seed of criteria that draw, and of the proof.
        allow: As for :func:`fxdistill.evaluate`.
        trust_code: As for :func:`fxdistill.evaluate`.
        passes: A manager to run the passes in, for its timings and remarks.
        checkpoint_entry: As for :func:`fxdistill.evaluate`.
        steps: In how many steps the budget is met, with training between them: on ``data``, in the folder
            ``NAME-steps`` beside the file NAME, see :mod:`fxdistill.runtime.smaller.stepping`.
        recover: Epochs of training between two steps.
        lr: Its learning rate.
        settings: The user's decisions about its runs.
        run: Runs the plan of a folder instead.
        say: Is told of each step before the last one.

    Raises:
        InputError: The model cannot be found or loaded, or the request changes nothing.
        RunDirError: Beside the file are steps of another request.
        PassError: The smaller model is not the masked one; nothing was written.
    """
    found = as_loaded(
        model, factory=factory, args=args, seed=seed, allow=allow, trust_code=trust_code, entry=checkpoint_entry
    )
    wish = wished(
        keep=keep, macs=macs, params=params, latency=latency, on=on, ranking=ranking, floor=floor, scopes=scopes, by=by,
        round_to=round_to, protect=protect, only=only, seed=seed,
    )  # fmt: skip
    names, data = None if class_map is None else Path(class_map), None if data is None else str(data)
    reading = Reading(data=data, task=task, input_shape=input_shape, allow=tuple(allow), class_map=names)
    between, settings = None, replace(settings or Settings(), allow=tuple(allow), trust_code=trust_code)
    if steps != 1:
        teaching = Teaching.on(
            data, task=task, class_map=names, input_shape=input_shape, lr=lr, seed=seed, allow=tuple(allow)
        )
        between = Steps.of(steps, recover, teaching)
        between.check(wish, found)
        folder = folder_for(path)
        try:
            ready(found, folder, teaching, settings)
        except ChanceError as cause:
            raise ModelError(cause.what, where=cause.where, hint=_UNKNOWING) from cause
    with timed(found, wish, reading, None if latency_table is None else Path(latency_table)) as clock:
        made, preprocessing = shrunk(found, wish, reading, clock=clock, passes=passes)
        made_of = found
        if between is not None:
            made, preprocessing, made_of = in_steps(
                found, folder, wish, between, made, run=run or functools.partial(carry_out, settings=settings),
                clock=clock, say=say, passes=passes,
            )  # fmt: skip
    if path is not None:
        metadata = {bundle.RANDOM_WEIGHTS: True} if found.random_weights else {}
        write(made, Path(path), of=made_of, preprocessing=preprocessing, metadata=metadata)
    random = Diagnostic(
        code="random-weights", severity="warning", where=str(model),
        why="these are random weights: as a teacher the file cannot be run", hint="shrink a file of a trained model",
    )  # fmt: skip
    said = (*found.diagnostics, *made.diagnostics, *([random] if found.random_weights else ()))
    return replace(made, diagnostics=said)
