"""What is kept of frozen halves in a run, and what is not worth it.

A stage of a trial meets views of the images, one an epoch; every stage of the plan that reads the same of the same
frozen members meets them as well, whatever its arm and seed. With u epochs of all of these on a view, frozen half f,
images i (to read them once more, to compute rows in their order), writing w and reading r, seconds a batch each, a view
is kept where

    u f'  >  f + i + w + u r             u one more in a folder: it is there for the next run

and there is room for its rows; f' is f, or where steps are recorded (:mod:`fxdistill.runtime.training.recording`) what
the frozen half takes when it is replayed, without launching its kernels one by one. All are measured where a stage
begins, but for memory and disks. What can save less than a second in a whole run is left alone, and where images are
mixed with one another, nothing of an image can be kept. Decisions are part of a checkpoint, so that a run that goes on
does as it would have done.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxdistill.compiler.versions import versions
from fxdistill.data import augmentations
from fxdistill.data.batches import Batch
from fxdistill.data.dataset import Images
from fxdistill.errors import PassError
from fxdistill.ir.contract import PassManager
from fxdistill.ir.graph import macs_of
from fxdistill.ir.program import Program
from fxdistill.ir.running import digest
from fxdistill.passes.divide import Divide, Divided
from fxdistill.plan.document import Plan
from fxdistill.plan.training import Stage
from fxdistill.runtime.run.trials import Trial, trials_of
from fxdistill.runtime.training.halves import Halves, Report
from fxdistill.runtime.training.looks import Looks, fingerprints
from fxdistill.runtime.training.recording import replayed
from fxdistill.runtime.training.shelf import Shelf
from fxdistill.tasks import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import

_FEW = 8  # images that a program is divided with
_LEAST = 1.0  # seconds that a run has to save
_MACS = 2e10  # a second, of a fast core: what takes less than the least at this speed is left alone
_MEMORY, _DISK = 1e9, 2e8  # bytes a second
_SAMPLE = 16  # images that tell data apart


@dataclass(frozen=True)
class Read:
    """What a stage reads of members that its arm does not train: the same says the same of an image.

    Attributes:
        terms: Member, pair ('' for logits) and comparison of each loss that reads one.
        seed: The trial's, where another arm trains such a member anew under every seed; else None.
    """

    terms: frozenset[tuple[str, str, str]]
    seed: int | None = None


@dataclass
class Reuse:
    """What a run's trials keep and share.

    Attributes:
        plan: The plan.
        task: Its task.
        split: The training images.
        fabric: Device and precision.
        shelf: Where rows are kept; None to keep nothing.
        how: What beside the plan decides what is computed.
        half: Whether float32 is kept as float16.
        say: Called with what went wrong, and where.
        recorded: Whether steps are recorded, where that pays.
        reports: By stage what came of it in the current trial; what a checkpoint holds.
    """

    plan: Plan
    task: Task
    split: Images
    fabric: "Fabric"
    shelf: Shelf | None
    how: dict[str, Any]
    half: bool = False
    say: Callable[[str, str], None] = lambda _where, _why: None
    recorded: bool = False
    reports: dict[str, Report] = field(default_factory=dict)
    _keys: dict[str, set[Read]] = field(default_factory=dict)

    def of(self, trial: Trial, stage: Stage, program: Program) -> Halves | None:
        """The halves of a stage's program, if some of the frozen one is kept.

        Args:
            trial: The trial.
            stage: The stage.
            program: Its program, in training.
        """
        read = reads(self.plan, trial, stage)
        if self.shelf is None or not read.terms:
            return None
        before = self.reports.get(stage.name)
        uses = self._uses(read)
        why = self._why_not(program, uses)
        if why and before is None:
            self.reports[stage.name] = Report(why=why)
        if why or (before is not None and not before.views):
            return None
        try:
            divided = PassManager().run(Divide(next(self._batches(0, _FEW))), program)
        except PassError as cause:
            self.say(stage.name, f"{cause.what}; the frozen half is computed in every step")
            return None
        if divided.frozen is None:
            self.reports[stage.name] = Report(why=divided.why)
            return None
        if before is None:
            self._make_room(trial, stage)
        found = self._halves(stage.name, divided, uses, before)
        if found is not None:
            self._keys.setdefault(found.key, set()).add(read)
        return found

    def _halves(self, stage: str, divided: Divided, uses: Counter[int], before: Report | None) -> Halves | None:
        if self.shelf is None or divided.frozen is None:
            return None
        key = key_of(divided.frozen, self._data(), {**self.how, "half": self.half})
        halves = Halves(
            divided, self.looks, self.shelf, key, frozenset(), self.fabric, half=self.half,
            say=lambda why: self.say(stage, why),
        )  # fmt: skip
        gain = self._gains(halves, uses)
        halves.report = before or Report(row_bytes=halves.report.row_bytes, where=self.shelf.where)
        self.reports[stage] = halves.report
        if before is None:
            worth = [view for view, _ in uses.most_common() if gain[view] > 0]
            fit = max(0, self.shelf.room // (halves.report.row_bytes * len(self.split)))
            fit += len([view for view in worth if halves.holds(view)])
            halves.report.views = min(len(worth), fit)
            if not worth:
                halves.report.why = "reading what the frozen half computes would take as long as computing it"
            elif not fit:
                halves.report.why = f"a view takes {_sized(halves.report.row_bytes * len(self.split))}, more than fits"
        halves.views = frozenset(view for view, _ in uses.most_common(halves.report.views))
        return halves if halves.views else None

    @property
    def looks(self) -> Looks:
        """The training images as frozen halves see them."""
        data = self.plan.data
        return Looks(
            self.split, data.batch_size, tuple(data.augmentation), data.views, self.plan.seed, self.task.moves_targets,
            len(data.classes), self.fabric.device,
        )  # fmt: skip

    def ended(self) -> dict[str, dict[str, Any]]:
        """What came of it in a trial that has ended, by stage."""
        found = {name: {**asdict(report), "saved": round(report.saved, 2)} for name, report in self.reports.items()}
        self.reports = {}
        return found

    def _why_not(self, program: Program, uses: Counter[int]) -> str:
        """Why nothing of a stage can be kept, or too little to begin with; '' where it may be."""
        if self.fabric.world_size > 1:
            return "nothing is kept in a run of several processes"
        if any(one.augmentation.mixes for one in augmentations.named(self.plan.data.augmentation)):
            return "images are mixed with one another, so that nothing of an image alone can be kept"
        again = uses.total() - len(uses)
        if not again:
            return "no view of an image comes twice"
        macs = sum(macs_of(node) for node in program.graph.nodes if node.meta.get("frozen"))
        macs = macs // max(1, program.meta["input_shape"][0])
        return "" if macs * again * len(self.split) > _LEAST * _MACS else "the frozen half takes too little time"

    def _stages(self) -> Iterator[tuple[Trial, Stage, range]]:
        """The stages of all trials in order, with the epochs of the trial that the plan gives them."""
        for trial in trials_of(self.plan):
            done = 0
            for stage in self.plan.arm(trial.name).stages:
                yield trial, stage, range(done, done + stage.epochs)
                done += stage.epochs

    def _uses(self, read: Read) -> Counter[int]:
        """How many epochs of all trials meet each view with the same frozen half."""
        found: Counter[int] = Counter()
        for trial, stage, epochs in self._stages():
            if reads(self.plan, trial, stage) == read:
                found.update(map(self.looks.view, epochs))
        if self.shelf is not None and self.shelf.lasts:
            found.update(list(found))
        return found

    def _batches(self, view: int, size: int | None = None) -> Iterator[Batch]:
        return (self.looks if size is None else replace(self.looks, batch_size=size)).batches(view)

    def _gains(self, halves: Halves, uses: Counter[int]) -> dict[int, float]:
        """What keeping each view saves, seconds a batch."""
        found = self._batches(0)
        images = next(found)["images"]
        computing = halves.tried(images)
        start = time.perf_counter()
        more = next(found, None)
        images = images if more is None else more["images"]
        looking = time.perf_counter() - start
        size = halves.report.row_bytes * halves.looks.size
        if self.fabric.device.type == "cuda":
            reading = halves.reading(images)
        else:
            start = time.perf_counter()
            fingerprints(images)
            reading = time.perf_counter() - start
        reading += size / _MEMORY  # on a GPU a view is brought there anew in each epoch
        writing = size / (_DISK if halves.shelf.lasts else _MEMORY)
        reading += writing if halves.shelf.lasts else 0
        again = replayed(lambda: halves.fresh(images), self.fabric.device) if self.recorded else None
        again = computing if again is None else again
        return {view: u * again - computing - looking - writing - u * reading for view, u in uses.items()}

    def _make_room(self, trial: Trial, stage: Stage) -> None:
        """Let go of what no stage of this run from this one on comes back to."""
        if self.shelf is None or self.shelf.lasts:
            return
        order = [(one, later) for one, later, _ in self._stages()]
        now = next(place for place, (one, later) in enumerate(order) if (one, later.name) == (trial, stage.name))
        wanted = {reads(self.plan, one, later) for one, later in order[now:]}
        for key in [key for key, read in self._keys.items() if not read & wanted]:
            self.shelf.drop(key)
            del self._keys[key]

    def _data(self) -> str:
        """What tells the training images of this plan from others'; every row beside it knows its own."""
        few = torch.linspace(0, len(self.split) - 1, min(_SAMPLE, len(self.split))).long().unique()
        sample = next(iter(self.split.read([few]))).cpu().contiguous()
        said = self.plan.data.model_dump(mode="json", exclude={"spec", "views"})
        told = [said, self.plan.seed, list(sample.shape), len(self.split), str(sample.dtype)]
        return _digest(json.dumps(told, sort_keys=True).encode(), _bytes(sample))


