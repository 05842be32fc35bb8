"""The same eight records and their images in every form that `data_paths` and `image_folders` may name."""

import base64
import functools
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.datasets.store_servers import BUCKET, shared_server

SIZES = {"a.jpg": (100, 90), "b.png": (360, 120), "deep/c.jpg": (120, 360)}


def talk(question: str, answer: str, **extra) -> dict:
    return {**extra, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def make_records() -> list[dict]:
    """Two of them are unusable: the fifth's image is damaged, the seventh has no turns."""
    return [
        talk("<image>\nA?", "Yes, 好的.", image="a.jpg"),
        talk("Where?", "<ref>it</ref><box>[[1, 2, 300, 400]]</box>", image="b.png"),
        talk("No image: 2 + 2?", "4."),
        talk("Left <image> right <image>?", "Both. " * 40, image=["b.png", "deep/c.jpg"]),
        talk("Damaged?", "No.", image="damaged.jpg"),
        talk("<image>\nC?", "Perhaps.", image="deep/c.jpg", system="Be brief."),
        {"conversations": []},
        talk("Again <b>bold</b>?", "Yes.", image="a.jpg"),
    ]


def make_images(folder: Path) -> Path:
    for name, (width, height) in SIZES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(path)
    (folder / "damaged.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    return folder


def names_of(record: dict) -> list[str]:
    names = record.get("image", [])
    return [names] if isinstance(names, str) else names


def as_lines(records: list[dict]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def write_plain(records, images: Path, out: Path) -> dict:
    (out / "plain.jsonl").write_bytes(as_lines(records))
    return {"data_paths": str(out / "plain.jsonl"), "image_folders": str(images)}


def write_packed(records, images: Path, out: Path, name: str) -> dict:
    """Compressed as the suffix says: an array, or lines."""
    import pyarrow

    with pyarrow.output_stream(str(out / name), compression="zstd" if name.endswith("zst") else "gzip") as file:
        file.write(as_lines(records) if "jsonl" in name else json.dumps(records).encode())
    return {"data_paths": str(out / name), "image_folders": str(images)}


write_gzip = functools.partial(write_packed, name="data.jsonl.gz")


def write_windows(records, images: Path, out: Path) -> dict:
    """Names with backslashes."""

    def change(name):
        return [change(each) for each in name] if isinstance(name, list) else name.replace("/", "\\")

    changed = [record | ({"image": change(record["image"])} if "image" in record else {}) for record in records]
    (out / "windows.jsonl").write_bytes(as_lines(changed))
    return {"data_paths": str(out / "windows.jsonl"), "image_folders": str(images)}


def write_columns(records, images: Path, out: Path) -> dict:
    """Turns under another name, and images as data URLs in the records."""
    changed = []
    for record in records:
        names = names_of(record)
        urls = ["data:image/png;base64," + base64.b64encode((images / name).read_bytes()).decode() for name in names]
        changed.append({"system": record.get("system"), "dialog": record["conversations"], "pictures": urls})
    (out / "columns.jsonl").write_bytes(as_lines(changed))
    columns = {"conversations": "dialog", "images": "pictures"}
    return {"data_paths": str(out / "columns.jsonl"), "dataset_settings": [{"columns": columns}]}


def write_zip(records, images: Path, out: Path) -> dict:
    """The images lie in a folder of the archive."""
    with zipfile.ZipFile(out / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(images.rglob("*")):
            archive.write(path, f"train/{path.relative_to(images)}")
    return {**write_plain(records, images, out), "image_folders": str(out / "images.zip" / "train")}


def write_store(records, images: Path, out: Path, scheme: str = "s3", form=write_plain) -> dict:
    """Records and images in a store."""
    server, place = shared_server(), f"{BUCKET}{out}"
    for path in images.rglob("*.*"):
        server.objects[f"{place}/images/{path.relative_to(images)}"] = path.read_bytes()
    written = form(records, images, out)
    data = Path(written["data_paths"])
    server.objects[f"{place}/{data.name}"] = data.read_bytes()
    root = f"{server.url}/{place}" if scheme == "http" else f"s3://{place}"
    folder = f"{root}/images" if written.get("image_folders") else None
    args = {} if scheme == "http" else {"storage_options": {"endpoint_url": server.url, "anon": True}}
    return {"data_paths": f"{root}/{data.name}", "image_folders": folder, **args}


def write_file_url(records, images: Path, out: Path) -> dict:
    plain = write_plain(records, images, out)
    return {key: Path(value).as_uri() for key, value in plain.items()}


def as_rows(records, images: Path, image: str) -> list[dict]:
    """Records as rows of a table: `image` says how images are held, 'struct' or 'path'."""

    def hold(name: str):
        return name if image == "path" else {"bytes": (images / name).read_bytes(), "path": None}

    rows = []
    for record in records:
        held = [hold(name) for name in names_of(record)] or None
        rows.append({"images": held, "conversations": record["conversations"] or None, "system": record.get("system")})
    return rows


def write_table(rows: list[dict], path: Path, group: int = 3) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def write_parquet(records, images: Path, out: Path, image: str = "struct") -> dict:
    write_table(as_rows(records, images, image), out / "data.parquet")
    return {"data_paths": str(out / "data.parquet"), "image_folders": str(images) if "path" in image else None}


def write_parquet_shards(records, images: Path, out: Path) -> dict:
    """One image for a row is a struct of its own, as in LLaVA-OneVision; here every row has a list."""
    rows = as_rows(records, images, "struct")
    for number, part in enumerate((rows[:3], rows[3:])):
        write_table(part, out / f"train-{number:05}-of-00002.parquet", group=2)
    return {"data_paths": str(out)}


def write_finevision(records, images: Path, out: Path) -> dict:
    """`images` and `texts`, with placeholders where there are several images and none for a damaged record."""
    rows = as_rows(records, images, "struct")
    for row in rows:
        turns = row.pop("conversations") or []
        pairs = zip(turns[::2], turns[1::2], strict=True)
        row["texts"] = [{"user": ask["value"], "assistant": answer["value"]} for ask, answer in pairs] or None
    write_table(rows, out / "data.parquet", group=100)
    return {"data_paths": str(out / "*.parquet")}


def write_saved(records, images: Path, out: Path) -> dict:
    import datasets

    rows = as_rows(records, images, "struct")
    text = datasets.Value("string")
    turns, held = datasets.List({"from": text, "value": text}), datasets.List(datasets.Image())
    features = datasets.Features({"images": held, "conversations": turns, "system": text})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(out / "saved", num_shards=2)
    return {"data_paths": str(out / "saved")}


def write_webdataset(records, images: Path, out: Path, shards: int = 1) -> dict:
    """Each sample with its images beside it, under the names that its record doesn't know."""
    per_shard = -(-len(records) // shards)
    for number in range(shards):
        with tarfile.open(out / f"{number:06}.tar", "w") as archive:
            for index, record in enumerate(records[number * per_shard : (number + 1) * per_shard]):
                names = names_of(record)
                inside = {key: value for key, value in record.items() if key != "image"}
                files = {f"{index:04}.json": json.dumps(inside).encode()}
                for place, name in enumerate(names):
                    suffix = Path(name).suffix if len(names) == 1 else f".{place}{Path(name).suffix}"
                    files[f"{index:04}{suffix}"] = (images / name).read_bytes()
                for name, data in files.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return {"data_paths": str(out / "000000.tar" if shards == 1 else out)}


KINDS = {
    "json.gz": functools.partial(write_packed, name="data.json.gz"),
    "jsonl.gz": write_gzip,
    "jsonl.zst": functools.partial(write_packed, name="data.jsonl.zst"),
    "windows": write_windows,
    "columns and data URLs": write_columns,
    "images in zip": write_zip,
    "parquet": write_parquet,
    "parquet of paths": functools.partial(write_parquet, image="path"),
    "parquet shards": write_parquet_shards,
    "finevision": write_finevision,
    "save_to_disk": write_saved,
    "webdataset": write_webdataset,
    "webdataset shards": functools.partial(write_webdataset, shards=2),
    "s3": write_store,
    "s3, gzip": lambda *args: write_store(*args, form=write_gzip),
    "s3, parquet": lambda *args: write_store(*args, form=write_parquet),
    "http": functools.partial(write_store, scheme="http"),
    "file://": write_file_url,
}
# Kinds that say more than a path and a folder, for which a command without a config has no place
NEED_SETTINGS = ("columns and data URLs", *(kind for kind in KINDS if kind.startswith("s3")))
