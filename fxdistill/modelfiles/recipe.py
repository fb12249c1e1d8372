"""The recipe of a shrunken model: what is done to the model of a factory to get its architecture.

A recipe is data: how the model was traced, what of it could not be shrunk, and for each weight that got smaller the
output indices that it keeps. A model that was shrunk again has a recipe that names the one before it.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fxdistill.errors import ModelError

_Index = Annotated[int, Field(ge=0)]
_Size = Annotated[int, Field(gt=0)]
_Path = Annotated[str, Field(min_length=1)]


class Recipe(BaseModel):
    """How a smaller model comes out of a bigger one.

    Attributes:
        input_shape: Shape of the batch that the bigger model was traced with.
        rung: How it was traced.
        barriers: Nodes and parameters of it whose channels all stay.
        kept: For each weight that gets smaller, the output indices that it keeps, ascending.
        before: The recipe of the bigger model, where it is a smaller one itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    input_shape: Annotated[list[_Size], Field(min_length=2)]
    rung: Literal["symbolic", "leaves", "export"]
    barriers: list[_Path]
    kept: Annotated[dict[_Path, Annotated[list[_Index], Field(min_length=1)]], Field(min_length=1)]
    before: Self | None = None

    @field_validator("kept")
    @classmethod
    def _ascending(cls, kept: dict[str, list[int]]) -> dict[str, list[int]]:
        for name, indices in kept.items():
            if indices != sorted(set(indices)):
                raise ValueError(f"the kept indices of '{name}' are not ascending and distinct")
        return kept

    def steps(self) -> Iterator["Recipe"]:
        """The recipes from the factory's model on, this one last."""
        chain = [self]
        while chain[-1].before is not None:
            chain.append(chain[-1].before)
        yield from reversed(chain)

    def plain(self) -> dict[str, Any]:
        """The recipe as a bundle keeps it."""
        return self.model_dump(mode="json", exclude_none=True)


def read(content: object, *, where: str) -> Recipe:
    """The recipe in a bundle.

    Raises:
        ModelError: It is none; names the entry that is wrong.
    """
    if not isinstance(content, Mapping):
        raise ModelError(
            "the bundle of a shrunken model has no recipe", where=f"{where}, recipe", hint="shrink the model again"
        )
    try:
        return Recipe.model_validate(content)
    except ValidationError as cause:
        first = cause.errors()[0]
        entry = ".".join(["recipe", *map(str, first["loc"])])
        raise ModelError(
            f"the bundle's recipe is wrong: {first['msg'].removeprefix('Value error, ')}", where=f"{where}, {entry}",
            hint="shrink the model again",
        ) from cause  # fmt: skip
