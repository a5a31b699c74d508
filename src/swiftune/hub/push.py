"""A folder of this disk to a hub, through the hub's own client library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from swiftune.errors import DownloadError
from swiftune.hub.clients import Hub, HuggingFace, ModelScope, answers, flag


def push_folder(
    folder: Path, repo: str, *, use_hf: bool, private: bool, message: str, patterns: Sequence[str] | None = None
) -> str:
    """Uploads a model's folder, and returns the address of its page.

    The token is the client library's affair: ``MODELSCOPE_API_TOKEN`` or ``HF_TOKEN``, or what its own login kept.

    Args:
        repo: org/name; made if there is none.
        private: make it a private one.
        patterns: which files; None: all.

    Raises:
        DownloadError: the hub did not answer, or refused.
    """
    to_hf = use_hf or flag("USE_HF")
    hub: Hub = HuggingFace() if to_hf else ModelScope()
    if not answers(hub.endpoint()):
        raise DownloadError(f"{hub.title} ({hub.endpoint()}) did not answer; {folder} was not uploaded.")
    try:
        (_to_hugging_face if to_hf else _to_modelscope)(folder, repo, private, message, patterns)
    except Exception as error:  # client libraries, HTTP libraries and the file system raise dozens of kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DownloadError(
            f"{folder} could not be uploaded to {repo} on {hub.title}: {reason}",
            f"Is {'HF_TOKEN' if to_hf else 'MODELSCOPE_API_TOKEN'} set to a token that may write there?",
        ) from error
    return f"{hub.endpoint()}/{'' if to_hf else 'models/'}{repo}"


def _to_hugging_face(folder: Path, repo: str, private: bool, message: str, patterns: Sequence[str] | None) -> None:
    from huggingface_hub import HfApi

    api, allowed = HfApi(), list(patterns) if patterns else None
    api.create_repo(repo, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, allow_patterns=allowed)


def _to_modelscope(folder: Path, repo: str, private: bool, message: str, patterns: Sequence[str] | None) -> None:
    from modelscope_hub import HubApi

    api, allowed = HubApi(), list(patterns) if patterns else None
    if not api.repo_exists(repo, "model"):
        api.create_repo(repo, "model", visibility="private" if private else "public")
    api.upload_folder(repo, "model", folder, commit_message=message, allow_patterns=allowed, use_cache=False)
