"""What a run measures its members with: their metrics on the run's data, on its device."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from fxdistill.data.dataset import Dataset
from fxdistill.ir.running import digest
from fxdistill.measure.model import metrics, same_for_all
from fxdistill.plan.document import Plan
from fxdistill.preprocessing import PLAIN, View
from fxdistill.runtime.processes.crew import Crew
from fxdistill.tasks import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import


@dataclass
class Bench:
    """Members, and the data to measure them on.

    Attributes:
        plan: The plan.
        task: Its task.
        dataset: On the device, as far as it fits; image files read for training.
        modules: The members by name: the user's modules, and those that are made from them.
        fabric: Device and precision.
        strangers: The members whose predictions are none for the data: only their layers teach.
        own_data: By name the data of members that read image files in another way, as they do: to measure them on.
        crew: The processes that do all this together.
        known: Of a member, on the validation split or not, the weights that were measured last, and what came out.
    """

    plan: Plan
    task: Task
    dataset: Dataset
    modules: dict[str, nn.Module]
    fabric: "Fabric"
    strangers: frozenset[str]
    own_data: Mapping[str, Dataset]
    crew: Crew = field(default_factory=Crew, kw_only=True)
    known: dict[tuple[str, bool], tuple[str, dict[str, float]]] = field(default_factory=dict, kw_only=True)

    def measured(self, member: str, *, on: str = "test") -> dict[str, float]:
        """The metrics of a member on a split of the run's data, on the run's device; none where that has no labels.

        There are none either where one of them is no number.

        What was measured last is not measured again as long as no weight has changed.

        The test split is for what the run ends with. All that is watched before is measured on the validation split,
        ``val``, where the plan has one.
        """
        if member in self.strangers or not self.dataset.has_labels(on):
            return {}
        if self.crew.is_several:  # all measure together, so nobody may leave it out
            return self._measured(member, on)
        place, weights = (member, self.dataset.val is not None and on == "val"), digest(self.modules[member])
        if self.known.get(place, ("", {}))[0] != weights:
            self.known[place] = weights, self._measured(member, on)
        return dict(self.known[place][1])

    def _measured(self, member: str, on: str) -> dict[str, float]:
        module, size = self.modules[member].to(self.fabric.device), self.plan.data.batch_size
        dataset, view = self.seen_by(member)
        entry = self.plan.entry_of(member)
        found = metrics(
            module, dataset, self.task, view=view, batch_size=size, entry=entry, on=on,
            parts=self.crew if self.crew.is_several else None,
        )  # fmt: skip
        found = self.crew.first(lambda: found)  # devices may differ in a last digit, and all decide by it alike
        return found if all(map(math.isfinite, found.values())) else {}

    def seen_by(self, member: str) -> tuple[Dataset, View]:
        """The data to measure a member on, image files read as it reads them itself, and how it looks at them."""
        found = self.own_data.get(member, self.dataset)
        own = self.plan.preprocessing_of(member)
        return found, PLAIN if own is None else own.view(found.image_shape[1:])

    def same_for_all(self, member: str) -> str:
        """What a member says of every test image, where that is the same; else ''."""
        module, size = self.modules[member].to(self.fabric.device), self.plan.data.batch_size
        dataset, view = self.seen_by(member)
        entry = self.plan.entry_of(member)
        look = functools.partial(same_for_all, view=view, batch_size=size, entry=entry)
        return self.crew.first(lambda: look(module, dataset, self.task))
