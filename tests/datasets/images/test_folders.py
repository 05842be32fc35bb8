import os

import pytest

from xtuner_plugins.datasets.images.folders import FolderFiles
from xtuner_plugins.datasets.images.media import ImageFolder


@pytest.fixture
def folder(tmp_path):
    """Three images in subfolders, a video as frames."""
    for name in ("a.jpg", "coco/b.jpg", "coco/train/c.jpg", "clip/1.jpg", "clip/2.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


def compare(folder, *named):
    return FolderFiles(ImageFolder(folder)).compare(named)


def test_missing_and_superfluous_files_are_counted(folder):
    count = compare(folder, "a.jpg", "coco/train/c.jpg", "coco/none.jpg", "a.jpg")
    assert (count.num_files, count.num_named) == (5, 3)
    assert count.missing == ["coco/none.jpg"]
    assert count.superfluous == ["clip/1.jpg", "clip/2.jpg", "coco/b.jpg"]
    assert str(count) == (
        f"{folder}: 5 files; records name 3 different ones, 1 of them missing; 3 superfluous (no record names them)"
    )
    assert count.examples(2) == ["missing: coco/none.jpg", "superfluous: clip/1.jpg, clip/2.jpg and 1 more"]
    assert count.to_json() == {
        "folder": str(folder),
        "num_files": 5,
        "num_named": 3,
        "missing": count.missing,
        "superfluous": count.superfluous,
        "num_missing": 1,
        "num_superfluous": 3,
    }


def test_a_complete_folder(folder):
    count = compare(folder, "a.jpg", "coco/b.jpg", "./coco/train//c.jpg", "clip")
    assert (count.missing, count.superfluous, count.examples()) == ([], [], [])


def test_names_that_lead_elsewhere_are_missing(folder, tmp_path):
    (tmp_path / "outside.jpg").touch()
    os.symlink(tmp_path / "outside.jpg", folder / "link.jpg")
    names = ["../outside.jpg", str(tmp_path / "outside.jpg"), "link.jpg", "http://x/a.jpg", ""]
    assert compare(folder, *names).missing == sorted(names)


def test_links_inside_are_followed(folder):
    os.symlink("coco", folder / "again")
    os.symlink("a.jpg", folder / "same.jpg")
    count = compare(folder, "again/b.jpg", "same.jpg")
    assert count.missing == [] and count.num_files == 6


def test_ordinary_files_are_not_asked_for_their_state(folder, monkeypatch):
    """With half a million files a stat each would take as long as everything else."""
    asked = []
    for name in ("stat", "lstat"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _f=function, **k: asked.append(a[0]) or _f(*a, **k))
    compare_to = ["a.jpg", "coco/b.jpg", "coco/train/c.jpg", "clip/1.jpg", "clip/2.jpg"]
    files = FolderFiles(ImageFolder(folder))
    asked.clear()
    assert files.compare(compare_to).missing == [] and asked == []


def test_a_folder_is_needed():
    with pytest.raises(ValueError, match="only a folder"):
        FolderFiles(ImageFolder(None))
