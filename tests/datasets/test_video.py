import av
import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.datasets import MultimodalDataset, RecordError
from xtuner_plugins.datasets.boxes import find_boxes, normalise_boxes
from xtuner_plugins.datasets.errors import MediaError
from xtuner_plugins.datasets.records import parse_record
from xtuner_plugins.datasets.video import load_frames, pick_frames, probe_video

LEVELS = [20 * number for number in range(12)]


def write_video(path, codec):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in LEVELS:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Twelve frames, each brighter than the last, in every form that is read."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", "mpeg4")
    write_video(folder / "a.webm", "libvpx")
    frames = [Image.new("RGB", (64, 48), (level,) * 3) for level in LEVELS]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    (folder / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(folder / "frames" / f"f{number}.png")  # f10 comes after f9, not after f1
    return folder


def test_frames_are_the_middles_of_equal_stretches():
    assert pick_frames(12, 4) == [1, 4, 7, 10] and pick_frames(3, 8) == [0, 1, 2] and pick_frames(1, 1) == [0]
    for total in range(1, 60):
        for number in range(1, 20):
            picked = pick_frames(total, number)
            assert picked == sorted(set(picked)) and len(picked) == min(total, number) and picked[-1] < total


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "frames"])
def test_every_form_gives_the_picked_frames(videos, name):
    path = str(videos / name)
    assert probe_video(path, 4) == (4, (64, 48)) and probe_video(path, 99)[0] == 12
    frames = load_frames(path, 4)
    levels = [np.asarray(frame).mean() for frame in frames]
    assert [frame.mode for frame in frames] == ["RGB"] * 4
    np.testing.assert_allclose(levels, [LEVELS[number] for number in (1, 4, 7, 10)], atol=6)  # codecs lose a little


def test_missing_and_broken_videos(videos, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    (tmp_path / "empty").mkdir()
    for name in ("bad.mp4", "empty", "none.mp4"):
        for action in (probe_video, load_frames):
            with pytest.raises(MediaError, match=name):
                action(str(tmp_path / name), 4)


def test_a_video_in_a_sample(videos, data_base, write_data, qa, text_tokenizer):
    record = qa("<video>\nWhat changes?", "The light.", video="a.mp4")
    sample = MultimodalDataset(data_base, write_data([record]), str(videos), num_frames=3)[0]
    assert sample["num_tiles"] == 3 == len(sample["tiles"])
    ids = [i for i in sample["input_ids"].tolist() if i != text_tokenizer.image_context_id]
    assert (
        "user\nFrame-1: <img></img>\nFrame-2: <img></img>\nFrame-3: <img></img>\nWhat changes?"
        in text_tokenizer.decode(ids)
    )


def boxed(answer, **extra):
    raw = {
        "image": "a.jpg",
        "boxes": "pixel",
        "width": 640,
        "height": 480,
        "conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": answer}],
        **extra,
    }
    return parse_record(raw, "f:3")


def test_pixel_boxes_enter_the_frame():
    record = normalise_boxes(boxed("<ref>bus</ref><box>[[64, 48, 320, 240]]</box> and <box>[0,0,640,480]</box>"))
    assert record.turns[1].text == (
        "<ref>bus</ref><box>[[100, 100, 500, 500]]</box> and <box>[[0, 0, 1000, 1000]]</box>"
    )
    assert find_boxes(record.turns[1].text) == [(100, 100, 500, 500), (0, 0, 1000, 1000)]
    plain = parse_record(
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "<box>[[1, 2, 3, 4]]</box>"}]},
        "f:1",
    )
    assert normalise_boxes(plain) is plain


def test_boxes_are_checked_against_the_picture():
    with pytest.raises(RecordError, match="f:3: the record says 640x480, the picture is 480x640"):
        normalise_boxes(boxed("<box>[[1, 2, 3, 4]]</box>"), lambda place: (480, 640))
    with pytest.raises(RecordError, match="f:3: the box .* leaves the picture of 640x480"):
        normalise_boxes(boxed("<box>[[1, 2, 3, 481]]</box>"))
