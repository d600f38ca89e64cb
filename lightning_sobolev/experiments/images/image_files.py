"""Where the files of a published set of pictures are: in a folder, in a package, or to be fetched.

Files are told by the SHA-256 of their content, unpacked where the name ends in ``.gz``: the same
pictures are packed by different people into different bytes.
"""

import gzip
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """The files of one published set.

    Args:
        title: What people call the set.
        checksums: SHA-256 of the content of every file, by name.
        fetch: Downloads the files into a folder; raises OSError where there is no network and
            ModuleNotFoundError where the library for it is missing.
        system: Folder in which a package of the operating system puts them, if there is one.
        package: Name of that package.
    """

    title: str
    checksums: Mapping[str, str]
    fetch: Callable[[Path], None]
    system: Path | None = None
    package: str | None = None

    def find(self, root: str | Path | None, *, download: bool) -> Path:
        """Return a folder that holds every file; download them if they are nowhere.

        Args:
            root: Where to look first, and where to download to; the user's cache folder when None.
            download: Whether the network may be asked.

        Returns:
            The first of root, the package's folder and the cache that is complete.

        Raises:
            ValueError: If the files are in no such place and cannot be downloaded; names all three.
        """
        own = Path(root) if root is not None else cache_folder() / self.title.lower()
        for folder in (own, self.system):
            if folder is not None and all((folder / name).is_file() for name in self.checksums):
                return folder
        if not download:
            raise ValueError(self._absent(own, "data.download is off"))
        try:
            self.fetch(own)
        except (OSError, ModuleNotFoundError) as error:
            raise ValueError(self._absent(own, f"{type(error).__name__}: {error}")) from error
        return own

    def _absent(self, own: Path, why: str) -> str:
        package = "" if self.package is None else f"install the package {self.package} (Debian), "
        return (
            f"{self.title} must be found, got none of {', '.join(self.checksums)} in {own}: name "
            f"their folder with data.root, {package}or let them be downloaded (extra 'images', "
            f"needs a network; {why})"
        )

    def content(self, folder: Path, name: str) -> bytes:
        """Read one file and compare it with its checksum.

        Args:
            folder: Where it is.
            name: Its name, one of ``checksums``.

        Returns:
            Its content, unpacked.

        Raises:
            ValueError: If it is damaged or another file.
        """
        path = folder / name
        try:
            packed = path.read_bytes()
            content = gzip.decompress(packed) if name.endswith(".gz") else packed
        except (OSError, EOFError) as error:
            raise ValueError(f"{path} must be a readable file, got {error}") from error
        if (found := hashlib.sha256(content).hexdigest()) != self.checksums[name]:
            raise ValueError(
                f"{path} must be the published file of {self.title} with the SHA-256 "
                f"{self.checksums[name]}, got {found}: delete it and fetch it again"
            )
        return content


def cache_folder() -> Path:
    """Return where downloaded pictures are kept when no folder is named."""
    return Path.home() / ".cache" / "lightning_sobolev"
