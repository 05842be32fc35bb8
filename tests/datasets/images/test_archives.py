import io
import os
import pickle
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.datasets.errors import MediaError, SettingError
from xtuner_plugins.datasets.images import archives
from xtuner_plugins.datasets.images.archives import Archive, ArchiveImages, open_images
from xtuner_plugins.datasets.images.media import ImageFolder, load_image
from xtuner_plugins.datasets.images.video import load_frames, probe_video

FILES = {"a.png": b"first", "deep/b.png": b"second" * 500, "好.png": b"", "deep/deeper/c.png": bytes(10_000)}


def write(path, files=FILES, **options):
    if str(path).endswith(".zip"):
        with zipfile.ZipFile(path, "w", **{"compression": zipfile.ZIP_DEFLATED, **options}) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w", **options) as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(params=["a.tar", "a.zip"])
def archive(tmp_path, request):
    return write(tmp_path / request.param)


def test_members_by_name(archive, tmp_path):
    images = ArchiveImages(archive, tmp_path / "cache")
    assert {name: images.resolve(name).data for name in FILES} == FILES
    assert images.resolve("./deep//b.png").data == FILES["deep/b.png"]
    assert str(images.resolve("a.png")) == f"{archive}/a.png"
    inside = ArchiveImages(f"{archive}/deep", tmp_path / "cache")
    assert inside.resolve("deeper/c.png").data == FILES["deep/deeper/c.png"]
    assert images.key() != inside.key()


def test_a_store_crosses_to_other_processes_without_its_arrays(archive, tmp_path):
    images = ArchiveImages(archive, tmp_path / "cache")
    images.resolve("a.png")
    packed = pickle.dumps(images)
    assert len(packed) < 800 and pickle.loads(packed).resolve("a.png").data == b"first"


def test_an_archive_is_indexed_once(archive, tmp_path, monkeypatch):
    os.utime(archive, (1e9, 1e9))  # of a file written just now nothing is remembered
    Archive(archive, tmp_path / "cache")
    monkeypatch.setattr(Archive, "_build", None)
    assert len(Archive(archive, tmp_path / "cache")) == 4
    write(archive, FILES | {"d.png": b"new"})
    with pytest.raises(TypeError):
        Archive(archive, tmp_path / "cache")


def test_names_that_lead_out_or_nowhere(archive, tmp_path):
    images = ArchiveImages(archive, tmp_path / "cache")
    for name in ("../a.png", "/a.png", "deep/../../a.png"):
        with pytest.raises(MediaError, match="leaves|absolute") as caught:
            images.resolve(name)
        assert caught.value.reason == "image_outside"
    with pytest.raises(MediaError, match="no such member .*its first member is 'a.png'") as caught:
        images.resolve("deep/a.png")
    assert caught.value.reason == "image_missing" and caught.value.place == f"{archive}/deep/a.png"
    with pytest.raises(MediaError, match="windows_paths=True"):
        images.resolve("deep\\b.png")
    assert ArchiveImages(archive, tmp_path / "cache", windows_paths=True).resolve("deep\\b.png").data


def test_members_that_lead_out_are_never_found(tmp_path):
    for name in ("a.tar", "a.zip"):
        images = ArchiveImages(write(tmp_path / name, {"../evil": b"x", "/abs": b"y", "ok": b"z"}), tmp_path / "cache")
        assert images.resolve("ok").data == b"z"
        for bad in ("evil", "abs"):
            with pytest.raises(MediaError, match="no such member"):
                images.resolve(bad)
    assert not (tmp_path.parent / "evil").exists()


def test_of_two_members_the_last_counts(tmp_path):
    path = tmp_path / "a.tar"
    write(path, {"a": b"old", "b": b""})
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("a")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"new"))
    assert ArchiveImages(path, tmp_path / "cache").resolve("a").data == b"new"


