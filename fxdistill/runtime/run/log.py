"""The metrics of a run: JSON lines, and the same for TensorBoard.

The lines are the truth. After a kill they are cut back to the length that the checkpoint knows, and TensorBoard's files
are made anew from what is left: neither ever shows an epoch twice.
"""

import json
import shutil
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from fxdistill import files
from fxdistill.plan.document import Plan
from fxdistill.runtime.run import records
from fxdistill.runtime.run.directory import RunDir

_NONE: Mapping[str, bytes] = MappingProxyType({})


class Metrics:
    """The metrics of one run directory, open for more.

    Args:
        run: The directory.
        size: How much of metrics.jsonl counts, bytes; the rest was written after the last checkpoint.
        plan: The plan: what a line can be about.

    Raises:
        RunDirError: A line is damaged.
        PlanError: They cannot be written there.
        StorageError: The disk is full.
    """

    def __init__(self, run: RunDir, *, size: int, plan: Plan) -> None:
        self._lines, self._events = run.metrics_path, run.tensorboard_path
        self._steps: dict[str, int] = {}
        kept = records.read(self._lines, plan, size=size)
        if self._lines.exists():
            files.write_bytes(self._lines, self._lines.read_bytes()[:size])
        with files.writing(self._events):
            if self._events.exists():
                shutil.rmtree(self._events)
            for record in kept:
                self._event(record)

    @property
    def size(self) -> int:
        """Length of metrics.jsonl, bytes."""
        return self._lines.stat().st_size if self._lines.exists() else 0

    def log(self, record: dict[str, Any]) -> None:
        """Append one epoch: seed, name, stage, epoch, losses to six digits, metrics and images_per_second.

        Raises:
            PlanError: It cannot be written there.
            StorageError: The disk is full.
        """
        losses = {key: float(f"{value:.6g}") for key, value in record["losses"].items()}  # however small they are
        record = {**record, "losses": losses, "time": round(time.time(), 3)}
        with files.writing(self._lines):
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self._event(record)

    def _event(self, record: dict[str, Any]) -> None:
        """Append a record to the event file of its arm, at the number of epochs that the arm has had."""
        arm = f"{record['name']}-seed{record['seed']}"
        step = self._steps[arm] = self._steps.get(arm, 0) + 1
        values = {f"{record['stage']}/{key}": value for key, value in record["losses"].items()}
        values |= {name: record[name] for name in ("images_per_second", "learning_rate") if name in record}
        values |= record["metrics"]
        kept = record.get("kept", {}).items()
        values |= {f"kept/{level}/{layer}": count for level, found in kept for layer, count in found.items()}
        write_event(self._events / arm, step=step, seconds=record["time"], values=values)


class Untold(Metrics):
    """The metrics in a process that writes none."""

    size = 0

    def __init__(self) -> None:
        """Nothing is opened."""

    def log(self, record: dict[str, Any]) -> None:
        """Another process logs it."""


def write_event(
    folder: Path, *, step: int, seconds: float, values: Mapping[str, float], pictures: Mapping[str, bytes] = _NONE
) -> None:
    """Append scalars, and pictures as PNG, to TensorBoard's event file of a folder.

    TensorBoard's event writers start a thread and a new file each time; its record writer appends to any file.

    Raises:
        OSError: It cannot be written.
    """
    shown = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    shown += [Summary.Value(tag=tag, image=_picture(png)) for tag, png in pictures.items()]
    summary = Summary(value=shown)
    path = folder / "events.out.tfevents.fxdistill"
    events = [Event(wall_time=seconds, step=step, summary=summary)]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        events.insert(0, Event(wall_time=seconds, file_version="brain.Event:2"))
    with path.open("ab") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())


def _picture(png: bytes) -> Any:
    width, height, _depth, kind = struct.unpack(">IIBB", png[16:26])  # of its header
    return Summary.Image(width=width, height=height, colorspace=3 if kind else 1, encoded_image_string=png)
