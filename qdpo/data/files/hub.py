"""Datasets from the Hugging Face hub: downloaded once, then read from disk; every failure explained."""

from __future__ import annotations

from typing import Any

from qdpo.data.files.readers import is_file_name
from qdpo.errors import DataError, UnavailableError, first_line
from qdpo.model.hub_client import use_patient_client
from qdpo.model.source import EMBEDDED

LOCAL = "or give a local file with --data PATH"


def load(name: str, split: str, config: str | None, revision: str | None) -> Any:
    """A `datasets.Dataset` whose rows lie on disk.

    Raises:
        UnavailableError: no such dataset, gated, or no network and not in the cache.
        DataError: it has no such split or configuration, or its files are damaged.
    """
    import datasets
    import httpx
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    use_patient_client()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except GatedRepoError as error:
        raise _gated(name) from error
    except datasets.exceptions.DatasetNotFoundError as error:
        if "gated" in str(error):
            raise _gated(name) from error
        raise UnavailableError(
            f"the hub has no dataset {name!r}" + (f" with the revision {revision}" if revision else ""),
            f"check the name; for a private one log in with `hf auth login`; {LOCAL}",
        ) from error
    except HFValidationError as error:
        raise UnavailableError(
            f"{name!r} is neither a file here nor a name on the hub", "a hub name is OWNER/NAME; a file needs its path"
        ) from error
    except (ConnectionError, FileNotFoundError, HfHubHTTPError, httpx.TransportError) as error:
        raise UnavailableError(
            f"the hub cannot be reached and {name} is not in the local cache ({first_line(error, 300)})",
            f"go online once to download it, {LOCAL}",
        ) from error
    except datasets.exceptions.DatasetGenerationError as error:
        raise DataError(
            f"the files of the hub dataset {name} cannot be read: {first_line(error.__cause__ or error, 300)}",
            f"try another data.revision, {LOCAL}",
        ) from error
    except RuntimeError as error:
        raise UnavailableError(
            f"the hub dataset {name} cannot be loaded: {first_line(error, 300)}",
            f"datasets that bring their own script are not run; look for a Parquet revision, {LOCAL}",
        ) from error
    except ValueError as error:
        raise DataError(
            f"the hub dataset {name} cannot be read: {first_line(error, 300)}", "check data.config and data.split"
        ) from error


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit (40 hex) that a dataset's revision stands for now.

    Returns:
        None for local data, and where the hub does not say: offline, the cache has no name for it.
    """
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if name == EMBEDDED or is_file_name(name) or constants.HF_HUB_OFFLINE:
        return None
    use_patient_client()
    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except (HfHubHTTPError, HFValidationError, httpx.TransportError):
        # loading it says what is wrong, or finds it in the cache
        return None


def _gated(name: str) -> UnavailableError:
    return UnavailableError(
        f"the hub dataset {name} is gated",
        f"accept its terms on its page, then log in with `hf auth login`; {LOCAL}",
    )
