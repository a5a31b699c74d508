"""Opens a file as the bytes it holds, packed or not."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from swiftune.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


_POINTER = b"version https://git-lfs.github.com/spec/"
"""What Git leaves in the place of a large file."""


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A buffered reader (with ``peek`` and ``seek``) of the unpacked bytes.

    Raises:
        DataError: here or while reading: the file cannot be opened, or its packing is broken or cut short.
    """
    try:
        with path.open("rb") as file:
            if file.peek(64).startswith(_POINTER):
                raise DataError(f"{path} is a pointer of Git LFS, not the file.", "Fetch the file: git lfs pull.")
            if path.suffix.lower() == ".gz":
                with gzip.open(file) as unpacked:
                    yield unpacked  # type: ignore[misc]
            elif path.suffix.lower() == ".zst":
                yield io.BufferedReader(_Zstd(file), 1 << 17)
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is no whole gzip file: {error}.", "Fetch or pack it again.") from None
    except _CutShort as error:
        raise DataError(f"{path} is no whole zstd file: {error}.", "Fetch or pack it again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


class _CutShort(Exception):  # noqa: N818
    pass


class _Zstd(io.RawIOBase):
    """Unpacked zstd, frame after frame. The library's own reader takes a file that is cut short for a whole one."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file = file
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._frame = self._new_frame()
        self._fed = False
        self._ready = memoryview(b"")
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Unpacks up to there; from the beginning, where that lies behind."""
        assert whence == io.SEEK_SET
        if offset < self._at:
            self._begin()
        while self._at < offset and self.read(min(offset - self._at, 1 << 20)):
            pass
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._ready:
            packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._fed = self._new_frame(), False
            packed = packed or self._file.read(1 << 16)
            if not packed:
                if self._fed:
                    raise _CutShort("its last frame is cut short")
                return 0
            self._fed = True
            try:
                self._ready = memoryview(self._frame.decompress(packed))
            except self._error as error:
                raise _CutShort(str(error)) from None
        out = memoryview(buffer).cast("B")
        size = min(len(out), len(self._ready))
        out[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        self._at += size
        return size
