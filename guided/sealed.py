"""Files that are there whole or not at all, and tell when they are damaged."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

UNSEALED = b"crc32 --------\n"  # what stands in front until the whole payload is there


class Sealing:
    """A file under way, to be written from its beginning to its end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sum = file, 0
        self.failed: OSError | None = None  # torch's writer raises an error of its own over the one that it met
        file.write(UNSEALED)

    def write(self, data: bytes | memoryview) -> int:
        self._sum = zlib.crc32(data, self._sum)
        try:
            return self._file.write(data)
        except OSError as error:
            self.failed = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        """Put the checksum in front, and all of it on the disk."""
        self._file.seek(0)
        self._file.write(_seal(self._sum))
        self._file.flush()
        os.fsync(self._file.fileno())


def _seal(checksum: int) -> bytes:
    return b"crc32 %08x\n" % checksum


@contextmanager
def sealed(path: Path) -> Iterator[Sealing]:
    """A file that is put at `path` when all is written; whatever interrupts it leaves what was there before.

    Written piece by piece: a checkpoint that is first gathered in memory takes twice as long. Raises OSError where the
    disk does, whatever the one who writes makes of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"writing-{uuid4().hex}"  # processes of several nodes may share the folder
    sealing = None
    try:
        with temporary.open("xb") as file:
            sealing = Sealing(file)
            yield sealing
            sealing.seal()
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if sealing is not None and sealing.failed is not None and sealing.failed is not error:
            raise sealing.failed from error
        raise


def read_sealed(path: Path) -> memoryview | None:
    """What was written at `path`, or None where it is damaged. Raises FileNotFoundError where there is no file."""
    raw = memoryview(path.read_bytes())
    payload = raw[len(UNSEALED) :]
    return payload if raw[: len(UNSEALED)] == _seal(zlib.crc32(payload)) else None
