"""Publishing what a run has made on the Hugging Face hub: the files of its manifest, and a card.

One commit holds everything, so that a repository never holds a part. An interrupted upload is continued by running it
again: what the hub has of a large file is not sent twice (whole files by Git LFS, chunks of them by Xet).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import disable_progress_bars

from qdpo import console
from qdpo.errors import InputMissingError, OutputError, QdpoError, UnavailableError, UsageError
from qdpo.export.verify.report import SCHEMA
from qdpo.files import MANIFEST, manifest_problems
from qdpo.report import markdown as md
from qdpo.report.card import CARD, render_card
from qdpo.report.facts import PLOTS
from qdpo.run.record import Published
from qdpo.run.results import read_object

ADAPTER = "adapter"
VERIFY = "verify.json"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Parcel:
    """What is to be published.

    Attributes:
        published: the repository and the format.
        files: path in the repository -> file, or content.
    """

    published: Published
    files: dict[str, Path | bytes]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in self.files.values())


def publish(run_dir: Path, repo: str, format: str = ADAPTER, *, public: bool = False) -> str:
    """Upload a run's adapter, or one of its exports, with the card.

    Args:
        run_dir: the run directory.
        repo: `user/name`.
        format: `adapter`, or the format of an export.
        public: create the repository public; without it a new one is private, and a public one is not pushed to.

    Returns:
        The repository's address.

    Raises:
        UsageError: `repo` is no name of a repository.
        InputMissingError: there is nothing to publish, or it does not match its manifest.
        OutputError: the hub refuses: no permission, or the repository is public and `public` is false.
        UnavailableError: not logged in, or the hub cannot be reached.
    """
    parcel = pack(run_dir, repo, format)
    with _explained(repo):
        return _send(HfApi(), parcel, public)


def pack(run_dir: Path, repo: str, format: str) -> Parcel:
    """Gather what is published, and make sure that it is what was written.

    Raises:
        UsageError, InputMissingError: as `publish`.
    """
    if not _REPO.fullmatch(repo):
        raise UsageError(f"{repo!r} is no repository of the hub", "give user/name, for example --to me/my-adapter")
    published = Published(repo, format)
    folder = run_dir / ADAPTER if format == ADAPTER else run_dir / "export" / format
    if not (folder / MANIFEST).is_file():
        way = (
            f"qdpo train --run-dir {run_dir} --resume" if format == ADAPTER else f"qdpo merge-export --format {format}"
        )
        raise InputMissingError(f"{run_dir} has no finished {folder.relative_to(run_dir)}/", f"first: {way}")
    _check(folder, format)
    card = render_card(run_dir, published)
    listed = [name for name in _listed(folder) if name != CARD]
    files: dict[str, Path | bytes] = {name: folder / name for name in listed}
    if (folder / VERIFY).is_file():
        files[VERIFY] = folder / VERIFY
    for name, _ in PLOTS:
        if (plot := run_dir / "plots" / name).is_file():
            files[f"plots/{name}"] = plot
    return Parcel(published, {**files, CARD: card.encode()})


def _listed(folder: Path) -> list[str]:
    return list(json.loads((folder / MANIFEST).read_text("utf-8"))["files"])


def _check(folder: Path, format: str) -> None:
    """Refuse what is damaged or has failed its verification; say what stays behind, and what gives a folder away."""
    strangers: list[str] = []
    broken: list[str] = []
    for problem in manifest_problems(folder):
        name, found, _ = problem.partition(" is not in the manifest")
        (strangers if found else broken).append(name)
    if broken:
        raise InputMissingError(
            f"{folder} is not what was written: {broken[0]}" + (f" (and {len(broken) - 1} more)" if broken[1:] else ""),
            "make it again, or restore it; nothing was uploaded",
        )
    if strangers := [name for name in strangers if name not in (VERIFY, CARD)]:
        console.note(f"left behind: {', '.join(strangers)} (not in {MANIFEST})")
    if format == ADAPTER:
        config = read_object(folder / "adapter_config.json") or {}
        base = str(config.get("base_model_name_or_path") or "")
        if md.is_local(base):
            console.warn(f"adapter_config.json names the base by a path of this machine: {base}")
        return
    verify = read_object(folder / VERIFY)
    if verify is None:
        console.warn(f"this export was not verified, and its card says so; first: qdpo verify {folder}")
    elif verify.get("schema") != SCHEMA:
        console.warn(f"this export was verified by another version of qdpo; first: qdpo verify {folder}")
    elif (verdict := verify.get("verdict")) == "cannot be told":
        console.warn(f"it cannot be told whether this export keeps what was trained; see: qdpo verify {folder}")
    elif verdict != "passed":
        raise InputMissingError(
            f"{folder} has {'lost what was trained' if verdict == 'lost' else 'failed its verification'}",
            f"see `qdpo verify {folder}`, and export again; nothing was uploaded",
        )


def _send(api: HfApi, parcel: Parcel, public: bool) -> str:
    if not console.is_interactive():
        disable_progress_bars()
    repo = parcel.published.repo
    url = api.create_repo(repo, private=not public, exist_ok=True)
    private = api.model_info(repo).private
    if not private and not public:
        raise OutputError(f"{repo} is public already", "say so with --public, or choose another repository")
    if private and public:
        console.note(f"{repo} is private and stays so; its settings on the hub can make it public")
    console.say(f"uploading {len(parcel.files)} files, {parcel.total:,} bytes, to {repo}")
    operations = [
        CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in parcel.files.items()
    ]
    api.create_commit(repo, operations, commit_message=f"Upload {parcel.published.format} with qdpo")
    return str(url)


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turns what the hub's client raises into errors with a way out; messages of ours, so that no header is shown."""
    try:
        yield
    except Exception as error:
        if (found := _explain(error, repo)) is None:
            raise
        raise found from None


def _explain(error: Exception, repo: str) -> QdpoError | None:
    again = "run the same command again: what was uploaded is not sent twice"
    if isinstance(error, OfflineModeIsEnabled):
        return UnavailableError("HF_HUB_OFFLINE is set: nothing can be uploaded", "unset it for this command")
    if isinstance(error, LocalTokenNotFoundError):
        return _not_logged_in("you are not logged in to the hub")
    if isinstance(error, HfHubHTTPError) and (response := getattr(error, "response", None)) is not None:
        match response.status_code:
            case 401:
                return _not_logged_in("the hub does not accept your login (401)")
            case 403:
                return OutputError(
                    f"the hub does not let you write to {repo} (403)",
                    "is it your user or organisation, and does your token have write permission? `hf auth whoami`",
                )
            case 404:
                return OutputError(f"there is no {repo}, or you may not see it (404)", "check the name after --to")
            case 409:
                return OutputError(f"{repo} was changed meanwhile (409)", again)
            case status:
                return UnavailableError(f"the hub answered {status}", again)
    if isinstance(error, httpx.HTTPError | ConnectionError | TimeoutError):
        return UnavailableError(f"the hub cannot be reached, or broke off ({type(error).__name__})", again)
    return None


def _not_logged_in(what: str) -> UnavailableError:
    return UnavailableError(what, "hf auth login, with a token that may write; qdpo takes no token by itself")