def test_links_encrypted_members_and_other_methods_are_refused(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(MediaError, match="a link, not a file"):
        ArchiveImages(path, tmp_path / "cache").resolve("link")
    other = write(tmp_path / "b.zip", {"a": b"x" * 100}, compression=zipfile.ZIP_BZIP2)
    with pytest.raises(MediaError, match="zip's method 12; write the archive with stored or deflated"):
        ArchiveImages(other, tmp_path / "cache").resolve("a")
    data = bytearray(write(tmp_path / "c.zip", {"a": b"x"}).read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 8] |= 1
    (tmp_path / "c.zip").write_bytes(data)
    with pytest.raises(MediaError, match="encrypted; write the archive without a password"):
        ArchiveImages(tmp_path / "c.zip", tmp_path / "cache").resolve("a")


def test_bombs_are_refused_by_what_they_claim_and_by_what_they_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER", 1000)
    path = write(tmp_path / "a.zip", {"large": bytes(100_000), "small": b"s"})
    images = ArchiveImages(path, tmp_path / "cache")
    with pytest.raises(MediaError, match="100,000 bytes; at most 1,000 are read"):
        images.resolve("large")
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    assert struct.unpack_from("<I", data, at + 24) == (100_000,)
    struct.pack_into("<I", data, at + 24, 10)  # the directory lies about it
    path.write_bytes(data)
    os.utime(path, (1, 1))
    with pytest.raises(MediaError, match="damaged: its checksum differs"):
        ArchiveImages(path, tmp_path / "cache").resolve("large")
    assert images.archive.hash != ArchiveImages(path, tmp_path / "cache").archive.hash


def test_damaged_members_and_archives(tmp_path):
    path = write(tmp_path / "a.zip", {"a": os.urandom(3000), "b": b"x" * 3000})
    whole = path.read_bytes()
    for number, at in enumerate((500, 0)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        os.utime(path, (number, number))
        if number == 0:
            with pytest.raises(MediaError, match="damaged"):
                ArchiveImages(path, tmp_path / "cache").resolve("a")
    for data in (whole[:-30], b"PK\x03\x04 nothing", b"PK"):
        path.write_bytes(data)
        with pytest.raises(SettingError, match=f"^{path}: is no whole zip archive"):
            Archive(path, tmp_path / "cache")
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(SettingError, match="holds no files"):
        Archive(path, tmp_path / "cache")
    path.chmod(0o000)
    path.unlink()
    with pytest.raises(SettingError, match="can't be read"):
        Archive(path, tmp_path / "cache")


def test_an_archive_that_changes_meanwhile(archive, tmp_path):
    images = ArchiveImages(archive, tmp_path / "cache")
    with open(archive, "ab") as file:
        file.write(b"more")
    with pytest.raises(MediaError, match="has changed since it was opened"):
        images.resolve("a.png")
    archive.unlink()
    with pytest.raises(MediaError, match="can't be read any more"):
        images.resolve("a.png")


def write_between(path, names, time=1e9):
    """Replace a tar by one of the same size with these members between 200 others, as of a given time."""
    margin = {f"{number}.png": bytes(500) for number in range(200)}
    middle = {name: name.encode() * 100 for name in names}
    write(path.with_name("new"), dict([*list(margin.items())[:100], *middle.items(), *list(margin.items())[100:]]))
    os.utime(path.with_name("new"), (time, time))
    path.with_name("new").replace(path)
    return path


def test_an_archive_that_is_replaced_meanwhile_by_one_of_the_same_size(tmp_path):
    path = write_between(tmp_path / "a.tar", ["red", "tan"])
    images = ArchiveImages(path, tmp_path / "cache")
    assert images.resolve("red").data == b"red" * 100
    for time in (2e9, 1e9):  # with another time, and with its time kept
        write_between(path, ["tan", "red"], time)
        with pytest.raises(MediaError, match="has changed since it was opened") as caught:
            pickle.loads(pickle.dumps(images)).resolve("red")
        assert caught.value.reason == "file_changed"


def test_an_archive_that_was_replaced_with_its_time_kept_is_listed_again(tmp_path):
    path = write_between(tmp_path / "a.tar", ["red", "tan"])
    first = ArchiveImages(path, tmp_path / "cache")
    write_between(path, ["tan", "red"])
    second = ArchiveImages(path, tmp_path / "cache")
    assert second.resolve("red").data == b"red" * 100 and second.key() != first.key()


def test_a_copy_that_keeps_its_time_and_a_change_of_permissions_change_nothing(archive, tmp_path):
    os.utime(archive, (1e9, 1e9))
    images = ArchiveImages(archive, tmp_path / "cache")
    shutil.copy2(archive, tmp_path / "copy")
    archive.chmod(0o600)
    assert images.resolve("a.png").data == b"first"
    (tmp_path / "copy").replace(archive)  # another inode
    assert images.resolve("a.png").data == b"first"
    assert ArchiveImages(archive, tmp_path / "cache").key() == images.key()
    assert len(list((tmp_path / "cache").glob("archive-*/index.npy"))) == 1


def test_an_index_that_was_deleted_is_made_again(archive, tmp_path):
    os.utime(archive, (1e9, 1e9))
    key = ArchiveImages(archive, tmp_path / "cache").key()
    shutil.rmtree(*(tmp_path / "cache").glob("archive-*/"))
    again = ArchiveImages(archive, tmp_path / "cache")
    assert again.key() == key and again.resolve("a.png").data == b"first"


def test_no_descriptor_is_left_says_so(archive, tmp_path, no_descriptors):
    images = ArchiveImages(archive, tmp_path / "cache")
    len(images.archive)
    with (
        no_descriptors(),
        pytest.raises(MediaError, match=r"as many files open as it may \(\d+\); .*ulimit -n") as caught,
    ):
        images.resolve("a.png")
    assert caught.value.reason == "open_files"
    with no_descriptors(), pytest.raises(SettingError, match="ulimit -n"):
        Archive(archive, tmp_path / "cache")


def test_zip64_and_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 100)  # from how many on zip64 is written
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    files = {f"{number}.png": bytes([number % 256]) * number for number in range(300)}
    path = write(tmp_path / "a.zip", files, compression=zipfile.ZIP_STORED)
    monkeypatch.undo()
    assert b"PK\x06\x06" in path.read_bytes()  # the directory of zip64
    images = ArchiveImages(path, tmp_path / "cache")
    assert all(images.resolve(name).data == data for name, data in files.items())


def test_what_an_entry_names(archive, tmp_path):
    assert isinstance(open_images(archive, ".", tmp_path / "cache"), ArchiveImages)
    assert isinstance(open_images(tmp_path, ".", tmp_path / "cache"), ImageFolder)
    assert isinstance(open_images(None, ".", tmp_path / "cache"), ImageFolder)
    (tmp_path / "x.zip").mkdir()
    assert isinstance(open_images(tmp_path / "x.zip", ".", tmp_path / "cache"), ImageFolder)
    with pytest.raises(SettingError, match="isn't there"):
        open_images(tmp_path / "no.tar", ".", tmp_path / "cache")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(SettingError, match="is a file, and no .tar or .zip"):
        open_images(tmp_path / "a.txt", ".", tmp_path / "cache")


def test_videos_in_archives(tmp_path):
    frames = [Image.fromarray(np.full((24, 32, 3), 60 * index, np.uint8)) for index in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    write(tmp_path / "v.tar", {name: (tmp_path / name).read_bytes() for name in ("a.gif", "a.mp4")})
    images = ArchiveImages(tmp_path / "v.tar", tmp_path / "cache")
    for name in ("a.gif", "a.mp4"):
        blob, path = images.resolve(name), str(tmp_path / name)
        assert probe_video(blob, 4) == probe_video(path, 4) == (4, (32, 24))
        for mine, theirs in zip(load_frames(blob, 3), load_frames(path, 3), strict=True):
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
    with pytest.raises(MediaError, match="no image|can't be decoded"):
        load_image(images.resolve("a.mp4"))
