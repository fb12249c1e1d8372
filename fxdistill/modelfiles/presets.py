"""What the library of a registered model says of its preprocessing; nothing is downloaded.

timm's models carry a ``pretrained_cfg``; torchvision's weights know their ``transforms()``, and of a model's weights
the default ones are asked. A model of a user's own that carries a ``pretrained_cfg`` is asked as well.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from torch import nn

from fxdistill.modelfiles import registered
from fxdistill.modelfiles.source import module_and_function
from fxdistill.preprocessing import Interpolation, Preprocessing, Source

_FIT = {"squash": "squash", "border": "pad"}
TIMM = "timm's pretrained_cfg"


def preset(module: nn.Module, factory: str | None, kwargs: Mapping[str, Any], *, channels: int) -> Preprocessing | None:
    """The preprocessing that a model's library says; without a normalisation where the model has other channels.

    Args:
        module: The model.
        factory: What built it, or what it was shrunken from.
        kwargs: Arguments of that.
        channels: Channels of its images.
    """
    config = getattr(module, "pretrained_cfg", None)
    if isinstance(config, Mapping) and config:
        found = _of_timm(config)
    elif factory is None:
        return None
    else:
        module_name, name = module_and_function(factory)
        if not registered.claims(module_name) or module_name in ("fxdistill.models", "transformers"):
            return None  # a configuration of transformers says nothing of how images are read
        if registered.below(module_name, "torchvision"):
            found = _of_torchvision(module_name, name)
        else:
            found = _of_timm(_timm_config(str(kwargs.get("model_name", name))))
    if found is None:
        return None
    side = kwargs.get("img_size", kwargs.get("image_size"))
    size = [side, side] if isinstance(side, int) else list(side) if isinstance(side, list | tuple) else None
    found = found if size is None else found.sized(size, "the factory's arguments")
    return found if len(found.mean) == channels else found.changed(mean=[], std=[])


def carried(module: nn.Module, input_shape: Sequence[int] | None) -> Preprocessing | None:
    """The preprocessing that a model carries in its ``pretrained_cfg``; None for none.

    timm's models carry one whether or not they have the weights that it is of; one for images of another size than the
    model reads is of other weights.
    """
    _, channels, *sides = input_shape if input_shape is not None and len(input_shape) == 4 else (1, 3)
    found = preset(module, None, {}, channels=channels)
    return None if found is None or (sides and sides != found.size) else found


def is_fixed(module: nn.Module) -> bool:
    """Whether a model of a library takes images of one size only."""
    config = getattr(module, "pretrained_cfg", None)
    if isinstance(config, Mapping):
        return bool(config.get("fixed_input_size"))
    return isinstance(getattr(module, "image_size", None), int)  # torchvision's vision transformers


def _timm_config(name: str) -> Mapping[str, Any]:
    import timm  # noqa: PLC0415  # an extra

    found = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {} if found is None else dict(found.to_dict())  # type: ignore[no-untyped-call]


def _of_timm(config: Mapping[str, Any]) -> Preprocessing | None:
    try:
        from timm.data.config import resolve_data_config  # noqa: PLC0415  # an extra
    except ImportError:
        return None
    data = resolve_data_config(pretrained_cfg=dict(config))  # type: ignore[no-untyped-call]
    size = list(data["input_size"][1:])
    return Preprocessing(
        size=size, resize=[math.floor(side / data["crop_pct"]) for side in size],
        fit=_FIT.get(data["crop_mode"], "crop"), interpolation=_interpolation(data["interpolation"]),  # type: ignore[arg-type]
        mean=list(data["mean"]), std=list(data["std"]), source=Source(geometry=TIMM, normalisation=TIMM),
    )  # fmt: skip


def _of_torchvision(module: str, name: str) -> Preprocessing | None:
    builder = registered.find(module, name)
    if builder is None:
        return None
    try:
        weights: Any = importlib.import_module("torchvision.models").get_model_weights(builder).DEFAULT
        transforms = weights.transforms()
    except (ValueError, AttributeError):  # there are none
        return None
    if not getattr(transforms, "mean", None):
        return None
    said = f"torchvision's {type(weights).__name__}.{weights.name}"
    normal = Preprocessing(
        size=[224, 224], resize=[256, 256], mean=list(transforms.mean), std=list(transforms.std),
        source=Source(normalisation=said),
    )  # fmt: skip
    if not hasattr(transforms, "crop_size"):  # of dense predictions: whole images
        return normal
    return normal.changed(
        size=[transforms.crop_size[0]] * 2, resize=[transforms.resize_size[0]] * 2,
        interpolation=_interpolation(transforms.interpolation.value), source=Source(geometry=said, normalisation=said),
    )  # fmt: skip


def _interpolation(name: str) -> Interpolation:
    return name if name in get_args(Interpolation) else "bilinear"  # type: ignore[return-value]
