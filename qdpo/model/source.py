"""Where the files of a model lie: embedded, in a local folder, or in a snapshot from the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qdpo.errors import InputMissingError, UnavailableError

EMBEDDED = "quickstart"
"""The name of the base model and of the pairs that ship inside qdpo."""

ASSETS = Path(__file__).resolve().parent.parent / "assets"

# What a causal language model needs, and nothing that runs code: no pickled weights, no other frameworks' files.
WANTED = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja", "LICENSE*", "README.md")

CODE = ("*.py",)
"""What else a model needs whose code is trusted."""


@dataclass(frozen=True)
class Source:
    """A model's files.

    Attributes:
        name: what the user asked for.
        folder: where the files are.
        revision: the hub commit (40 hex), None for local files.
    """

    name: str
    folder: Path
    revision: str | None


def is_local(name: str) -> bool:
    """Whether a model or dataset name means files on this machine (or embedded) rather than the hub."""
    return name == EMBEDDED or Path(name).expanduser().exists() or name.startswith((".", "/", "~"))


def find(name: str, revision: str | None = None, *, code: bool = False) -> Source:
    """The files of a model; a hub name is downloaded, or found in the hub's cache.

    Args:
        name: hub name, local folder, or `quickstart`.
        revision: of a hub model.
        code: take the Python files of a hub model too.

    Raises:
        InputMissingError: no such folder, or no config.json in it.
        UnavailableError: the hub cannot be reached or does not have it.
    """
    if name == EMBEDDED:
        return Source(name, ASSETS / "base", None)
    if is_local(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise InputMissingError(
                f"there is no model folder {name}", "name one with config.json and weights: --model DIR"
            )
        if not (folder / "config.json").is_file():
            raise InputMissingError(f"{name} is not a model folder: it has no config.json")
        return Source(name, folder, None)
    return _snapshot(name, revision, code)


def _snapshot(name: str, revision: str | None, code: bool) -> Source:
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from qdpo.model.hub_client import use_patient_client

    use_patient_client()
    # Offline, a snapshot that is there is taken as it is, without asking for the list of its files.
    offline = bool(constants.HF_HUB_OFFLINE)
    try:
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=[*WANTED, *(CODE if code else ())], local_files_only=offline
            )
        )
    except GatedRepoError as error:
        raise UnavailableError(
            f"the hub model {name} is gated", "accept its terms on its page, then log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UnavailableError(f"the hub model {name} has no revision {revision}", "check model.revision") from error
    except RepositoryNotFoundError as error:
        raise UnavailableError(
            f"the hub has no model {name}, or it is private",
            "check the name; for a private model log in with `hf auth login`; for a local folder give its path",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError, ConnectionError) as error:
        missing = "only partly" if isinstance(error, IncompleteSnapshotError) else "not"
        raise UnavailableError(
            f"the hub cannot be reached{_why(error)} and {name} is {missing} in the local cache",
            "go online once to download it, or give a local folder with --model PATH",
        ) from error
    except HFValidationError as error:
        raise InputMissingError(f"{name} is neither a local folder nor a hub name") from error
    except HfHubHTTPError as error:
        raise UnavailableError(
            f"the hub refused {name}{_why(error)}",
            "check that your token may read it (`hf auth whoami`), or give a local folder with --model PATH",
        ) from error
    # A snapshot folder is named by the commit that it holds.
    return Source(name, folder, folder.name)


def _why(error: BaseException) -> str:
    """The reason behind a failure of the hub's client: an HTTP status, or what the network said."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, HfHubHTTPError):
        return f" (HTTP {cause.response.status_code})"
    text = " ".join(str(cause or "").split())[:200]
    return f" ({text})" if text else ""
