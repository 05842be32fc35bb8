import bz2
import gzip
import multiprocessing
import os
import tarfile

import pyarrow
import pytest

from xtuner_plugins.datasets.errors import DataError, RecordError, SettingError
from xtuner_plugins.datasets.records.compressed import is_compressed, unpack
from xtuner_plugins.datasets.records.opening import open_records, stem_of

LINES = b'{"a": 1}\n\n{"b": 2}\n{"c": \n'


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize("pack, name", [(gzip.compress, "a.jsonl.gz"), (zstd, "a.jsonl.zst"), (gzip.compress, "data")])
def test_records_and_their_places(tmp_path, pack, name, capfd):
    path = tmp_path / name
    path.write_bytes(pack(LINES))
    found = open_records(path, tmp_path / "cache")
    assert (len(found), found.parse(0), found.parse(1)) == (3, {"a": 1}, {"b": 2})
    assert [found.source(row) for row in range(3)] == [f"{path}:1", f"{path}:3", f"{path}:4"]
    with pytest.raises(RecordError, match=f"^{path}:4: not JSON"):
        found.parse(2)
    with found.reader() as reader:
        assert reader.parse(1) == {"b": 2}
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and said[0].startswith(f"unpacking {path} (0.0 MB) into {tmp_path / 'cache' / 'unpacked'}/")
    assert open_records(path, tmp_path / "cache").parse(0) == {"a": 1}
    assert capfd.readouterr().err == ""  # unpacked once


def test_several_members_are_one_file(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"b": 2}\n'))
    assert len(open_records(path, tmp_path / "cache")) == 2


def test_only_the_content_decides(tmp_path, capfd):
    (tmp_path / "a.gz").write_bytes(gzip.compress(LINES, mtime=0))
    (tmp_path / "b.gz").write_bytes(gzip.compress(LINES, mtime=0))
    first, second = (open_records(tmp_path / name, tmp_path / "cache") for name in ("a.gz", "b.gz"))
    assert first.unpacked == second.unpacked and second.source(0) == f"{tmp_path / 'b.gz'}:1"
    assert first.fingerprint(str(tmp_path / "cache")) == second.fingerprint(str(tmp_path / "cache"))
    (tmp_path / "a.gz").write_bytes(gzip.compress(b'{"d": 4}', mtime=0))
    assert open_records(tmp_path / "a.gz", tmp_path / "cache").parse(0) == {"d": 4}


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_what_is_cut_off_or_damaged_is_refused(tmp_path, pack):
    content = b'{"a": "' + os.urandom(150_000).hex().encode() + b'"}\n'
    whole, path, cache = pack(content), tmp_path / "a.gz", tmp_path / "cache"
    damaged = whole[:100_000] + b"damaged" + whole[100_007:]  # zstd as pyarrow writes it has no checksum
    for data in (whole[:-20], whole[:30], damaged if pack is gzip.compress else whole[:100_000]):
        path.write_bytes(data)
        with pytest.raises(SettingError, match=f"^{path}:1: can't be unpacked"):
            open_records(path, cache)
    left = [file.name for file in (cache / "unpacked").iterdir() if "." in file.name and file.suffix != ".lock"]
    assert left == []  # nothing half-written


def test_errors_of_the_content_name_the_compressed_file(tmp_path):
    path = tmp_path / "a.json.gz"
    for content, message in ((b"", "is empty"), (b'[{"a": 1}', "isn't closed"), (b"hello", "neither a JSON array")):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match=f"^{path}:1: .*{message}"):
            open_records(path, tmp_path / "cache")


def test_what_holds_no_records_is_refused_before_it_is_unpacked(tmp_path, capfd):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as shard:
        shard.add(__file__, "a.json")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"PAR1" + bytes(100)))
    for name, words in (("a.tar.gz", "is a tar archive, .* shards are read in place"), ("b.gz", "is Parquet")):
        with pytest.raises(SettingError, match=f"^{tmp_path / name}:1: {words}"):
            open_records(tmp_path / name, tmp_path / "cache")
    assert "unpack" not in capfd.readouterr().err
    assert {file.suffix for file in (tmp_path / "cache/unpacked").iterdir()} == {".lock"}


def test_other_compressions_are_named(tmp_path):
    (tmp_path / "a.bz2").write_bytes(bz2.compress(LINES))
    assert not is_compressed(str(tmp_path / "a.bz2"))
    with pytest.raises(SettingError, match="bzip2"):
        open_records(tmp_path / "a.bz2", tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(SettingError, match="can't be written .*cache_dir"):
        open_records(tmp_path / "a.gz", tmp_path / "cache")


def test_one_of_several_processes_unpacks(tmp_path, capfd):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(LINES * 100_000))
    jobs = [multiprocessing.get_context("fork").Process(target=unpack, args=(str(path), tmp_path)) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0] and capfd.readouterr().err.count("unpacking") == 1
    assert os.path.getsize(unpack(str(path), tmp_path)) == 100_000 * len(LINES)


def test_names_without_suffixes():
    assert list(map(stem_of, ["x/a.jsonl", "a.jsonl.gz", "b.json.zst", "c"])) == ["a", "a", "b", "c"]
