"""Where the configuration files are: beside a checkout, inside an installed package."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]


def config_folder() -> Path:
    """Return the folder that holds ``train.yaml`` and its groups.

    A wheel carries the files as ``lightning_sobolev/conf``; in a checkout they lie at the top,
    where they are edited, and the package has no copy.

    Raises:
        FileNotFoundError: If neither place has them.
    """
    for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"conf/train.yaml must lie in {_PACKAGE} or {_PACKAGE.parent}, got neither: reinstall"
    )
