import io

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from xtuner_plugins.datasets.errors import RecordError, SettingError
from xtuner_plugins.datasets.records.parquet import BATCH, ParquetRows, write_image


def test_rows_come_in_order_with_their_place(tmp_path):
    path, numbers = tmp_path / "a.parquet", list(range(BATCH + 3))
    table = pyarrow.table(
        {"text": list(map(str, numbers)), "bytes": [bytes([n % 256]) for n in numbers], "more": numbers}
    )
    pyarrow.parquet.write_table(table, path)
    rows = ParquetRows(path, ("text", "bytes"))
    assert len(rows) == len(numbers) and rows.source(0) == f"{path}:1"
    assert list(rows) == [{"text": str(n), "bytes": bytes([n % 256])} for n in numbers]


def test_wrong_files_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 cut off")
    with pytest.raises(SettingError, match="no whole Parquet file .*download it again"):
        ParquetRows(path, ("text",))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    with pytest.raises(SettingError, match="has the columns text, not image"):
        ParquetRows(path, ("text", "image"))


@pytest.mark.parametrize("kind, suffix", [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_images_are_written_as_they_are(tmp_path, kind, suffix):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, kind)
    name = write_image(buffer.getvalue(), tmp_path, "f:1")
    assert name.endswith(f".{suffix}") and (tmp_path / name).read_bytes() == buffer.getvalue()
    (tmp_path / name).write_bytes(b"half of it")  # a run was killed here
    assert write_image(buffer.getvalue(), tmp_path, "f:1") == name
    assert (tmp_path / name).read_bytes() == buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"no image", None])
def test_what_is_no_image_is_refused(tmp_path, data):
    with pytest.raises(RecordError, match="f:7: its image can't be read"):
        write_image(data, tmp_path, "f:7")
