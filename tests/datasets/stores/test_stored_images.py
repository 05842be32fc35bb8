"""Images in stores: names, sizes from first bytes, copies kept, and what measuring remembers."""

import io
import json
import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from tests.datasets.source_kinds import talk
from tests.datasets.store_servers import BUCKET, query_server
from xtuner_plugins.audit.check import check_dataset
from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.errors import MediaError, RecordError
from xtuner_plugins.datasets.images import archives
from xtuner_plugins.datasets.images.archives import open_images
from xtuner_plugins.datasets.images.media import image_size, load_image
from xtuner_plugins.datasets.images.video import probe_video
from xtuner_plugins.datasets.ledger import Ledger, TooManyBadSamples
from xtuner_plugins.datasets.stores.store import StoreSettings
from xtuner_plugins.datasets.stores.stored_images import HEAD


def encoded(width, height, form="JPEG", **options) -> bytes:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(out := io.BytesIO(), form, **options)
    return out.getvalue()


def turned(orientation: int, padding: int = 0) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(400, 300, exif=exif, quality=95, icc_profile=bytes(padding) or None)


@pytest.fixture
def open_folder(server, tmp_path):
    def open_folder(cache_gib=0, **options):
        settings = StoreSettings(cache_gib=cache_gib, timeout=30)
        return open_images(f"{server.url}/images", None, tmp_path / "cache", stores=settings, **options)

    return open_folder


def bytes_asked(server):
    return [asked for method, _, asked in server.asked if method == "GET"]


@pytest.mark.parametrize(
    "name, data, asked",
    [
        ("small.jpg", encoded(20, 10), [f"bytes=0-{HEAD - 1}"]),
        ("large.jpg", turned(1), [f"bytes=0-{HEAD - 1}"]),
        ("turned.jpg", turned(6), [f"bytes=0-{HEAD - 1}"]),
        ("long header.jpg", turned(6, 150_000), [f"bytes=0-{HEAD - 1}", f"bytes={HEAD}-"]),
        ("large.png", encoded(300, 200, "PNG"), [f"bytes=0-{HEAD - 1}"]),
        ("large.webp", encoded(400, 300, "WEBP", lossless=True), [f"bytes=0-{HEAD - 1}", f"bytes={HEAD}-"]),
        ("large.bmp", encoded(400, 300, "BMP"), [f"bytes=0-{HEAD - 1}", f"bytes={HEAD}-"]),
    ],
)
def test_a_size_needs_the_first_bytes(open_folder, server, tmp_path, name, data, asked):
    server.objects[f"images/{name}"] = data
    (tmp_path / name).write_bytes(data)
    image = open_folder().resolve(name)
    assert image_size(image) == image_size(tmp_path / name) and bytes_asked(server) == asked
    whole = load_image(image)
    assert whole.tobytes() == load_image(tmp_path / name).tobytes()
    rest = [] if len(data) <= HEAD or len(asked) == 2 else [f"bytes={HEAD}-"]
    assert bytes_asked(server) == asked + rest  # nothing is read twice
    server.asked.clear()
    assert load_image(open_folder().resolve(name)).size == whole.size and bytes_asked(server) == [None]


def test_an_object_of_just_the_first_bytes(open_folder, server):
    data = encoded(20, 10) + bytes(HEAD)
    server.objects["images/a.jpg"] = data[:HEAD]
    image = open_folder().resolve("a.jpg")
    assert image_size(image) == (20, 10) and image.data == data[:HEAD]


