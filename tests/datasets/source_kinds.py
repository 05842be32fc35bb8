"""The same eight records and their images in every form that `data_paths` and `image_folders` may name."""

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

ROWS = [  # names of images, further keys, texts of the turns; the fifth's image is damaged, the seventh has no turns
    (["a.jpg"], {}, ["<image>\nA?", "Yes, 好的."]),
    (["b.png"], {}, ["Where?", "<ref>it</ref><box>[[1, 2, 300, 400]]</box>"]),
    ([], {}, ["No image: 2 + 2?", "4."]),
    (["b.png", "deep/c.jpg"], {}, ["Left <image> right <image>?", "Both. " * 40]),
    (["damaged.jpg"], {}, ["Damaged?", "No."]),
    (["deep/c.jpg"], {"system": "Be brief."}, ["<image>\nC?", "Perhaps."]),
    ([], {}, []),
    (["a.jpg"], {}, ["Again <b>bold</b>?", "Yes."]),
]


def make_records() -> list[dict]:
    records = []
    for names, more, texts in ROWS:
        turns = [{"from": who, "value": text} for who, text in zip(("human", "gpt"), texts, strict=False)]
        records.append({**({"image": names} if names else {}), **more, "conversations": turns})
    return records


def make_images(folder: Path, scale: int = 1) -> Path:
    for name, (width, height) in {"a.jpg": (100, 90), "b.png": (360, 120), "deep/c.jpg": (120, 360)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(width).integers(0, 256, (height // scale, width // scale, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "damaged.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    return folder


def write_plain(records, images: Path, out: Path) -> dict:
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (out / "plain.jsonl").write_text(lines, encoding="utf-8")
    return {"data_paths": str(out / "plain.jsonl"), "image_folders": str(images)}


def write_zstd(records, images: Path, out: Path) -> dict:
    plain = write_plain(records, images, out)
    with pyarrow.output_stream(f"{plain['data_paths']}.zst", compression="zstd") as file:
        file.write(Path(plain["data_paths"]).read_bytes())
    return plain | {"data_paths": f"{plain['data_paths']}.zst"}


def write_zip(records, images: Path, out: Path) -> dict:
    """The images lie in a folder of the archive."""
    with zipfile.ZipFile(out / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in images.rglob("*"):
            archive.write(path, f"train/{path.relative_to(images)}")
    return {**write_plain(records, images, out), "image_folders": str(out / "images.zip" / "train")}


def write_store(records, images: Path, out: Path, scheme: str) -> dict:
    """Records, compressed, and images in a store."""
    server, place = shared_server(), f"{BUCKET}{out}"
    data = Path(write_zstd(records, images, out)["data_paths"])
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
        held = [{"bytes": (images / name).read_bytes(), "path": None} for name in record.get("image", [])] or None
        rows.append({"images": held, "conversations": record["conversations"] or None, "system": record.get("system")})
    return rows


def write_table(rows: list[dict], path: Path, group: int = 1) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def write_parquet(records, images: Path, out: Path) -> dict:
    return {"data_paths": str(write_table(as_rows(records, images), out / "data.parquet", 3))}


def write_saved(records, images: Path, out: Path) -> dict:
    rows = datasets.Dataset.from_list(as_rows(records, images)).cast_column("images", datasets.List(datasets.Image()))
    rows.save_to_disk(out / "saved", num_shards=2)
    return {"data_paths": str(out / "saved")}


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_webdataset(records, images: Path, out: Path) -> dict:
    """Each sample with its images beside it, under names that its record doesn't know."""
    for number, own in enumerate(np.array_split(np.arange(len(records)), 2)):
        files = {}
        for row in own.tolist():
            inside = {key: value for key, value in records[row].items() if key != "image"}
            files[f"{row:04}.json"] = json.dumps(inside).encode()
            for at, name in enumerate(records[row].get("image", [])):
                files[f"{row:04}.{at}.jpg"] = (images / name).read_bytes()
        write_tar(out / f"{number:06}.tar", files)
    return {"data_paths": str(out)}


KINDS = {
    "zip": write_zip,
    "parquet": write_parquet,
    "saved": write_saved,
    "webdataset": write_webdataset,
    "s3": functools.partial(write_store, scheme="s3"),
    "http": functools.partial(write_store, scheme="http"),
}
