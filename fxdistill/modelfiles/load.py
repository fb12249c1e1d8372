"""Loading models, without running what a file contains.

Four kinds of files are read; which one it is, is found out from the bytes and not from the name:

    bundle        written by :func:`fxdistill.save`, by shrinking or by a run; needs nothing else
    state dict    plain, as ``.safetensors``, or inside a training script's checkpoint; needs a factory
    .pt2          ``torch.export``: refused unless trusted, because loading it can run code
    pickle        a whole pickled module: refused unless trusted, for the same reason

A run directory stands for the bundle in it of the member that it exports.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from fxdistill import checking, files
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import ModelError
from fxdistill.modelfiles import bundle, kinds, pt2, statedict
from fxdistill.modelfiles.bundle import RANDOM_WEIGHTS
from fxdistill.modelfiles.factories import build
from fxdistill.modelfiles.inert import Inert
from fxdistill.modelfiles.source import ModelSource, parse_source
from fxdistill.plan.file import load as load_plan
from fxdistill.preprocessing import Preprocessing


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it came from.

    Attributes:
        module: The model, in eval mode, on the CPU.
        path: Its file; None for a factory alone.
        sha256: Hash of that file.
        factory: The factory that built it; None for a graph, an export or a pickle.
        kwargs: Keyword arguments of the factory.
        entry: The checkpoint's entry that the weights were taken from; '' for the whole file.
        trusted: Whether the file was unpickled because the user trusts it.
        random_weights: Whether no file gave the weights, or they were shrunk from such.
        input_shape: Shape of one input batch, where the file says so.
        preprocessing: What the model does to an image before it looks at it, where the file says so.
        metadata: What was saved with the model.
        diagnostics: Remarks.
    """

    module: nn.Module
    path: Path | None
    sha256: str | None
    factory: str | None
    kwargs: dict[str, Any] = field(default_factory=dict)
    entry: str = ""
    trusted: bool = False
    random_weights: bool = False
    input_shape: tuple[int, ...] | None = None
    preprocessing: Preprocessing | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()


@checking.checked()
def load(
    source: ModelSource | str | Path, *, factory: str | None = None, kwargs: Mapping[str, Any] | None = None,
    seed: int = 0, trust_code: bool = False, allow: Sequence[str] = (), entry: str | None = None,
) -> LoadedModel:  # fmt: skip
    """Load a model from a file, or build it with random weights under a seed.

        fxdistill.load("teacher.pt")
        fxdistill.load("weights.pt", factory="torchvision.models:resnet50", kwargs={"num_classes": 10})
        fxdistill.load("torchvision.models:resnet18?num_classes=10")

    Args:
        source: A file, or a factory with arguments, as the command line takes them; or what :func:`parse_source` made
            of such, which says all but the seed.
        factory: The factory of a file that holds weights only.
        kwargs: Its keyword arguments.
        seed: Seed of the weights where no file gives them.
        trust_code: Whether a file that runs code when it is loaded may be loaded.
        allow: Modules and packages of your own whose factories may be called.
        entry: The entry of a checkpoint that holds the weights, such as ``state_dict_ema``; None to look for it.

    Raises:
        ModelError: Whatever is wrong with the file, the factory or their going together.
    """
    if not isinstance(source, ModelSource):
        found = parse_source(str(source), factory=factory, trust_code=trust_code, allow=allow, entry=entry)
        if twice := sorted(found.kwargs.keys() & (kwargs or {}).keys()):
            raise ModelError(
                f"the factory argument '{twice[0]}' is given twice", where=str(factory or source),
                hint="leave out one of them",
            )  # fmt: skip
        return _load(replace(found, kwargs={**found.kwargs, **(kwargs or {})}), seed)
    if factory is not None or kwargs or trust_code or allow or entry is not None:
        raise ModelError(
            "a model source says everything about a model itself", where=str(source.path or source.factory),
            hint="give it factory, kwargs, trust_code, allow and entry, or load the file by its path",
        )  # fmt: skip
    return _load(source, seed)


