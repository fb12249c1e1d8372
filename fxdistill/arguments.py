"""The arguments that a named thing takes: a validated model of its own, instead of a dict of floats."""

from pydantic import BaseModel, ConfigDict


class Arguments(BaseModel):
    """Base of the arguments of losses, augmentations and criteria. A bare one takes none.

    Fields have defaults, which a plan spells out, and bounds (``Annotated[float, Field(gt=0)]``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
