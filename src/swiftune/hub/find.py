"""The order in which an id is looked up, and the list of places that is shown when it is nowhere."""

from __future__ import annotations

import difflib
import os
import re
from fnmatch import fnmatch
from pathlib import Path

from swiftune.errors import DownloadError, NotFoundError, SwiftuneError, UsageError
from swiftune.hub import builtin
from swiftune.hub.clients import Hub, HuggingFace, ModelScope, answers, flag
from swiftune.hub.files import DATA, Kind, is_whole, wanted
from swiftune.runtime.paths import cache_dir, locked

ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")
LONGEST = 200
"""Characters of an id: it becomes the name of a file."""
MIRROR = "SWIFT_LOCAL_HUB"


def find_model(name: str | None, *, use_hf: bool = False, revision: str | None = None) -> Path:
    """The folder of a model.

    Args:
        name: a path; an id ``org/name``, or ``name`` alone where a mirror is kept; empty: the built-in model.
        use_hf: download from Hugging Face instead of ModelScope.
        revision: a branch, tag or commit of the repository; means nothing for a path, a built-in or the mirror.

    Raises:
        NotFoundError: it is nowhere; lists every place that was looked in.
        DownloadError: a hub has it, and fetching it failed.
    """
    return _find("model", (name or "").strip() or builtin.MODEL, use_hf, revision)


def find_dataset(name: str, *, use_hf: bool = False, revision: str | None = None) -> Path:
    """The file or folder of a data set: a path, the built-in ``swift/self-cognition``, or an id."""
    return _find("dataset", name.strip(), use_hf, revision)


def _find(kind: Kind, name: str, use_hf: bool, revision: str | None) -> Path:
    path = Path(os.path.expanduser(name))
    if name and os.path.exists(path):
        return path
    looked = [f"the path {path.absolute()}: not there"]
    if found := builtin.find(kind, name):
        return found
    looked.append(f"the built-in {kind}s: {', '.join(builtin.NAMES[kind])}")
    if not _is_id(kind, name):
        raise _nowhere(kind, name, looked)
    if found := _in_mirror(kind, name, looked):
        return found
    hubs: tuple[Hub, ...] = (ModelScope(), HuggingFace())
    for hub in hubs:
        if found := _in_cache(hub, kind, name, revision, looked):
            return found
    if found := builtin.find_alias(kind, name):
        return found
    wants_hf = use_hf or flag("USE_HF")
    return _download(hubs[wants_hf], kind, name, revision, looked)


def _is_id(kind: Kind, name: str) -> bool:
    is_file = kind == "dataset" and any(fnmatch(name, pattern) for pattern in DATA)
    return bool(ID.fullmatch(name)) and len(name) <= LONGEST and not is_file


def _in_mirror(kind: Kind, name: str, looked: list[str]) -> Path | None:
    if not (root := _mirror()):
        looked.append(f"the local mirror: ${MIRROR} is not set")
        return None
    if not root.is_dir():
        looked.append(f"the local mirror {root} (${MIRROR}): no such folder")
        return None
    found = [root / each for each in _mirrored(root) if name in (each, each.split("/")[1])]
    if len(found) > 1:
        names = " and ".join(str(folder.relative_to(root)) for folder in found)
        raise UsageError(f"The {kind} {name} is in the local mirror {root} more than once: {names}.", "Say which.")
    looked.append(f"the local mirror {root} (${MIRROR}): not there")
    return found[0] if found else None


def _in_cache(hub: Hub, kind: Kind, name: str, revision: str | None, looked: list[str]) -> Path | None:
    where = f"{hub.title}'s cache {hub.cache()}"
    if _unfinished(hub, kind, name).exists():
        looked.append(f"{where}: a download of it that was not finished")
        return None
    found = hub.cached(kind, name, revision)
    if found and is_whole(kind, found):
        return found
    looked.append(f"{where}: {'only a part of it' if found else 'not there'}")
    return None


