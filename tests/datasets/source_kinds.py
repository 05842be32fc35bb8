"""The same eight records and their images in every form that `data_paths` and `image_folders` may name."""

import base64
import functools
import io
import json
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
from PIL import Image

from tests.datasets.store_servers import BUCKET, shared_server

SIZES = {"a.jpg": (100, 90), "b.png": (360, 120), "deep/c.jpg": (120, 360)}


def make_records() -> list[dict]:
    """Two of them are unusable: the fifth's image is damaged, the seventh has no turns."""
    rows = [
        ({"image": "a.jpg"}, "<image>\nA?", "Yes, 好的."),
        ({"image": "b.png"}, "Where?", "<ref>it</ref><box>[[1, 2, 300, 400]]</box>"),
        ({}, "No image: 2 + 2?", "4."),
        ({"image": ["b.png", "deep/c.jpg"]}, "Left <image> right <image>?", "Both. " * 40),
        ({"image": "damaged.jpg"}, "Damaged?", "No."),
        ({"image": "deep/c.jpg", "system": "Be brief."}, "<image>\nC?", "Perhaps."),
        ({},),
        ({"image": "a.jpg"}, "Again <b>bold</b>?", "Yes."),
    ]
    speakers = ("human", "gpt")
    turns = [[{"from": who, "value": text} for who, text in zip(speakers, said, strict=False)] for _, *said in rows]
    return [{**row[0], "conversations": said} for row, said in zip(rows, turns, strict=True)]


def make_images(folder: Path, scale: int = 1) -> Path:
    for name, (width, height) in SIZES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(width).integers(0, 256, (height // scale, width // scale, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "damaged.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    return folder


def contents_of(record: dict, images: Path) -> list[bytes]:
    names = record.get("image", [])
    return [(images / name).read_bytes() for name in ([names] if isinstance(names, str) else names)]


def write_plain(records, images: Path, out: Path) -> dict:
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (out / "plain.jsonl").write_text(lines, encoding="utf-8")
    return {"data_paths": str(out / "plain.jsonl"), "image_folders": str(images)}


def write_packed(records, images: Path, out: Path, suffix: str = "gz") -> dict:
    plain = write_plain(records, images, out)
    with pyarrow.output_stream(
        f"{plain['data_paths']}.{suffix}", compression={"gz": "gzip"}.get(suffix, "zstd")
    ) as file:
        file.write(Path(plain["data_paths"]).read_bytes())
    return plain | {"data_paths": f"{plain['data_paths']}.{suffix}"}


def write_columns(records, images: Path, out: Path) -> dict:
    """Turns under another name, and images as data URLs in the records."""
    changed = []
    for record in records:
        urls = [b"data:image/png;base64," + base64.b64encode(data) for data in contents_of(record, images)]
        given = {"system": record.get("system"), "dialog": record["conversations"]}
        changed.append({**given, "pictures": [url.decode() for url in urls]})
    columns = {"conversations": "dialog", "images": "pictures"}
    plain = write_plain(changed, images, out)
    return plain | {"image_folders": None, "dataset_settings": [{"columns": columns}]}


def write_zip(records, images: Path, out: Path) -> dict:
    """The images lie in a folder of the archive."""
    with zipfile.ZipFile(out / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(images.rglob("*")):
            archive.write(path, f"train/{path.relative_to(images)}")
    return {**write_plain(records, images, out), "image_folders": str(out / "images.zip" / "train")}


def write_store(records, images: Path, out: Path, scheme: str = "s3", form=write_plain) -> dict:
    """Records and images in a store."""
    server, place = shared_server(), f"{BUCKET}{out}"
    data = Path(form(records, images, out)["data_paths"])
    for path in images.rglob("*.*"):
        server.objects[f"{place}/images/{path.relative_to(images)}"] = path.read_bytes()
    server.objects[f"{place}/{data.name}"] = data.read_bytes()
    root = f"{server.url}/{place}" if scheme == "http" else f"s3://{place}"
    options = {} if scheme == "http" else {"storage_options": {"endpoint_url": server.url, "anon": True}}
    return {"data_paths": f"{root}/{data.name}", "image_folders": f"{root}/images", **options}


def as_rows(records, images: Path) -> list[dict]:
    """Records as rows of a table, which hold their images."""
    rows = []
    for record in records:
        held = [{"bytes": data, "path": None} for data in contents_of(record, images)] or None
        rows.append({"images": held, "conversations": record["conversations"] or None, "system": record.get("system")})
    return rows


def write_table(rows: list[dict], path: Path, group: int = 3) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def write_parquet(records, images: Path, out: Path) -> dict:
    write_table(as_rows(records, images), out / "data.parquet")
    return {"data_paths": str(out / "data.parquet")}


def write_saved(records, images: Path, out: Path) -> dict:
    text = datasets.Value("string")
    turns, held = datasets.List({"from": text, "value": text}), datasets.List(datasets.Image())
    features = datasets.Features({"images": held, "conversations": turns, "system": text})
    rows = datasets.Dataset.from_list(as_rows(records, images), features=features)
    rows.save_to_disk(out / "saved", num_shards=2)
    return {"data_paths": str(out / "saved")}


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_webdataset(records, images: Path, out: Path, shards: int = 2) -> dict:
    """Each sample with its images beside it, under names that its record doesn't know."""
    per_shard = -(-len(records) // shards)
    for number in range(shards):
        files = {}
        for index, record in enumerate(records[number * per_shard : (number + 1) * per_shard]):
            inside = {key: value for key, value in record.items() if key != "image"}
            files[f"{index:04}.json"] = json.dumps(inside).encode()
            files |= {f"{index:04}.{at}.jpg": data for at, data in enumerate(contents_of(record, images))}
        write_tar(out / f"{number:06}.tar", files)
    return {"data_paths": str(out / "000000.tar" if shards == 1 else out)}


KINDS = {
    "zst": functools.partial(write_packed, suffix="zst"),
    "columns and data URLs": write_columns,
    "images in zip": write_zip,
    "parquet": write_parquet,
    "save_to_disk": write_saved,
    "webdataset": write_webdataset,
    "s3": functools.partial(write_store, form=write_packed),
    "http": functools.partial(write_store, scheme="http"),
}
# Kinds that say more than a path and a folder, for which a command without a config has no place
NEED_SETTINGS = ("columns and data URLs", "s3")
