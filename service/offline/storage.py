"""Where a job's pictures come from and its records go: a folder of this machine, or an object store.

Everything goes through pyarrow's file systems, so `s3://`, `gs://`, `hdfs://` and `file://` need no other package. What
a picture is, is decided by the decoder and not here.
"""

import re
import uuid
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Self

from fsspec.utils import glob_translate
from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from service.inference.errors import TooLargeError

TOO_LARGE: Final = "body_too_large"  # as the service calls it

# Folder of what is only there while a job runs; `Place.tidy` removes it.
TEMPORARY: Final = "_temporary"

_SECRET: Final = re.compile(r"[a-z0-9+.-]+://[^/@]*:[^/@]*@")


class StorageError(Exception):
    """A place cannot be used. The message is one line."""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder or a prefix, as a path of its file system.

    Attributes:
        text: as it was given, made absolute.
        pattern: of the names below it that are meant; None: every file.
    """

    text: str
    files: FileSystem
    folder: str
    pattern: str | None = None

    @classmethod
    def at(cls, text: str) -> Self:
        """The place that a path, a pattern (`photos/**/*.jpg`) or a URL (`s3://bucket/photos`) names.

        Raises:
            StorageError: no such kind of URL, or its store cannot be opened.
        """
        is_url = "://" in text
        text = text if is_url else Path(text).absolute().as_posix()
        address, question, options = text.partition("?") if is_url else (text, "", "")
        if _SECRET.match(text):  # it would end up in the job's description and in logs
            raise StorageError("keys belong into the environment (AWS_ACCESS_KEY_ID, ...), not into a URL")
        pattern: str | None = None
        if (is_url or not Path(text).exists()) and (wild := re.search(r"[*?\[]", address)):
            cut = address.rindex("/", 0, wild.start())
            address, pattern = address[:cut] or "/", address[cut + 1 :]
        try:
            files, folder = FileSystem.from_uri(address + question + options)
        except (ArrowException, OSError, ValueError) as error:
            raise StorageError(f"{text}: {one_line(error)}") from error
        return cls(text, files, folder.rstrip("/"), pattern)

    def pictures(self) -> tuple[list[str], list[str]]:
        """The files that fit the pattern, or all, relative to the folder and in order; then the hidden ones left out.

        A name that begins with a dot is hidden. What is in a file is for the decoder to say.

        Raises:
            StorageError: there is no such folder, or it cannot be listed.
        """
        found = self._list(FileSelector(self.folder, recursive=True))
        names = sorted(info.path[len(self.folder) :].lstrip("/") for info in found)
        if self.pattern is not None:
            names = list(filter(re.compile(glob_translate(self.pattern)).match, names))
        hidden = [name for name in names if PurePosixPath(name).name.startswith(".")]
        return sorted(set(names) - set(hidden)), hidden

    def names(self) -> set[str]:
        """The names of the files directly in the folder; none if there is no such folder.

        Raises:
            StorageError: it cannot be listed.
        """
        return {info.base_name for info in self._list(FileSelector(self.folder, allow_not_found=True))}

    def _list(self, what: FileSelector) -> list[FileInfo]:
        try:
            return [info for info in self.files.get_file_info(what) if info.type == FileType.File]
        except (ArrowException, OSError) as error:
            raise StorageError(f"{self.text}: cannot be listed: {one_line(error)}") from error

    def read(self, name: str, *, at_most: int | None = None) -> bytes:
        """A file's content.

        Raises:
            TooLargeError: it has more bytes than `at_most`; none of them has been read.
            OSError: it cannot be read.
        """
        with self.files.open_input_file(f"{self.folder}/{name}") as file:
            if at_most is not None and file.size() > at_most:
                raise TooLargeError(f"the file has {file.size()} bytes; at most {at_most} are allowed", code=TOO_LARGE)
            return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """Put a file there, whole or not at all; one of the same name is replaced. Raises OSError if that fails."""
        temporary = f"{self.folder}/{TEMPORARY}/{uuid.uuid4().hex}"
        self.files.create_dir(f"{self.folder}/{TEMPORARY}", recursive=True)
        with self.files.open_output_stream(temporary) as file:
            file.write(content)
        self.files.move(temporary, f"{self.folder}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file. Raises OSError if there is none."""
        self.files.delete_file(f"{self.folder}/{name}")

    def tidy(self) -> None:
        """Remove what is only there while a job runs, and what writers that were killed left behind."""
        path = f"{self.folder}/{TEMPORARY}"
        if self.files.get_file_info(path).type == FileType.Directory:
            self.files.delete_dir(path)


def one_line(error: Exception) -> str:
    """What an error says in its first line."""
    return str(error).partition("\n")[0] or type(error).__name__
