"""Files that tell when they are damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guided.sealed import read_sealed, sealed


def written(path: Path, *pieces: bytes) -> Path:
    with sealed(path) as file:
        for piece in pieces:
            file.write(piece)
    return path


def test_what_was_written_in_pieces_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "new" / "file", b"one", b"", b"two")
    assert read_sealed(path) == b"onetwo"
    assert [file.name for file in path.parent.iterdir()] == ["file"]
    assert read_sealed(written(path, b"three")) == b"three"


@given(st.binary(max_size=200), st.data())
def test_every_changed_byte_and_every_missing_end_is_seen(
    tmp_path_factory: pytest.TempPathFactory, payload: bytes, data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("sealed") / "file", payload)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    assert read_sealed(path) is None
    raw = raw[:place]
    path.write_bytes(raw)
    assert read_sealed(path) is None
    path.write_bytes(bytes(len(payload) + 15))  # what a file system may leave of a file that was not synced
    assert read_sealed(path) is None


def test_what_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    path = written(tmp_path / "file", b"before")

    def broken_off() -> None:
        with sealed(path) as file:
            file.write(b"half of ")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        broken_off()
    assert read_sealed(path) == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "none")


FULL = """
import errno, resource, signal, sys
from pathlib import Path
import torch
from guided.sealed import sealed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = {str(index): torch.zeros(50_000) for index in range(4)}
for limit in (10, 1_000, 150_000, 450_000, 799_000, 801_500):  # at the seal, within a tensor, in the directory behind
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with sealed(Path(sys.argv[1]) / "state") as file:
            torch.save(state, file)
    except OSError as error:
        print(limit, errno.errorcode[error.errno])
"""


def test_that_the_disk_is_full_is_told_through_torchs_own_writer(tmp_path: Path) -> None:
    """Its errors are no OSError: a sweep would take them for those of a fold run."""
    ran = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    told = ran.stdout.split("\n")[:-1]
    assert [line.split()[1] for line in told] == ["EFBIG"] * 6, ran.stdout
    assert not list(tmp_path.iterdir())
