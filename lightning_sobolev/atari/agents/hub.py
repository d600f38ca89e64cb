"""Files of the Hugging Face Hub, fetched at a fixed revision."""

import re
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

PREFIX = "hf://"

_FORM = f"{PREFIX}ORGANIZATION/REPOSITORY/FILE@REVISION"


class HubFile(NamedTuple):
    """A file of a repository at a revision: a commit, or a branch or tag, which may move."""

    repo: str
    file: str
    revision: str

    @property
    def is_commit(self) -> bool:
        """Whether the revision can never name other content."""
        return re.fullmatch("[0-9a-f]{40}", self.revision) is not None


def parse(source: str) -> HubFile:
    """Read ``hf://ORGANIZATION/REPOSITORY/FILE@REVISION``; FILE must lie in the repository."""
    found = re.fullmatch(f"{PREFIX}([^/@]+/[^/@]+)/([^@]+)@([^@]+)", source)
    if found is None:
        raise ValueError(f"source must look like {_FORM}, got {source!r}")
    repo, file, revision = found.groups()
    if ".." in PurePosixPath(file).parts or file.startswith("/"):
        raise ValueError(f"FILE in {_FORM} must lie in the repository, got {file!r}")
    return HubFile(repo, file, revision)


def download(wanted: HubFile) -> Path:
    """Return the file's place in the hub's own cache, fetching it, and a card, if need be."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError
    except ModuleNotFoundError as error:
        text = f"{PREFIX} needs huggingface_hub: install the extra 'hub'"
        raise ModuleNotFoundError(text) from error
    repo, file, revision = wanted
    try:
        path = Path(hf_hub_download(repo, file, revision=revision))
        if path.suffix == ".safetensors":
            # without a card the weights are a state dict like any other
            with suppress(EntryNotFoundError):
                card = str(PurePosixPath(file).with_suffix(".json"))
                hf_hub_download(repo, card, revision=revision)
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        raise ValueError(f"{file} of {repo} at {revision} could not be fetched: {error}") from error
    return path