def reads(plan: Plan, trial: Trial, stage: Stage) -> Read:
    """What a stage of a trial reads of members that its arm does not train."""
    terms = frozenset(
        (term.teacher, term.pair or "", term.compare)
        for term in stage.losses if term.teacher is not None and term.teacher not in plan.arm(trial.name).trains
    )  # fmt: skip
    anew = {member for arm in plan.all_arms if not arm.once for member in arm.trains}
    return Read(terms, trial.seed if any(member in anew for member, _, _ in terms) else None)


def key_of(frozen: fx.GraphModule, data: str, how: dict[str, Any]) -> str:
    """A hash of everything that decides what a frozen half computes."""
    layers = [
        (name, type(part).__qualname__, part.extra_repr(), _settings(part))
        for name, part in frozen.named_modules() if part is not frozen
    ]  # fmt: skip
    told = [str(frozen.graph), layers, data, {name: str(value) for name, value in how.items()}, versions()]
    return _digest(json.dumps([told, digest(frozen)], default=str).encode())[:32]


def _settings(part: torch.nn.Module) -> list[tuple[str, str]]:
    plain = (bool, int, float, str, tuple)
    return sorted((name, repr(value)) for name, value in vars(part).items() if isinstance(value, plain))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _sized(count: float) -> str:
    unit, size = next(((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6)) if count >= size), ("kB", 1e3))
    return f"{count / size:,.1f} {unit}"