@pytest.mark.parametrize("mode", ["ok", "no ranges"])
def test_kept_images_arent_read_again(open_folder, server, mode):
    server.objects |= {"images/a.jpg": turned(6), "images/same.jpg": turned(6)}
    server.mode = mode
    folder = open_folder(cache_gib=1)
    expected = load_image(folder.resolve("a.jpg")).tobytes()
    load_image(folder.resolve("same.jpg"))
    server.asked.clear()
    for again in (folder, open_folder(cache_gib=1), pickle.loads(pickle.dumps(folder))):
        assert load_image(again.resolve("a.jpg")).tobytes() == expected
        assert image_size(again.resolve("same.jpg")) == (300, 400)
    assert not server.asked
    assert len([path for path in (folder.cache.directory / "contents").rglob("*") if path.is_file()]) == 1
    load_image(open_folder(cache_gib=0).resolve("a.jpg"))
    assert server.asked


def test_prefixes_that_differ_in_their_queries(tmp_path, data_base):
    """Neither images nor lengths of one are those of the other."""
    sizes = {"red": 40, "blue": 50}
    (tmp_path / "a.jsonl").write_text(json.dumps(talk("A?", "B.", image="1.png")))
    with query_server(lambda query: encoded(sizes[query["set"][0]], 30, "PNG")) as url:
        folders = [f"{url}/images?set={name}" for name in sizes]
        images = [open_images(folder, None, tmp_path / "cache", stores=StoreSettings()) for folder in folders]
        assert [load_image(each.resolve("1.png")).size for each in images] == [(40, 30), (50, 30)]
        both = [str(tmp_path / "a.jsonl")] * 2, folders
        dataset = MultimodalDataset(str(data_base), *both, cache_dir=str(tmp_path / "cache"))
        assert [dataset.lengths(number, num_workers=0).sizes.tolist() for number in (0, 1)] == [[[40, 30]], [[50, 30]]]


def reasons(dataset, **options):
    report = check_dataset(dataset, num_workers=options.pop("num_workers", 0), **options)[0]
    return {trouble.row: trouble.reason for trouble in report.troubles}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_check_compares_versions_of_kept_images(make_dataset, server, num_workers):
    dataset = make_dataset(image_cache_gib=1)
    for row in range(4):
        dataset[row]  # keeps the images, without their versions
    server.asked.clear()
    assert not reasons(dataset, num_workers=num_workers) and bytes_asked(server) == [None] * 4
    server.asked.clear()
    assert not reasons(dataset, num_workers=num_workers)
    assert not bytes_asked(server) and len(server.asked) == 4  # their versions
    server.objects |= {"images/1.png": None, "images/2.png": b"damaged"}
    expected = {1: "image_missing", 2: "image_unreadable"}
    assert reasons(dataset, num_workers=num_workers) == expected
    assert reasons(make_dataset(image_cache_gib=1), num_workers=num_workers) == expected
    server.asked.clear()
    assert dataset[3]["num_tiles"] and dataset[1]["num_tiles"] and not server.asked  # training trusts them for a day


def test_a_fresh_check_trusts_no_kept_image(make_dataset, server):
    dataset = make_dataset(image_cache_gib=1)
    for fresh in (False, True, True):
        server.asked.clear()
        assert not reasons(dataset, fresh=fresh) and bytes_asked(server) == [None] * 4
    server.objects["images/0.png"] = encoded(50, 30, "PNG")
    assert not reasons(dataset, fresh=True)
    assert image_size(dataset.sources[0].folder.resolve("0.png")) == (50, 30)  # kept in place of the old one


def test_a_check_reads_again_what_has_no_version(make_dataset, server):
    dataset, server.mode = make_dataset(image_cache_gib=1), "no version"
    assert not reasons(dataset)
    server.objects["images/2.png"] = b"damaged"
    assert reasons(dataset) == {2: "image_unreadable"}


