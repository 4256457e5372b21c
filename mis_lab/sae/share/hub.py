"""Folders of SAEs on a hub of models: pushed, and pulled back.

The hub is the one that huggingface_hub knows: HF_ENDPOINT names another one, HF_TOKEN (or ``hf auth login``) says who
you are, HF_HUB_OFFLINE=1 forbids to ask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from mis_lab.core.errors import ConfigError, MissingFileError, StoreError
from mis_lab.sae import io
from mis_lab.sae.share.export import CARD
from mis_lab.sae.share.load import folder_name, folders_of

PUSHED = tuple(f"{at}{name}" for at in ("", "*/") for name in (io.WEIGHTS, io.DESCRIPTION, CARD))  # nothing beside them
PULLED = ("*.safetensors", "*.json", "*.md")  # other libraries' too, and nothing that could run when it is read
RIGHTS = (401, 403)
# Packages whose exceptions mean that a hub was not reached (mis_lab.model.hub knows them too, but loads timm).
CLIENTS = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub")


def push(folder: Path, repository: str, private: bool = False, message: str = "Sparse autoencoders") -> str:
    """Upload the SAEs in `folder` (and their cards) to `repository`, made where it does not exist.

    Returns:
        The address of the commit.

    Raises:
        StoreError: when `folder` has no SAE.
        ConfigError: for a name that is none, or without a token.
        MissingFileError: when the hub cannot be reached or refuses.
    """
    if not folders_of(folder):
        raise StoreError(f"no SAE in {folder}", fix="'mis-lab sae export RUN_DIR FOLDER' writes one.")
    _check_name(repository)
    from huggingface_hub import HfApi, constants, get_token

    if get_token() is None:
        raise ConfigError(
            f"pushing to {repository} needs a token of {constants.ENDPOINT}",
            looked=f"HF_TOKEN and {constants.HF_TOKEN_PATH}",
            fix="Run 'hf auth login', or set HF_TOKEN to a token that may write.",
        )
    with _told(repository, f"push {folder} to", "Nothing was committed: push again later, or copy the folder by hand."):
        api = HfApi(endpoint=constants.ENDPOINT)
        api.create_repo(repository, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, allow_patterns=list(PUSHED)
        )
    return str(commit.commit_url)


def pull(repository: str, folder: Path, site: str = "", revision: str | None = None) -> list[Path]:
    """Download the SAEs of `repository` into `folder`.

    Args:
        site: only this one; all by default.
        revision: branch, tag or commit.

    Returns:
        The folders of the SAEs.

    Raises:
        ConfigError: for a name that is none.
        MissingFileError: when the hub cannot be reached, or has no such repository, revision or site.
    """
    _check_name(repository)
    from huggingface_hub import constants, snapshot_download

    patterns = [f"{folder_name(site)}/{pattern}" for pattern in PULLED] if site else list(PULLED)
    by_hand = f"Put {io.WEIGHTS} and {io.DESCRIPTION} of {repository} into {folder} by hand"
    with _told(repository, "pull", f"{by_hand}, or set HF_ENDPOINT to a mirror."):
        snapshot_download(
            repository, local_dir=folder, revision=revision, allow_patterns=patterns, endpoint=constants.ENDPOINT
        )
    found = folders_of(folder / folder_name(site)) if site else folders_of(folder)
    if not found:
        raise MissingFileError(
            f"{repository} holds no SAE of mis_lab" + (f" at {site}" if site else ""),
            looked=folder,
            fix="'mis-lab sae import' takes over those of other libraries; what was fetched is in that folder.",
        )
    return list(found.values())


def _check_name(repository: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"{repository} is no name of a repository ({reason})", fix="Use OWNER/NAME.") from error
    if repository.count("/") != 1:
        raise ConfigError(f"{repository} is no name of a repository", fix="Use OWNER/NAME.")


@contextmanager
def _told(repository: str, what: str, by_hand: str) -> Iterator[None]:
    """Say in one line why the hub did not do it."""
    try:
        yield
    except Exception as error:
        _tell(error, repository, what, by_hand)


def _tell(error: Exception, repository: str, what: str, by_hand: str) -> NoReturn:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place = constants.ENDPOINT
    chain = list(_causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in chain):
        raise MissingFileError(
            f"cannot {what} {repository}: HF_HUB_OFFLINE forbids to ask {place}", fix=f"Unset it. {by_hand}"
        ) from error
    for cause in chain:
        if isinstance(cause, RevisionNotFoundError):
            raise MissingFileError(
                f"no such revision of {repository}", looked=place, fix="Check --revision."
            ) from error
        if isinstance(cause, RepositoryNotFoundError | GatedRepoError):
            raise MissingFileError(
                f"no repository {repository}, or none that you may read",
                looked=place,
                fix="Check the name; for a private or gated one set HF_TOKEN or run 'hf auth login'.",
            ) from error
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            status = cause.response.status_code
            fix = "Check that the token may write there: 'hf auth whoami'." if status in RIGHTS else by_hand
            raise MissingFileError(
                f"cannot {what} {repository}: {place} answers {status} ({_reason(cause)})", fix=fix
            ) from error
    if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in CLIENTS:
        raise error
    raise MissingFileError(
        f"cannot {what} {repository}: {place} cannot be reached ({_reason(chain[-1])})", fix=by_hand
    ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it; the last is the nearest to the cause."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")[:200]
