"""The walk over a tar against Python's own, and defects that its own passes over."""

import io
import random
import tarfile
import time

import pytest

from xtuner_plugins.datasets.errors import SettingError
from xtuner_plugins.datasets.images.tar import MAX_HEADER, list_tar

NAMES = ["a.jpg", "deep/" + "x" * 90 + ".jpg", "y" * 250 + ".jpg", "好/图.png", "empty.txt"]


def write_tar(path, names=NAMES, kind=tarfile.PAX_FORMAT) -> dict[str, bytes]:
    content = {name: bytes(random.Random(name).randbytes(len(name) * 7 % 1200)) for name in names}
    content["empty.txt"] = b""
    with tarfile.open(path, "w", format=kind) as archive:
        folder = tarfile.TarInfo("deep")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            archive.addfile(info, io.BytesIO(data))
    return content


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_those_that_python_finds(tmp_path, kind):
    path = tmp_path / "a.tar"
    content = write_tar(path, kind=kind)
    data = path.read_bytes()
    found = {name: data[offset : offset + size] for name, (offset, _, size, _, _) in list_tar(path)}
    assert found == content


def test_sizes_beyond_the_header_come_from_pax(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a")
        info.size, info.pax_headers = 700, {"size": "700"}
        archive.addfile(info, io.BytesIO(bytes(700)))
        archive.addfile(tarfile.TarInfo("b"))
    assert [(name, row[2]) for name, row in list_tar(path)] == [("a", 700), ("b", 0)]


def test_long_extended_headers_cost_time_in_proportion(tmp_path):
    """Headers of short records; the longest took 40 times as long as an eighth where each record copied the rest."""
    seconds = []
    for size in (MAX_HEADER // 8, MAX_HEADER):
        header, records = tarfile.TarInfo("x"), b"6 a=b\n" * ((size - 9) // 6) + b"9 c=long\n"
        header.type, header.size = tarfile.XHDTYPE, len(records)
        padded = records.ljust(-(-len(records) // 512) * 512, b"\0")
        (tmp_path / "a.tar").write_bytes(header.tobuf() + padded + tarfile.TarInfo("a").tobuf() + bytes(1024))
        before = time.process_time()
        assert [name for name, _ in list_tar(tmp_path / "a.tar")] == ["a"]
        seconds.append(time.process_time() - before)
    assert seconds[1] < 20 * seconds[0], seconds


def test_links_are_listed_as_links(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo(f"link{kind.decode()}")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert [(name, row[3]) for name, row in list_tar(path)] == [("link2", -1), ("link1", -1)]


def test_what_is_cut_off_is_refused_at_every_block(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path)
    data = path.read_bytes()
    end = data.rstrip(b"\0")
    blocks = -(-len(end) // 512)
    for count in range(1, blocks + 1):
        path.write_bytes(data[: 512 * count - (count % 2) * 100])
        with pytest.raises(SettingError, match=f"^{path}: .*(cut off|no tar|damaged)"):
            list(list_tar(path))


def test_a_damaged_header_is_no_end(tmp_path):
    """`tarfile` would end there without a word."""
    path = tmp_path / "a.tar"
    write_tar(path)
    data = bytearray(path.read_bytes())
    offset = max(row[0] for _, row in list_tar(path)) - 512
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(SettingError, match="damaged .*fetch the archive again"):
        list(list_tar(path))


def test_other_files_are_no_tar(tmp_path):
    path = tmp_path / "a.tar"
    for data in (b"", b"short", b"\x1f\x8b" + bytes(range(256)) * 4):
        path.write_bytes(data)
        with pytest.raises(SettingError, match="no tar archive"):
            list(list_tar(path))