def _download(hub: Hub, kind: Kind, name: str, revision: str | None, looked: list[str]) -> Path:
    where = f"{hub.title} ({hub.endpoint()})"
    if flag("HF_HUB_OFFLINE"):
        looked.append(f"{where}: not asked, because HF_HUB_OFFLINE is set")
        raise _nowhere(kind, name, looked)
    if hub.needs_org and "/" not in name:
        looked.append(f"{where}: not asked, because an id there has the form org/name")
        raise _nowhere(kind, name, looked)
    if not answers(hub.endpoint()):
        looked.append(f"{where}: did not answer")
        raise _nowhere(kind, name, looked)
    with locked(_key(hub, kind, name), f"fetching the {kind} {name}"):
        if found := _in_cache(hub, kind, name, revision, []):
            return found  # another process fetched it while this one waited
        try:
            names = hub.names(kind, name, revision)
            if names is None:
                looked.append(f"{where}: has no such {kind}" + (f" at revision {revision}" if revision else ""))
                raise _nowhere(kind, name, looked)
            return _fetch(hub, kind, name, revision, wanted(kind, names, f"{name} on {hub.title}"))
        except SwiftuneError:
            raise
        except Exception as error:  # client libraries, HTTP libraries and the file system raise dozens of kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DownloadError(
                f"The {kind} {name} could not be fetched from {where}: {reason}",
                "What has arrived is kept; the same command goes on from there.",
            ) from error


def _fetch(hub: Hub, kind: Kind, name: str, revision: str | None, names: list[str]) -> Path:
    """Downloads under a mark that stays if this process ends before all is there."""
    mark = _unfinished(hub, kind, name)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    folder = hub.download(kind, name, revision, names)
    absent = [name for name in names if not (folder / name).exists()]
    if absent:
        raise DownloadError(f"{hub.title} did not deliver {absent[0]}, a file of {name}.")
    mark.unlink()
    return folder


def _key(hub: Hub, kind: Kind, name: str) -> str:
    return f"{hub.title.replace(' ', '').lower()}--{kind}--{name.replace('/', '--')}"


def _unfinished(hub: Hub, kind: Kind, name: str) -> Path:
    return cache_dir() / "unfinished" / _key(hub, kind, name)


def _mirror() -> Path | None:
    root = os.environ.get(MIRROR)
    return Path(os.path.expanduser(root)) if root else None


def _mirrored(root: Path) -> list[str]:
    """Every ``org/name`` in the mirror."""
    return sorted(f"{name.parent.name}/{name.name}" for name in root.glob("*/*") if name.is_dir())


def _nowhere(kind: Kind, name: str, looked: list[str]) -> NotFoundError:
    if _is_id(kind, name):
        root = _mirror()
        near = _nearest(name, [*builtin.NAMES[kind], *(_mirrored(root) if root and root.is_dir() else [])])
        cure = f"Name its folder, or set {MIRROR} to a folder that holds org/name"
        if any(place.startswith("Hugging Face (") for place in looked):
            cure += "."
        else:
            cure += ", or take it from Hugging Face with --use_hf true."
    else:
        folder = Path(os.path.expanduser(name)).parent
        beside = [str(folder / each.name) for each in folder.iterdir()] if os.path.isdir(folder) else []
        near = _nearest(name, [*builtin.NAMES[kind], *beside])
        cure = "It is no id of the form org/name either, so no hub was asked."
        if "," in name:
            cure += " Several names are parted by blanks, not by commas."
    cures = [f"Did you mean {' or '.join(near)}?", cure] if near else [cure]
    places = "\n".join(f"  - {place}" for place in looked)
    return NotFoundError(f"The {kind} {name!r} was not found. Looked in:\n{places}", " ".join(cures))


def _nearest(name: str, known: list[str]) -> list[str]:
    """Up to three known names that look like ``name``, compared without case, by the whole and by the last part."""
    spelled = {form.casefold(): full for full in known for form in (full, full.split("/")[-1])}
    forms = dict.fromkeys((name.casefold(), name.casefold().split("/")[-1]))
    close = [spelled[hit] for form in forms for hit in difflib.get_close_matches(form, spelled, n=3, cutoff=0.7)]
    return list(dict.fromkeys(close))[:3]
