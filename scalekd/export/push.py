"""Uploading an exported student to the Hugging Face Hub."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from scalekd.atomic_io import check_new, new_folder
from scalekd.errors import InputError, one_line
from scalekd.networks.build import build_model
from scalekd.networks.student import LINEAGE_KEY
from scalekd.networks.transformers_config import MAX_CONFIG_BYTES
from scalekd.reading import parse_json, read_text
from scalekd.runs.folder import RunFolder
from scalekd.runs.lineage import Lineage
from scalekd.runs.model_card import build_card

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What was uploaded, or written to see what would be.

    Attributes:
        place: address of the repository, or the folder of a dry run.
        files: names of the files and their sizes in bytes.
    """

    place: str
    files: dict[str, int]


def push(
    folder: Path,
    repo: str,
    dry_run: Path | None = None,
    add_commit: bool = False,
    private: bool = False,
) -> Pushed:
    """Upload an exported student to the Hugging Face Hub: weights, configuration and model card.

    Args:
        folder: Folder of an exported student, or a run folder (its student).
        repo: Repository to upload to, as USER/NAME. It must not exist unless add_commit is true.
        dry_run: Folder to write exactly what would be uploaded to, without a login or a network.
            It must not exist. By default the student is uploaded.
        add_commit: Upload a further commit to a repository that exists.
        private: Create a repository that only its owner sees.

    Returns:
        Where it is, and its files.

    Raises:
        InputError: The repository's name is none, the folder is no student, there is no login or
            no network, or the Hub refuses.
    """
    _check_repo(repo)
    if dry_run is not None:
        check_new(dry_run, "give another --dry_run")
    if dry_run is None and huggingface_hub.get_token() is None:
        raise InputError(
            "there is no login to the Hub: run `hf auth login`, or set HF_TOKEN to a token that "
            "may write; --dry_run FOLDER writes what would be uploaded without one"
        )
    if (student := RunFolder(folder).student).is_dir():
        folder = student
    card = _read_card(folder)
    if dry_run is not None:
        try:
            with new_folder(dry_run) as staged:
                files = _stage(folder, staged, card)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{str(dry_run)!r} could not be written: {reason}") from error
        return Pushed(place=str(dry_run), files=files)
    with tempfile.TemporaryDirectory() as place:
        files = _stage(folder, Path(place), card)
        return Pushed(place=_upload(Path(place), repo, add_commit, private), files=files)


def _check_repo(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"repo is {repo!r}: {one_line(error)}") from error
    if repo.count("/") != 1:
        raise InputError(f"repo is {repo!r}: give the user or organisation, too, as USER/NAME")


def _read_card(folder: Path) -> str:
    """The card of a student's folder: its README.md, or one of what config.json says.

    Raises:
        InputError: the folder is not that of a complete student with safetensors.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{str(folder)!r} is no exported student, because it has no {CONFIG}: give a run "
            "folder or a folder that `scalekd export` wrote"
        )
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{str(folder)!r} has no {WEIGHTS}, and other weights are not uploaded: `scalekd "
            f"export {folder} --out NEW` writes a folder with it"
        )
    build_model(f"local-dir:{folder}", "pretrained")  # refuses what timm could not load
    if (folder / CARD).is_file():
        return read_text(folder / CARD, repr(str(folder / CARD)))
    config = parse_json(read_text(folder / CONFIG, limit=MAX_CONFIG_BYTES))
    lineage = None
    if LINEAGE_KEY in config:
        try:
            lineage = Lineage.from_dict(config[LINEAGE_KEY])
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{LINEAGE_KEY!r} in {str(folder / CONFIG)!r} is not as `scalekd export` writes it "
                f"({one_line(error)}): export the student again"
            ) from error
    return build_card(config["architecture"], lineage)


def _stage(folder: Path, staged: Path, card: str) -> dict[str, int]:
    """Write exactly what is uploaded to `staged`; its files by name, and their sizes."""
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(folder / name, staged / name)
    (staged / CARD).write_text(card, encoding="utf-8")
    return {file.name: file.stat().st_size for file in sorted(staged.iterdir())}


def _upload(staged: Path, repo: str, add_commit: bool, private: bool) -> str:
    api: Any = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=add_commit)
        api.upload_folder(
            repo_id=repo, folder_path=staged, commit_message="Upload a student by scalekd"
        )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 409:
            raise InputError(
                f"the repository {repo!r} exists: give another name, or --add_commit true to add a "
                "commit to it"
            ) from error
        hint = "; the token may not write there" if status in (401, 403) else ""
        raise InputError(f"the Hub refuses {repo!r} ({one_line(error)}){hint}") from error
    except Exception as error:  # its HTTP client's, of which there have been two
        raise InputError(
            f"the upload to {api.endpoint} failed ({one_line(error)}): try again where the Hub can "
            "be reached; --dry_run FOLDER writes what would be uploaded"
        ) from error
    return str(url)
