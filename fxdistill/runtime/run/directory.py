"""A run directory on disk: which files it has, whom it belongs to, and who may work in it.

    plan.json        the plan that is run; a directory holds one run
    origin.json      where that plan lies, to which the places that it names are relative, and its hash
    metrics.jsonl    one line an epoch
    tensorboard/     the same for TensorBoard
    profile/         of --profile: a trace of some steps of every stage
    checkpoint.pt    the last checkpoint: removed when the run is complete
    student.pt       the trained student, a bundle, and student_state_dict.pt; so for every member that is kept
    student.onnx     the same, exported
    jobs/            of --jobs: the runs of the seeds, until they are put together
    trained_….pt     of each training the state that it ended in, for --more-epochs
    result.json      what came out; its presence says that the run is complete
    details.json     what its report shows beside that, see :mod:`fxdistill.runtime.run.details`
    exports.json     files in less precision, see :mod:`fxdistill.runtime.deployment.exports`
    report.html      the same for people, of the command line's making
    .lock            held by the process at work; the file stays, the lock goes with the process

Every file is written whole or not at all, ``plan.json`` first of those that make a directory a run.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fxdistill.errors import PlanError, RunDirError
from fxdistill.files import check_text, failure, read_text, write_text
from fxdistill.plan import difference
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load as load_plan
from fxdistill.runtime.run import lock, outcome
from fxdistill.runtime.run.forms import first_wrong

_OTHER = "choose another directory with -o"


@dataclass(frozen=True)
class RunDir:
    """A run directory."""

    path: Path

    @classmethod
    @contextmanager
    def opened(cls, path: Path, plan: Plan, *, origin: Path, resume: bool) -> "Iterator[RunDir]":
        """Start a run in a new or empty directory, or take one up again; it is this process's for as long as it takes.

        Nothing of the run is written before the directory is locked: of two processes that start at once, the second
        leaves everything as it is.

        Args:
            path: The directory.
            plan: The plan to run.
            origin: The plan's file.
            resume: Whether a run that is there may be continued.

        Raises:
            RunDirError: It holds another run, or this one and ``resume`` is not asked for, or none and it is; or
                another process is at work in it; or its name is no text.
        """
        check_text(path, error=RunDirError)
        run = cls(path)
        run.holds(plan, resume=resume)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise failure(
                cause, where=str(path), what="cannot make the run directory", hint=_OTHER, error=RunDirError
            ) from cause
        with lock.lock(path):
            run.sweep()
            if not run.holds(plan, resume=resume):
                place = Path(os.path.relpath(origin.resolve(), path.resolve())).as_posix()
                run.note_origin({"plan": place, "sha256": [plan.sha256]})
                write_text(run.plan_path, plan.to_json())
            elif not resume:
                complete = run.result() is not None
                raise RunDirError(
                    f"the run directory already holds this run{', complete' if complete else ''}", where=str(path),
                    hint=f"{'see it with `fxdistill show`' if complete else 'continue it with --resume'}, or {_OTHER}",
                )  # fmt: skip
            yield run

    @classmethod
    def existing(cls, path: Path) -> "RunDir":
        """A directory that holds a run.

        Raises:
            RunDirError: It does not.
        """
        run = cls(path)
        if not run.plan_path.exists():
            there = "this directory holds no run" if path.is_dir() else "this is a file, and no run directory"
            what, hint = (there if path.exists() else "there is no such directory"), "`fxdistill run PLAN -o DIR`"
            raise RunDirError(what, where=str(path), hint=f"give the directory of a run, or start one with {hint}")
        run._check_links()
        return run

    def holds(self, plan: Plan, *, resume: bool) -> bool:
        """Whether the run of this plan is there; False where a run can start.

        Args:
            plan: The plan.
            resume: Whether a run is to be continued: then there must be one.

        Raises:
            RunDirError: Something else is there, or nothing to continue.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunDirError("the run directory is a file", where=str(self.path), hint=_OTHER)
        self._check_links()
        if not self.plan_path.exists():
            # what a run leaves that was killed before it had its plan is no obstacle
            if self.path.exists() and any(not _is_ours(entry) for entry in self.path.iterdir()):
                raise RunDirError("the directory is not empty and holds no run", where=str(self.path), hint=_OTHER)
            if resume:
                raise RunDirError(
                    "there is no run to resume", where=str(self.path),
                    hint="name the run's directory with -o, or start the run without --resume",
                )  # fmt: skip
            return False
        begun = self.plan()
        self._check_as_begun(begun)
        if begun.sha256 != plan.sha256:
            raise RunDirError(
                f"the run directory holds another run, whose plan differs in {difference.told(begun, plan)}",
                where=str(self.path),
                hint="go on with it as it was begun: "
                f"fxdistill run {shlex.quote(str(self.path))} --resume; or {_OTHER}",
            )  # fmt: skip
        return True

    def _check_links(self) -> None:
        """Refuse links among what a run writes: it would write elsewhere."""
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if entry.is_symlink() and (_WRITTEN.fullmatch(entry.name) or _TEMPORARY.fullmatch(entry.name)):
                raise RunDirError(
                    f"'{entry.name}' in the run directory is a link, and a run writes there and nowhere else",
                    where=str(self.path), hint="put the file itself in its place",
                )  # fmt: skip

    def _check_as_begun(self, plan: Plan) -> None:
        """Refuse to go on where the directory's own copy of the plan was edited."""
        known = self._origin().get("sha256", [plan.sha256])
        if plan.sha256 in known:
            return
        differs = "it was edited since"
        if self.source.is_file():
            with contextlib.suppress(PlanError):
                original = load_plan(self.source)
                differs = (
                    f"it now differs in {difference.told(original, plan)}" if original.sha256 in known else differs
                )
        raise RunDirError(
            f"plan.json in a run directory is what the run was begun with, and {differs}", where=str(self.plan_path),
            hint=f"undo that and go on with --resume; or run the edited plan anew: "
            f"fxdistill run {shlex.quote(str(self.plan_path))} -o ANOTHER_DIRECTORY",
        )  # fmt: skip

    @property
    def plan_path(self) -> Path:
        """The plan."""
        return self.path / "plan.json"

    @property
    def origin_path(self) -> Path:
        """Where the plan came from."""
        return self.path / "origin.json"

    def bundle_path(self, member: str) -> Path:
        """A trained member: a bundle."""
        return self.path / f"{member}.pt"

    def state_dict_path(self, member: str) -> Path:
        """Its weights, for a class of the user's own."""
        return self.path / f"{member}_state_dict.pt"

    def onnx_path(self, member: str) -> Path:
        """An exported member."""
        return self.path / f"{member}.onnx"

    def trained_path(self, arm: str, seed: int) -> Path:
        """The state in which a training ended."""
        return self.path / f"trained_{arm}-seed{seed}.pt"

    @property
    def metrics_path(self) -> Path:
        """One JSON line an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard_path(self) -> Path:
        """TensorBoard's log directory."""
        return self.path / "tensorboard"

    @property
    def profile_path(self) -> Path:
        """Where the traces of a profiled run lie."""
        return self.path / "profile"

    @property
    def jobs_path(self) -> Path:
        """Where the runs of single seeds lie, while several are carried out at once."""
        return self.path / "jobs"

    @property
    def checkpoint_path(self) -> Path:
        """The last checkpoint."""
        return self.path / "checkpoint.pt"

    @property
    def result_path(self) -> Path:
        """What came out."""
        return self.path / "result.json"

    @property
    def details_path(self) -> Path:
        """What the report shows beside that."""
        return self.path / "details.json"

    @property
    def exports_path(self) -> Path:
        """What files reach that were exported in less precision."""
        return self.path / "exports.json"

    @property
    def source(self) -> Path:
        """The file that the plan was taken from.

        Raises:
            RunDirError: What says so is damaged.
        """
        plan = self.path / str(self._origin()["plan"])
        folder = plan.parent.resolve()
        return (folder if self.path.is_absolute() else Path(os.path.relpath(folder))) / plan.name

    @property
    def base(self) -> Path:
        """The folder to which the places in the plan are relative.

        Raises:
            RunDirError: The file that says so is damaged.
        """
        return self.source.parent

    def _origin(self) -> dict[str, Any]:
        try:
            origin: dict[str, Any] = json.loads(read_text(self.origin_path))
            known = origin.get("sha256", [])
            whole = isinstance(origin["plan"], str) and "\0" not in origin["plan"] and isinstance(known, list)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            there = self.origin_path.exists()
            raise RunDirError(
                "origin.json is damaged" if there else "origin.json is missing, which every run has beside its plan",
                where=str(self.origin_path), hint="run the plan anew" + ("" if there else ", or name a run's folder"),
            )  # fmt: skip
        return origin

    def expect(self, plan: Plan) -> None:
        """Note that the directory's plan is about to become another one."""
        origin = self._origin()
        self.note_origin({**origin, "sha256": [*origin.get("sha256", [self.plan().sha256]), plan.sha256]})

    def note_origin(self, origin: Mapping[str, Any]) -> None:
        """Write where the plan comes from, and which hashes it may have."""
        write_text(self.origin_path, json.dumps(origin) + "\n")

    def plan(self) -> Plan:
        """The plan that this directory runs."""
        return load_plan(self.plan_path)

    def result(self) -> dict[str, Any] | None:
        """What came out, None while the run is not complete; what was there before an extension is none.

        Raises:
            RunDirError: The file is damaged.
        """
        if not self.result_path.exists():
            return None
        try:
            text = read_text(self.result_path)
            result = outcome.parsed(text)
            plan = self.plan()
            begun = result.get("plan", plan.sha256)
            if begun != plan.sha256 and plan.sha256 in (known := self._origin().get("sha256", [])) and begun in known:
                return None
            wrong = outcome.odd(result, plan) if begun == plan.sha256 else "it is of another plan"
        except ValidationError as cause:
            wrong = first_wrong(cause)
        except (OSError, ValueError, RecursionError):
            wrong = "it is no JSON"
        if wrong:
            raise RunDirError(f"result.json is damaged: {wrong}", where=str(self.result_path), hint="run the plan anew")
        return result

    def sweep(self) -> None:
        """Remove the temporary files and folders of writes that were killed."""
        for entry in self.path.iterdir():
            if _TEMPORARY.fullmatch(entry.name):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)


_TEXTS = r"(plan|origin|result|details|exports)\.json|report\.html|metrics\.jsonl"
_WRITTEN = re.compile(rf"\.lock|{_TEXTS}|tensorboard|profile|jobs|checkpoint\.pt|[a-z][\w+-]*\.(pt|onnx|onnx\.data)")
"""The names of what a run writes."""
_TEMPORARY = re.compile(rf"\.({_TEXTS}|[a-z][a-z0-9_+-]*\.(pt|onnx))\.[a-z0-9_]{{8}}")
"""The names of temporary files: the name of the file that they were to become, hidden, and eight random letters."""


def _is_ours(entry: Path) -> bool:
    return entry.name in {lock.NAME, "origin.json"} or _TEMPORARY.fullmatch(entry.name) is not None


def origin_of(plan: Path) -> Path:
    """The file to whose folder the places in a plan are relative: of a run's copy the one that it was taken from."""
    run = RunDir(plan.parent)
    return run.source if plan.name == run.plan_path.name and run.origin_path.is_file() else plan