def _load(source: ModelSource, seed: int) -> LoadedModel:
    path = source.path
    if path is None:
        return _from_factory(source, seed)
    if files.is_folder(path):
        path = _in_run(path)
    kind = kinds.kind_of(path, option=source.option)
    sha256 = files.file_sha256(path)
    if kind == "bundle":
        _no_entry(source, path, "a bundle")
        return _from_bundle(source, path, sha256)
    if kind == "export":
        _no_entry(source, path, "an exported program")
        return _from_export(source, path, sha256)
    content, trusted = kinds.read(path, kind, trust_code=source.trust_code, option=source.option)
    if isinstance(content, Mapping) and content.get("format") == "fxdistill-bundle":
        raise ModelError(
            "the file is a bundle of an older fxdistill", where=str(path), hint="write it again with fxdistill.save"
        )
    state, entry = statedict.find(content, where=str(path), entry=source.entry)
    if isinstance(state, Inert):
        if not source.trust_code:
            raise kinds.pickled(path, state.title, source.option)
        content, trusted = kinds.unpickle(path), True
        state, entry = statedict.find(content, where=str(path), entry=source.entry)
    remarks = statedict.entry_remark(content, entry, where=str(path))
    if isinstance(state, nn.Module):
        _no_factory(source, path, "a whole module")
        module = _unwrapped(state).cpu().eval()
        return LoadedModel(module, path, sha256, None, entry=entry, trusted=trusted, diagnostics=remarks)
    if source.factory is None:
        raise ModelError(
            "the file holds weights, but not what they belong to",
            where=str(path),
            hint=kinds.name_factory(source.option),
        )
    module = build(source.factory, source.kwargs, allow=source.allow, seed=seed)
    remarks += statedict.fit(module, state, factory=source.factory, where=str(path))
    return LoadedModel(
        module.eval(), path, sha256, source.factory, source.kwargs, entry=entry, trusted=trusted, diagnostics=remarks
    )


def _in_run(path: Path) -> Path:
    """The file of the exported member in a run directory.

    Raises:
        ModelError: The folder is none, or nothing is trained in it yet.
    """
    if not all((path / name).is_file() for name in ("plan.json", "origin.json")):  # plan and models may lie anywhere
        inner = path / "run"
        found = f"the run {inner}, or " if (inner / "origin.json").is_file() else ""
        raise ModelError(
            "this is a folder and no run directory", where=str(path), hint=f"name {found}the file of the model in it"
        )
    member = load_plan(path / "plan.json").export.member
    if not (path / f"{member}.pt").is_file():
        raise ModelError(
            f"this run has no {member} yet", where=str(path), hint="complete it with `fxdistill run … --resume`"
        )
    return path / f"{member}.pt"


def _from_export(source: ModelSource, path: Path, sha256: str) -> LoadedModel:
    _no_factory(source, path, "an exported program")
    if not source.trust_code:
        raise ModelError(
            "a program of torch.export can run code when it is loaded and when it runs", where=str(path),
            hint="give the model as a state dict with its factory, or as fxdistill.save writes it; if you trust where "
            "the file comes from, add --trust-code",
        )  # fmt: skip
    module, shape, remarks = pt2.load(path)
    return LoadedModel(module, path, sha256, None, trusted=True, input_shape=shape, diagnostics=remarks)


def _from_factory(source: ModelSource, seed: int) -> LoadedModel:
    if source.factory is None:
        raise ModelError("neither a file nor a factory is given", hint="name one of them")
    module = build(source.factory, source.kwargs, allow=source.allow, seed=seed)
    return LoadedModel(module.eval(), None, None, source.factory, source.kwargs, random_weights=True)


def _from_bundle(source: ModelSource, path: Path, sha256: str) -> LoadedModel:
    found = bundle.read(path)
    module = found.module(allow=source.allow, where=str(path)) if _is_given(source, found, path) else None
    if module is None:
        if source.factory is None:
            raise ModelError(
                "the file holds weights alone: their model could not be written down", where=str(path),
                hint=kinds.name_factory(source.option),
            )  # fmt: skip
        module = build(source.factory, source.kwargs, allow=source.allow)
        remarks = statedict.fit(module, found.state, factory=source.factory, where=str(path))
    else:
        remarks = statedict.not_finite(found.state, module, str(path))
    return LoadedModel(
        module.eval(), path, sha256, source.factory or found.factory, source.kwargs or found.kwargs,
        random_weights=found.metadata.get(RANDOM_WEIGHTS) is True, input_shape=found.input_shape,
        preprocessing=found.preprocessing, metadata=found.metadata, diagnostics=remarks,
    )  # fmt: skip


def _is_given(source: ModelSource, found: bundle.Bundle, path: Path) -> bool:
    """Whether a bundle says what builds it; whoever says it as well has to say the same.

    Raises:
        ModelError: Something else is said.
    """
    if found.factory is None and found.graph is None:
        return False
    given = (source.factory or found.factory, source.kwargs or ({} if source.factory else found.kwargs))
    if given != (found.factory, found.kwargs):
        builds = "its own graph" if found.factory is None else f"'{found.factory}' with {json.dumps(found.kwargs)}"
        raise ModelError(
            f"the file is a bundle and says itself that {builds} builds it", where=str(path),
            hint="leave out the factory that was given",
        )  # fmt: skip
    return True


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _no_entry(source: ModelSource, path: Path, kind: str) -> None:
    if source.entry:
        raise ModelError(
            f"the file holds {kind}, which has no entry '{source.entry}'", where=str(path), hint="leave the entry out"
        )


def _no_factory(source: ModelSource, path: Path, kind: str) -> None:
    if source.factory is not None or source.kwargs:
        raise ModelError(f"the file holds {kind} and needs no factory", where=str(path), hint="leave it out")