def test_names_stay_below_the_prefix(open_folder, server):
    server.objects |= {"images/deep/a.jpg": encoded(20, 10), "secret.jpg": encoded(20, 10)}
    folder = open_folder(windows_paths=True)
    for name in ("deep/a.jpg", "./deep//a.jpg", "deep\\a.jpg"):
        assert folder.resolve(name).key == "deep/a.jpg" and image_size(folder.resolve(name)) == (20, 10)
    server.asked.clear()
    for name in ("../secret.jpg", "deep/../../secret.jpg", "/secret.jpg", "http://other/a.jpg", "s3://b/a", "", "a\0b"):
        with pytest.raises(MediaError) as error:
            folder.resolve(name)
        assert error.value.reason in ("image_outside", "image_name")
    for name in ("%2e%2e/secret.jpg", "..%2fsecret.jpg", "deep/a.jpg?x=../secret.jpg"):
        with pytest.raises(MediaError, match="no such object"):
            load_image(folder.resolve(name))
    assert not [path for _, path, _ in server.asked if path == "secret.jpg"]


def test_what_is_no_image(open_folder, server):
    server.objects |= {
        "images/html.jpg": b"<html>" + bytes(100),
        "images/empty.jpg": b"",
        "images/cut.jpg": turned(1)[:-9],
    }
    folder = open_folder()
    for name, words in (
        ("html.jpg", "can't be decoded"),
        ("empty.jpg", "an empty file"),
        ("cut.jpg", "can't be decoded"),
    ):
        with pytest.raises(MediaError, match=f"{server.url}/images/{name}: {words}") as error:
            load_image(folder.resolve(name))
        assert error.value.reason == "image_unreadable"
    with pytest.raises(MediaError, match="no such object"):
        probe_video(folder.resolve("none.mp4"), 4)


@pytest.mark.parametrize("kind", ["http", "no ranges", "no length", "s3", "backend"])
def test_objects_beyond_the_limit_arent_read(server, credentials, tmp_path, monkeypatch, kind):
    """The limit is that of archives; all but the bytes of backends are refused before they are in memory."""
    data, limit = encoded(300, 400, "PNG"), 100_000
    assert len(data) > 3 * limit > 4 * HEAD
    server.objects |= {f"{BUCKET}/x/a.png": data, f"{BUCKET}/x/b.png": data[:limit]}
    server.mode = kind if kind.startswith("no") else "ok"
    root, args = {
        "s3": (f"s3://{BUCKET}/x", {"endpoint_url": server.url}),
        "backend": (f"{server.url}/{BUCKET}/x", {"backend": "http"}),
    }.get(kind, (f"{server.url}/{BUCKET}/x", None))
    monkeypatch.setattr(archives, "MAX_MEMBER", limit)
    folder = open_images(root, None, tmp_path, stores=StoreSettings(args, cache_gib=0, timeout=30))
    assert folder.resolve("b.png").data == data[:limit]
    server.asked.clear()
    with pytest.raises(MediaError, match="/a.png: more than 100,000 bytes.*; make it smaller or put it") as error:
        load_image(folder.resolve("a.png"))
    assert error.value.reason == "media_bytes"
    assert len(server.asked) == 1  # no other try helps
    if kind == "s3":
        assert bytes_asked(server) == [f"bytes=0-{limit}"] and image_size(folder.resolve("a.png")) == (300, 400)
    else:
        with pytest.raises(MediaError, match="more than 100,000 bytes"):
            image_size(folder.resolve("a.png"))
    image = folder.resolve("b.png")
    assert image_size(image) == (300, 400) and image.data == data[:limit]  # the head, and then the rest


@pytest.fixture
def make_dataset(data_base, server, tmp_path):
    """A dataset of four records, each about an image of its own in the store."""

    def make_dataset(**options):
        for number in range(4):
            server.objects.setdefault(f"images/{number}.png", encoded(40 + number, 30, "PNG"))
        records = [talk(f"{number}?", "Yes.", image=f"{number}.png") for number in range(4)]
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        settings = {"cache_dir": str(tmp_path / "cache"), "store_timeout": 1, "image_cache_gib": 0} | options
        return MultimodalDataset(str(data_base), str(path), f"{server.url}/images", **settings)

    return make_dataset


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("mode", ["500", "reset", "slow", "truncated"])
def test_measuring_stops_without_the_store_and_remembers_nothing(make_dataset, server, mode, policy):
    dataset = make_dataset(on_bad_sample=policy)
    server.mode = lambda path: mode if path.endswith("2.png") else "ok"
    with pytest.raises(RecordError, match=r"data.jsonl:3: .*/images/2.png: no answer in") as error:
        dataset.sizes(num_workers=0)
    assert error.value.reason == "store_unreachable" and not dataset.is_measured()
    server.mode = "ok"
    assert make_dataset().sizes(num_workers=0)[2].tolist() == [0] * 4


