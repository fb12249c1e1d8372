"""A stage in two halves: what its frozen half says of an image is computed once for each view, and then read.

**Rows are always computed in batches of the same size over the images in their order**, so that a row is a function of
(frozen half, image, view) alone, whatever run computes it and wherever that was stopped. Kernels of one batch size
treat images alike wherever they stand, but for a few; a batch of another size (the last one of an epoch) is computed as
it comes. So the losses are those without a cache, bit for bit on a CPU as far as kernels do; what came out is measured.

Every row lies beside a hash of the pixels that it was computed from. Where the pixels of a batch have another one, the
images have changed, or the row is another image's: rows are computed again, and where they differ then as well, the
images are no function of their places and views, and nothing more is kept. Now and then a whole batch is computed
afresh and compared.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, fx

from fxdistill.data.batches import Batch
from fxdistill.errors import line
from fxdistill.ir.running import same
from fxdistill.passes.divide import Divided
from fxdistill.plan.schema import Count
from fxdistill.runtime.training.looks import Looks, fingerprints
from fxdistill.runtime.training.recording import seconds
from fxdistill.runtime.training.shelf import Place, Rows, Shelf, size_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import

PIXELS = "pixels"
"""The name of the hashes beside the fields that cross."""
_BLOCK = 1 << 25  # bytes of a block, roughly: what a kill in computing loses at most
_TRIED = 32  # images that the frozen half is timed on, on a CPU
_EVERY = 200  # batches between two that are compared with a fresh computation
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_NEAR = 0.25  # of a GPU's free memory


@dataclass
class Report:
    """What a stage did about its frozen half.

    Attributes:
        why: In words, where it kept nothing, or stopped keeping.
        where: Where it keeps, in words.
        views: How many views are kept.
        row_bytes: Bytes of an image's row.
        read: Rows that training read instead of computing them.
        computed: Rows that were computed to be kept.
        saved: Seconds that the frozen half would have taken for the rows that were read, less those that keeping took.
        exact: Whether every row that was compared with a fresh one was the same, bit for bit.
        error: The largest difference found, as a share of the largest value.
    """

    why: str = ""
    where: str = ""
    views: Count = 0
    row_bytes: Count = 0
    read: Count = 0
    computed: Count = 0
    saved: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    exact: bool = True
    error: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


@dataclass
class Halves:
    """The two halves of a stage's program, in training.

    Attributes:
        divided: The halves.
        looks: The images.
        shelf: Where rows are kept.
        key: The key of the frozen half there.
        views: The views that are kept.
        fabric: Precision.
        half: Whether what is float32 is kept as float16.
        report: What comes of it.
        say: Called with what went wrong.
        on_read: Called when the frozen half was read, and is not for a while.
    """

    divided: Divided
    looks: Looks
    shelf: Shelf
    key: str
    views: frozenset[int]
    fabric: "Fabric"
    half: bool = False
    report: Report = field(default_factory=Report)
    say: Callable[[str], None] = lambda _why: None
    on_read: Callable[[], None] = lambda: None
    _blocks: list[Rows] | None = None
    _near: Rows = field(default_factory=dict)
    _view: int = -1
    _steps: int = 0
    _anew: bool = False
    _cost: float = 0.0
    _live: dict[str, torch.dtype] = field(default_factory=dict)
    _form: dict[str, tuple[torch.Size, torch.dtype]] = field(default_factory=dict)
    _lies: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def tried(self, images: Tensor) -> float:
        """Learn from a batch how rows look; returns the seconds that its frozen half takes."""
        count = len(images)
        few = images[:_TRIED] if self.looks.device.type == "cpu" else images  # the time that an image takes there
        self.fresh(few)  # the first time everything is slower
        start = time.perf_counter()
        rows = self._kept(self.fresh(few))
        taken = (time.perf_counter() - start) * count / len(few)
        self._form = {name: (value.shape[1:], value.dtype) for name, value in rows.items()}
        self._lies = {name: _order(value) for name, value in rows.items()}
        self.report.row_bytes = size_of({name: value[:1] for name, value in rows.items()}) + 8
        self._cost = taken / count
        return taken

    def fresh(self, images: Tensor) -> Rows:
        """What crosses, computed."""
        with torch.inference_mode(), self.fabric.autocast():
            found = self._frozen({"images": images})
        rows = {name: value.clone() for name, value in found.items()}  # no tensors of inference: training keeps them
        self._live = {name: value.dtype for name, value in rows.items()}
        return rows

    @property
    def _frozen(self) -> fx.GraphModule:
        if self.divided.frozen is None:
            raise ValueError("nothing was divided")
        return self.divided.frozen

    def reading(self, images: Tensor) -> float:
        """Seconds that reading the rows of a batch takes on a GPU; its rows are computed for that, and not kept."""
        rows = {**self._kept(self.fresh(images)), PIXELS: fingerprints(images).cpu()}
        self._near = self._brought([rows])
        try:
            return seconds(lambda: self._gathered([rows], torch.arange(len(images))), self.looks.device)
        finally:
            self._near = {}

    def fed(
        self, found: Iterator[Batch], chosen: Sequence[Tensor], *, epoch: int, pulse: Callable[[], None]
    ) -> Iterator[Batch]:
        """The batches of an epoch with what crosses beside their fields.

        Args:
            found: The batches.
            chosen: Where the images of each stand in the split, on the CPU.
            epoch: Number of the epoch in the trial.
            pulse: Called now and then before the first batch: a checkpoint may be taken.
        """
        self.begin(self.looks.view(epoch), pulse)
        for batch, places in zip(found, chosen, strict=True):
            yield self.complete(batch, places)

    def begin(self, view: int, pulse: Callable[[], None]) -> None:
        """Get ready for an epoch that shows a view: compute what is not there of it.

        Args:
            view: The view.
            pulse: Called now and then: a checkpoint may be taken.
        """
        self._view, self._blocks, self._near = view, None, {}
        if view not in self.views:
            return
        found = self._held(view)
        missing = {block for block, rows in enumerate(found) if rows is None}
        start = time.perf_counter()
        for block, rows in self._computed(missing, pulse):
            if why := self.shelf.put(Place(self.key, view, block), rows):
                self._stop(why)
                return
            found[block] = self.shelf.get(Place(self.key, view, block)) or rows
        self.on_read()
        self.report.saved -= time.perf_counter() - start
        self._blocks = [rows for rows in found if rows is not None]
        if self.looks.device.type == "cuda":
            self._near = self._brought(self._blocks)

    def _brought(self, blocks: list[Rows]) -> Rows:
        """The rows of a view on the GPU, where they take little of its memory; else none: they come batch by batch."""
        free, _ = torch.cuda.mem_get_info(self.looks.device)
        if self.report.row_bytes * len(self.looks.split) > free * _NEAR:
            return {}
        return {
            name: torch.cat([rows[name] for rows in blocks]).to(self.looks.device, self._live.get(name))
            for name in blocks[0]
        }

    def holds(self, view: int) -> bool:
        """Whether all rows of a view are there."""
        return all(rows is not None for rows in self._held(view))

    def _held(self, view: int) -> list[Rows | None]:
        """What there is of a view, block by block."""
        count, whole = self.looks.size * self.block_steps, len(self.looks.split)
        sizes = [min(count, whole - start) for start in range(0, whole, count)]
        return [self._got(Place(self.key, view, block), size) for block, size in enumerate(sizes)]

    @property
    def block_steps(self) -> int:
        """Batches of a block."""
        return max(1, min(self.looks.steps, _BLOCK // max(1, self.report.row_bytes * self.looks.size)))

    def complete(self, batch: Batch, chosen: Tensor) -> Batch:
        """A batch with what crosses beside its fields.

        Args:
            batch: The batch.
            chosen: Where its images stand in the split, on the CPU.
        """
        if self._blocks is None:
            return {**batch, **self.fresh(batch["images"])}
        start = time.perf_counter()
        rows = self._gathered(self._blocks, chosen)
        due = self._steps % _EVERY == 0
        self._steps += 1
        if wrong := self._wrong(batch["images"], rows, compare=due, always=self.looks.device.type == "cpu"):
            return self._replaced(batch, chosen, wrong)
        self.report.read += len(chosen)
        self.report.saved += len(chosen) * self._cost - (time.perf_counter() - start)
        return {**batch, **{name: rows[name] for name in self.divided.fields}}

    def _replaced(self, batch: Batch, chosen: Tensor, wrong: str) -> Batch:
        """What to do about rows that are wrong: compute all of them again, once."""
        self.shelf.drop(self.key)
        if self._anew:
            self._stop(wrong)
        else:
            self._anew, self._steps = True, 0  # the new ones are compared at once
            self.say(f"{wrong}; they are computed again")
            self.begin(self._view, lambda: None)
        return self.complete(batch, chosen)

    def _stop(self, why: str) -> None:
        self.views, self._blocks = frozenset(), None
        self.report.views, self.report.why = 0, why  # a run that goes on does not try again
        self.say(f"{why}; nothing more is kept of this stage's frozen half")

    def _computed(self, missing: set[int], pulse: Callable[[], None]) -> Iterator[tuple[int, Rows]]:
        """The blocks that are missing, one after the other."""
        if not missing:
            return
        first, last = min(missing) * self.block_steps, (max(missing) + 1) * self.block_steps
        parts: list[Rows] = []
        for step, batch in enumerate(self.looks.batches(self._view, first), first):
            block = step // self.block_steps
            if block in missing:
                parts.append(self.rows_of(batch["images"]))
                if (step + 1) % self.block_steps == 0 or step + 1 == self.looks.steps:
                    yield block, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                    parts = []
                pulse()
            if step + 1 == last:
                return

    def rows_of(self, images: Tensor) -> Rows:
        """The rows of some images as they are kept: computed in a batch of the usual size."""
        start, count = time.perf_counter(), len(images)
        places = torch.arange(self.looks.size, device=images.device) % count
        rows = self._kept(self.fresh(images if count == self.looks.size else images[places]))
        self._cost = (time.perf_counter() - start) / self.looks.size
        self.report.computed += count
        return {**{name: value[:count] for name, value in rows.items()}, PIXELS: fingerprints(images).cpu()}

    def _kept(self, rows: Rows) -> Rows:
        """Rows as they are kept."""
        narrow = {torch.float32: torch.float16} if self.half else {}
        return {name: value.to("cpu", narrow.get(value.dtype, value.dtype)) for name, value in rows.items()}

    def _got(self, place: Place, count: int) -> Rows | None:
        """A block from the shelf, if it is what such a block has to be."""
        rows = self.shelf.get(place)
        if rows is None or rows.keys() != {*self.divided.fields, PIXELS}:
            return None
        wanted = {**self._form, PIXELS: (torch.Size(()), torch.int64)}
        found = {name: (value.shape, value.dtype) for name, value in rows.items()}
        return rows if found == {name: ((count, *shape), kind) for name, (shape, kind) in wanted.items()} else None

    def _gathered(self, blocks: list[Rows], chosen: Tensor) -> Rows:
        """The rows of some images, on the device."""
        if self._near:
            places = chosen.to(self.looks.device, non_blocking=True)
            return {name: rows[places] for name, rows in self._near.items()}
        count = self.looks.size * self.block_steps
        block, inside = chosen // count, chosen % count
        found: Rows = {}
        for name in (*self.divided.fields, PIXELS):
            first = blocks[0][name]
            # as a fresh one lies: what sums over it adds in that order
            order = self._lies.get(name, tuple(range(first.ndim)))
            rows = torch.empty_permuted((len(chosen), *first.shape[1:]), order, dtype=first.dtype)
            for number in block.unique().tolist():
                mine = block == number
                rows[mine] = blocks[number][name][inside[mine]]
            found[name] = rows.to(self.looks.device, self._live.get(name, rows.dtype), non_blocking=True)
        return found

    def _wrong(self, images: Tensor, rows: Rows, *, compare: bool, always: bool) -> str:
        """What is wrong with rows for some images; '' for nothing that was looked for."""
        if (compare or always) and not torch.equal(fingerprints(images), rows[PIXELS]):
            return "rows that were kept are not of the images of this batch"
        if not compare:
            return ""
        for name, value in self.fresh(images).items():
            if value.shape != rows[name].shape:
                return "rows that were kept have another shape than what the frozen half computes"
            if same(value, rows[name]):
                continue
            if not value.is_floating_point():
                return "rows that were kept differ from what the frozen half computes"
            error = float((value.double() - rows[name].double()).abs().max() / value.double().abs().max().clamp(1e-30))
            tolerance = _TOLERANCE[torch.float16 if self.half and value.dtype == torch.float32 else value.dtype]
            if not error <= tolerance:
                return f"rows that were kept differ from what the frozen half computes, by {error:.1e} of its largest"
            self.report.exact, self.report.error = False, max(self.report.error, error)
        self.on_read()
        return ""


def _order(value: Tensor) -> tuple[int, ...]:
    """The dimensions of a tensor as they lie in memory, the innermost one last."""
    return tuple(sorted(range(value.ndim), key=lambda axis: -value.stride()[axis]))


def described(report: Report) -> str:
    """A report in one line: images whose rows were read, and computed to be kept."""
    if not report.read:
        return f"no cache: {line(report.why)}"
    exact = "bit for bit the same" if report.exact else f"the same to {report.error:.0e}"
    said = f"cache {line(report.where)}: {report.read:,} read, {report.computed:,} computed"
    said += f", {report.saved:,.1f} s saved, {exact}"
    return f"{said}; {line(report.why)}" if report.why else said
