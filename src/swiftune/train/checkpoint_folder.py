"""Folders of checkpoints: whole, or not called a checkpoint.

``checkpoint-50`` is written as ``.checkpoint-50.partial``. Its files are forced to the disk; then ``complete.json``,
which has the size and SHA-256 of each; then the folder gets its name. It loses that name before its files are deleted.
So whenever a process or the power fails, what is called ``checkpoint-50`` and has its ``complete.json`` is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from swiftune.errors import CheckpointError
from swiftune.runtime.console import warn
from swiftune.runtime.paths import sync

MARKER = "complete.json"
BEST = "checkpoint-best"


def name(step: int) -> str:
    """The folder's name."""
    return f"checkpoint-{step}"


def _partial(run: Path, step: int) -> Path:
    return run / f".{name(step)}.partial"


@contextmanager
def new(run: Path, step: int) -> Iterator[Path]:
    """A folder to fill, which becomes the checkpoint of ``step`` at the end of the block, or vanishes if it raises.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    final, partial = run / name(step), _partial(run, step)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _seal(partial)
        if final.exists():  # damaged: a run goes on from a whole one
            _discard(final, partial.with_suffix(".old"))
        partial.rename(final)
        sync(run)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Forces all files to the disk, and then the marker."""
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    sync(folder, deep=True)
    (folder / MARKER).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    sync(folder / MARKER)
    sync(folder)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fault(folder: Path, *, contents: bool) -> str:
    """What is wrong with a checkpoint; empty where it is whole.

    Args:
        contents: read all files, too; otherwise their sizes are looked at.
    """
    try:
        files = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        for file, was in files.items():
            if not (folder / file).is_file():
                return f"it has no {file}"
            size = (folder / file).stat().st_size
            if size != was["size"]:
                return f"{file} has {size:,} bytes, and had {was['size']:,} when it was written"
            if contents and _sha256(folder / file) != was["sha256"]:
                return f"{file} is not as it was written: its checksum differs"
    except FileNotFoundError:
        return f"it has no {MARKER}: its writing was broken off, or another program wrote it"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MARKER} is damaged ({error})"
    return ""


def verify(folder: Path) -> None:
    """Reads every file of a checkpoint.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not as it was written.
    """
    flag = f"--resume_from_checkpoint {folder}"
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        raise CheckpointError(f"{flag}: there is no such folder.", "Name a checkpoint-... folder of a run, or `true`.")
    if fault := _fault(folder, contents=True):
        raise CheckpointError(f"{flag}: the checkpoint is not whole, {fault}.", "Take an earlier checkpoint.")


def listing(run: Path) -> list[tuple[int, Path]]:
    """The whole checkpoints of a run, oldest first."""
    return sorted((step, path) for step, path in _named(run) if not _fault(path, contents=False))


def rotate(run: Path, limit: int | None, keep: Collection[int | None]) -> None:
    """Deletes the oldest checkpoints beyond ``limit``; those of the steps in ``keep`` stay."""
    if not limit:
        return
    saved = listing(run)
    spare = [(step, path) for step, path in saved if step not in keep]
    for step, path in spare[: max(0, len(saved) - limit)]:
        _discard(path, _partial(run, step))


def _discard(folder: Path, beside: Path) -> None:
    """Deletes a checkpoint, which is none from the first moment on."""
    shutil.rmtree(beside, ignore_errors=True)
    folder.rename(beside)
    shutil.rmtree(beside)


def leftovers(run: Path) -> list[Path]:
    """What a process that was killed left half written, or half deleted, in the run's folder."""
    return [path for kind in ("partial", "old") for path in run.glob(f".checkpoint-*.{kind}")]


def clean(run: Path) -> None:
    """Deletes the leftovers; nobody else may be training there."""
    for left in leftovers(run):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def point_best(run: Path, step: int) -> None:
    """Lets ``checkpoint-best`` point to the checkpoint of ``step``, if there is one, in one move."""
    if not (run / name(step)).is_dir() or (run / BEST).resolve() == (run / name(step)).resolve():
        return
    link = run / f".{BEST}.partial"
    link.unlink(missing_ok=True)
    link.symlink_to(name(step), target_is_directory=True)
    os.replace(link, run / BEST)


def newest(output_dir: Path) -> Path:
    """The newest whole checkpoint of the newest run that has one (``--resume_from_checkpoint true``), every file read.

    Args:
        output_dir: folder of runs, or of one run.

    Raises:
        CheckpointError: there is none.
    """
    runs = [output_dir, *output_dir.glob("v*-*")] if output_dir.is_dir() else []
    for run in sorted(runs, key=_last_saved, reverse=True):
        for _, folder in sorted(_named(run), reverse=True):
            fault = _fault(folder, contents=True)
            if not fault:
                return folder
            warn(f"{folder} is passed over: {fault}.")
    raise CheckpointError(
        f"--resume_from_checkpoint true: {output_dir} has no whole checkpoint.",
        "Name one: --resume_from_checkpoint DIR.",
    )


def is_newest(folder: Path) -> bool:
    """Whether it is a run's, and no whole checkpoint of that run is newer; those that may be are read."""
    steps = {path: step for step, path in _named(folder.parent)}
    return folder in steps and all(_fault(path, contents=True) for path, step in steps.items() if step > steps[folder])


def _last_saved(run: Path) -> int:
    return max((marker.stat().st_mtime_ns for marker in run.glob(f"checkpoint-*/{MARKER}")), default=0)


def _named(run: Path) -> list[tuple[int, Path]]:
    """Folders called checkpoints, whole or not."""
    return [(int(m[1]), p) for p in run.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))]