def test_complaints_hold_while_the_object_is_the_same(make_dataset, server):
    server.objects |= {"images/1.png": b"damaged", "images/3.png": None}
    dataset = make_dataset(on_bad_sample="skip")
    server.mode = lambda path: "403" if path.endswith("2.png") else "ok"
    reasons = {row: each.reason for row, each in dataset.lengths(0, num_workers=0).complaints.items()}
    assert reasons == {1: "image_unreadable", 2: "store_denied", 3: "image_missing"}
    store = dataset.sources[0].folder.store
    assert dataset.lengths(0).outdated(store) == [2]  # permissions may have been given since
    server.mode = "ok"
    server.objects |= {"images/1.png": encoded(40, 30, "PNG"), "images/3.png": encoded(40, 30, "PNG")}
    assert dataset.lengths(0).outdated(store) == [1, 2, 3]
    assert make_dataset().sizes(num_workers=0)[2].tolist() == [0] * 4


def test_denied_everywhere_is_no_matter_of_records(make_dataset, server):
    dataset = make_dataset(on_bad_sample="skip")
    for source in dataset.sources:
        source.folder.store._denied = 9
    server.mode = "403"
    with pytest.raises(RecordError, match="denies access"):
        dataset.sizes(num_workers=0)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_store_that_goes_while_samples_are_read(make_dataset, server, policy):
    dataset = make_dataset(on_bad_sample=policy, max_bad_samples=2)
    dataset.layout(num_workers=0)
    assert "dropped" not in dataset[0]
    server.mode = "reset"
    if policy == "raise":
        with pytest.raises(RecordError, match=r"data.jsonl:2: .*/images/1.png: no answer in"):
            dataset[1]
        return
    sample = dataset[1]
    assert sample["dropped"] == "store_unreachable" and sample["max_bad_samples"] == 2


def test_settings_of_a_file_win(make_dataset, server, data_base, tmp_path):
    from xtuner_plugins.datasets.errors import SettingError

    with pytest.raises(SettingError, match=r"backend_args .*: neither its data nor its images are in a store"):
        path = tmp_path / "local.jsonl"
        path.write_text(json.dumps(talk("A?", "B.")))
        MultimodalDataset(str(data_base), str(path), dataset_settings=[{"backend_args": {"anon": True}}])
    with pytest.raises(SettingError, match="credential itself") as error:
        make_dataset(dataset_settings=[{"backend_args": {"secret": "hunter2"}}])
    assert "hunter2" not in str(error.value)
    with pytest.raises(SettingError, match="give a dict with some of") as error:
        make_dataset(dataset_settings=[{"backend_arg": 1, "backend_args": {"secret": "hunter2"}}])
    assert "hunter2" not in str(error.value)
    assert replace(StoreSettings(), timeout=2).timeout == 2


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_workers_of_a_loader_end_in_the_policys_error(make_dataset, server, policy, tmp_path):
    dataset, ledger = make_dataset(on_bad_sample=policy), Ledger(tmp_path / "ledger.jsonl", max_bad_samples=2)
    dataset.layout(num_workers=0)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert not any("dropped" in sample for sample in loader)
    server.mode = "reset"
    started, wanted = time.monotonic(), TooManyBadSamples if policy == "skip" else Exception
    with pytest.raises(wanted, match=r"images/\d.png: no answer in"):
        for sample in loader:
            ledger.account(0, 0, [sample])
    assert time.monotonic() - started < 30
