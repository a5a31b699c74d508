"""ModelScope and Hugging Face, behind one Protocol, through their own client libraries.

A client library is imported inside the method that needs it: they take a fifth of a second each.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from swiftune.hub.files import COMPANIONS, DATA, Kind

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from modelscope_hub import HubApi

PATIENCE = 5.0
"""Seconds in which a hub has to take a connection."""


class Hub(Protocol):
    """A place on the net that holds models and data sets, and the cache of its client library on this disk."""

    title: str
    needs_org: bool
    """Whether an id there always has the form org/name."""

    def endpoint(self) -> str:
        """Its address."""

    def cache(self) -> Path:
        """The folder in which its client library keeps what it has fetched."""

    def cached(self, kind: Kind, repo: str, revision: str | None) -> Path | None:
        """The folder of ``repo`` in the cache, whole or not, without asking the net."""

    def names(self, kind: Kind, repo: str, revision: str | None) -> list[str] | None:
        """The paths of all files of ``repo``; ``None`` where there is no such repository or revision."""

    def download(self, kind: Kind, repo: str, revision: str | None, names: Sequence[str]) -> Path:
        """Fetches those files into the cache, with a progress bar, and returns the folder."""


class ModelScope:
    """https://modelscope.cn; ``MODELSCOPE_ENDPOINT`` and ``MODELSCOPE_CACHE`` are its own settings."""

    title = "ModelScope"
    needs_org = True

    def endpoint(self) -> str:
        from modelscope_hub import HubConfig

        return str(HubConfig().endpoint)

    def cache(self) -> Path:
        from modelscope_hub import HubConfig

        return HubConfig().cache_dir

    def cached(self, kind: Kind, repo: str, revision: str | None) -> Path | None:
        from modelscope_hub import CacheNotFound

        if "/" not in repo:
            return None
        try:
            return self._api().download_repo(repo, kind, revision=revision, local_files_only=True)
        except CacheNotFound:
            return next((folder for folder in self._old_folders(kind, repo) if folder.is_dir()), None)

    def names(self, kind: Kind, repo: str, revision: str | None) -> list[str] | None:
        from modelscope_hub import NotExistError

        try:
            files = self._online(kind, repo).list_repo_files(repo, kind, revision=revision)
        except NotExistError:
            return None
        return [file.path for file in files if file.type != "tree"]

    def download(self, kind: Kind, repo: str, revision: str | None, names: Sequence[str]) -> Path:
        patterns = [glob.escape(name) for name in names]
        return self._online(kind, repo).download_repo(repo, kind, revision=revision, allow_patterns=patterns)

    def _api(self, endpoint: str | None = None) -> HubApi:
        from modelscope_hub import HubApi, HubConfig

        return HubApi(config=HubConfig(endpoint=endpoint))

    def _online(self, kind: Kind, repo: str) -> HubApi:
        """The client of whichever of its two sites (.cn, .ai) has ``repo``."""
        return self._api(self._api().resolve_endpoint_for_read(repo, repo_type=kind))

    def _old_folders(self, kind: Kind, repo: str) -> list[Path]:
        """Where releases before 1.38 kept ``repo`` and today's client does not look; they wrote dots as ``___``."""
        org, name = repo.split("/")
        root = self.cache()
        owners = [root / f"{kind}s" / org, root / "hub" / f"{kind}s" / org]
        if kind == "model":
            owners += [root / org, root / "hub" / org]
        return [owner / written for owner in owners for written in (name.replace(".", "___"), name)]


class HuggingFace:
    """https://huggingface.co; ``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_TOKEN`` are its own settings."""

    title = "Hugging Face"
    needs_org = False

    def endpoint(self) -> str:
        from huggingface_hub import constants

        return constants.ENDPOINT

    def cache(self) -> Path:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)

    def cached(self, kind: Kind, repo: str, revision: str | None) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        # Where the client kept the list of the repository's files, it misses those of them that we would use.
        expected = list(DATA if kind == "dataset" else COMPANIONS[:-4])
        try:
            return Path(
                snapshot_download(
                    repo, repo_type=kind, revision=revision, local_files_only=True, allow_patterns=expected
                )
            )
        except (LocalEntryNotFoundError, HFValidationError):  # the latter: an id that it gives to nobody
            return None

    def names(self, kind: Kind, repo: str, revision: str | None) -> list[str] | None:
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            return self._api().list_repo_files(repo, repo_type=kind, revision=revision)
        except GatedRepoError:  # it exists: its terms are to be accepted on its page, and the message says where
            raise
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
            return None

    def download(self, kind: Kind, repo: str, revision: str | None, names: Sequence[str]) -> Path:
        from huggingface_hub import snapshot_download

        patterns = [glob.escape(name) for name in names]
        return Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=patterns))

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi()


def answers(url: str) -> bool:
    """Whether a server takes a connection; the client libraries would try again for a minute and more."""
    import requests

    try:
        requests.head(url, timeout=PATIENCE)
    except requests.exceptions.SSLError:
        return True  # it is there; the client library explains the certificate
    except requests.exceptions.RequestException:
        return False
    return True


def flag(name: str) -> bool:
    """A yes-or-no environment variable, read as the client libraries read theirs."""
    return os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
