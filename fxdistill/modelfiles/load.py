"""Loading models, without running what a file contains.

Four kinds of files are read; which one it is, is found out from the bytes and not from the name:

    bundle        written by :func:`fxdistill.save`, or by shrinking; needs nothing else
    state dict    plain, as ``.safetensors``, or inside a training script's checkpoint; needs a factory
    .pt2          ``torch.export``; is a graph by itself
    pickle        a whole pickled module: refused unless trusted, because unpickling runs code
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from fxdistill import files
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import ModelError
from fxdistill.modelfiles import bundle, kinds, pt2, statedict
from fxdistill.modelfiles.bundle import RANDOM_WEIGHTS
from fxdistill.modelfiles.factories import build
from fxdistill.modelfiles.recipe import Recipe
from fxdistill.modelfiles.source import ModelSource, parse_source
from fxdistill.preprocessing import Preprocessing


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it came from.

    Attributes:
        module: The model, in eval mode, on the CPU.
        path: Its file; None for a factory alone.
        sha256: Hash of that file.
        factory: The factory that built it, or what it was shrunken from; None for an export or a pickle.
        kwargs: Keyword arguments of the factory.
        recipe: How it was shrunken from what the factory builds; None where it was not, or no bundle says so.
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
    recipe: Recipe | None = None
    entry: str = ""
    trusted: bool = False
    random_weights: bool = False
    input_shape: tuple[int, ...] | None = None
    preprocessing: Preprocessing | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()


def load(
    source: ModelSource | str | Path, *, factory: str | None = None, kwargs: Mapping[str, Any] | None = None,
    seed: int = 0, trust_pickle: bool = False, allow: Sequence[str] = (),
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
        trust_pickle: Whether a file that runs code when it is loaded may be loaded.
        allow: Modules and packages of your own whose factories may be called.

    Raises:
        ModelError: Whatever is wrong with the file, the factory or their going together.
    """
    if not isinstance(source, ModelSource):
        found = parse_source(str(source), factory=factory, trust_pickle=trust_pickle, allow=allow)
        if twice := sorted(found.kwargs.keys() & (kwargs or {}).keys()):
            raise ModelError(
                f"the factory argument '{twice[0]}' is given twice", where=str(factory or source),
                hint="leave out one of them",
            )  # fmt: skip
        return _load(replace(found, kwargs={**found.kwargs, **(kwargs or {})}), seed)
    if factory is not None or kwargs or trust_pickle or allow:
        raise ModelError(
            "a model source says everything about a model itself", where=str(source.path or source.factory),
            hint="give it factory, kwargs, trust_pickle and allow, or load the file by its path",
        )  # fmt: skip
    return _load(source, seed)


def _load(source: ModelSource, seed: int) -> LoadedModel:
    path = source.path
    if path is None:
        return _from_factory(source, seed)
    kind = kinds.kind_of(path, option=source.option)
    sha256 = files.file_sha256(path)
    if kind == "export":
        return _from_export(source, path, sha256)
    content, trusted = kinds.read(path, kind, trust_pickle=source.trust_pickle, option=source.option)
    if bundle.is_bundle(content):
        return _from_bundle(source, path, sha256, content)
    state, entry = statedict.find(content, where=str(path))
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


def _from_export(source: ModelSource, path: Path, sha256: str) -> LoadedModel:
    _no_factory(source, path, "an exported program")
    trusted = False
    try:
        pt2.inspect_archive(path)
        metadata = pt2.metadata(path)
    except ModelError:
        if not source.trust_pickle:
            raise
        trusted, metadata = True, {}
    module, shape, remarks = pt2.load(path)
    return LoadedModel(
        module, path, sha256, None, trusted=trusted, input_shape=shape, diagnostics=remarks, metadata=metadata,
        random_weights=metadata.get(RANDOM_WEIGHTS) is True,
        preprocessing=bundle.preprocessing_in(metadata, where=str(path)),
    )  # fmt: skip


def _from_factory(source: ModelSource, seed: int) -> LoadedModel:
    if source.factory is None:
        raise ModelError("neither a file nor a factory is given", hint="name one of them")
    module = build(source.factory, source.kwargs, allow=source.allow, seed=seed)
    return LoadedModel(module.eval(), None, None, source.factory, source.kwargs, random_weights=True)


def _from_bundle(source: ModelSource, path: Path, sha256: str, content: Mapping[str, Any]) -> LoadedModel:
    found = bundle.read(content, where=str(path))
    given = (source.factory or found.factory, source.kwargs or ({} if source.factory else found.kwargs))
    if given not in (found.named, (found.factory, found.kwargs)):
        raise ModelError(
            f"the file is a bundle and says itself that '{found.factory}' with {json.dumps(found.kwargs)} builds it",
            where=str(path), hint="leave out the factory that was given",
        )  # fmt: skip
    module = bundle.architecture(found, allow=source.allow, where=str(path))
    remarks = statedict.fit(module, found.state, factory=found.factory, where=str(path))
    return LoadedModel(
        module.eval(), path, sha256, found.factory, found.kwargs, found.recipe,
        random_weights=found.metadata.get(RANDOM_WEIGHTS) is True, input_shape=found.input_shape,
        preprocessing=found.preprocessing, metadata=found.metadata, diagnostics=remarks,
    )  # fmt: skip


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _no_factory(source: ModelSource, path: Path, kind: str) -> None:
    if source.factory is not None or source.kwargs:
        raise ModelError(f"the file holds {kind} and needs no factory", where=str(path), hint="leave it out")
