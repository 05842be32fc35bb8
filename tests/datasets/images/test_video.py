"""Videos as images: which frames, turned as players turn them; and what isn't a whole video."""

import multiprocessing
import struct

import av
import numpy as np
import pytest
from PIL import Image

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.images import media
from xtuner_plugins.datasets.images.video import _decode, _upright, load_frames, pick_frames, probe_video
from xtuner_plugins.errors import MediaError

LEVELS = [20 * number for number in range(12)]
GRAYS = [np.full((48, 64, 3), level, np.uint8) for level in LEVELS]


def write_video(path, codec, frames=GRAYS):
    """A video of 64x48 frames (gray ones, each brighter than the last, by default)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def levels(path, num_frames):
    return [np.asarray(frame).mean() for frame in load_frames(str(path), num_frames)]


def refused(path, words):
    """Both ways of reading say so, of the file's own name."""
    for action in (probe_video, load_frames):
        with pytest.raises(MediaError, match=words) as caught:
            action(str(path), 4)
        assert "file:" not in str(caught.value) and caught.value.remedy


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Twelve frames, each brighter than the last, in every form that is read."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", "mpeg4")
    write_video(folder / "a.webm", "libvpx")
    frames = list(map(Image.fromarray, GRAYS))
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    (folder / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(folder / "frames" / f"f{number}.png")  # f10 comes after f9, not after f1
    (folder / "frames" / "._f9.png").write_bytes(b"left by a Mac")
    return folder


def test_frames_are_the_middles_of_equal_stretches(videos):
    picked = {(12, 4): [1, 4, 7, 10], (3, 8): [0, 1, 2], (1, 1): [0], (7, 3): [1, 3, 5], (5, 4): [0, 1, 2, 4]}
    assert {each: pick_frames(*each) for each in picked} == picked
    for name in ("a.mp4", "a.webm", "a.gif", "frames"):
        path = str(videos / name)
        assert probe_video(path, 4) == (4, (64, 48)) and probe_video(path, 99)[0] == 12
        assert [frame.mode for frame in load_frames(path, 4)] == ["RGB"] * 4
        np.testing.assert_allclose(levels(path, 4), [20, 80, 140, 200], atol=6, err_msg=name)  # codecs lose a little


def test_a_video_and_an_image_with_boxes_in_a_sample(videos, data_base, write_data, qa, text_tokenizer):
    record = qa("<video>\nWhere in <image>?", "<box>[[8, 6, 32, 24]]</box>", video="a.mp4", image="frames/f1.png")
    record |= {"boxes": "pixel", "width": 64, "height": 48}
    data = write_data([record, record | {"width": 65}])
    dataset = MultimodalDataset(data_base, data, str(videos), num_frames=3, on_bad_sample="skip")
    sample = dataset[0]
    assert sample["num_tiles"] == 3 + 7 == len(sample["tiles"])
    text = text_tokenizer.decode([i for i in sample["input_ids"].tolist() if i != text_tokenizer.image_context_id])
    frames = "".join(f"Frame-{number}: <img></img>\n" for number in (1, 2, 3))
    assert f"user\n{frames}Where in <img></img>?" in text and "[[125, 125, 500, 500]]" in text
    assert dataset.layout(num_workers=0)[0].tolist() == [len(sample["input_ids"]), 0]
    assert "data.jsonl:2: the record says 65x48, the image is 64x48" in dataset[1]["message"]


CORNERS = np.zeros((48, 64, 3), np.uint8)
CORNERS[:24, :32], CORNERS[:24, 32:], CORNERS[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLORS = {(True, False, False): "r", (False, True, False): "g", (False, False, True): "b", (False,) * 3: "k"}
# A display matrix (a, b, c, d) -> the corners from top left, row by row; the second is a phone held upright
MATRICES = {(1, 0, 0, 1): "rgbk", (0, 1, -1, 0): "brkg", (-1, 0, 0, -1): "kbgr", (0, -1, 1, 0): "gkrb"}
MATRICES |= {(-1, 0, 0, 1): "grkb", (1, 0, 0, -1): "bkrg", (0, 1, 1, 0): "rbgk", (0, -1, -1, 0): "kgbr"}
MATRICES |= {(0.99, 0.1, -0.1, 0.99): "rgbk", (0.7, 0.7, -0.7, 0.7): "rgbk", (0, 0, 0, 0): "rgbk"}  # not exactly one


def test_frames_are_turned_as_players_turn_them(tmp_path):
    """The matrix of the track header (ISO/IEC 14496-12, 8.3.2) is written into the finished file."""
    path = tmp_path / "phone.mp4"
    write_video(path, "mpeg4", [CORNERS] * 3)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44  # after version, times, track, duration, layer, volume
    for (a, b, c, d), expected in MATRICES.items():
        fixed = [int(65536 * value) for value in (a, b, 0, c, d, 0, 0, 0)]
        content[place : place + 36] = struct.pack(">9i", *fixed, 1 << 30)
        path.write_bytes(content)
        sides = (48, 64) if a == d == 0 != b else (64, 48)
        assert probe_video(str(path), 2) == (2, sides)
        for frame in load_frames(str(path), 2):
            spots = np.asarray(frame)[sides[1] // 4 :: sides[1] // 2, sides[0] // 4 :: sides[0] // 2] > 127
            assert "".join(COLORS[tuple(spot)] for spot in spots.reshape(4, 3).tolist()) == expected, (a, b, c, d)


def test_packets_that_show_nothing_are_no_frames(videos, tmp_path):
    """VP8 may send frames that only later ones refer to: bit 4 of a frame's first byte says whether it is shown."""
    path, content, at = tmp_path / "a.webm", bytearray((videos / "a.webm").read_bytes()), 0
    with av.open(str(videos / "a.webm")) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for number, packet in enumerate(packets):
        at = content.index(packet, at + 1)
        content[at] &= ~0x10 if number % 2 else 0xFF
    path.write_bytes(content)
    for num_frames in (99, 6, 5, 2, 1):
        expected = [LEVELS[::2][number] for number in pick_frames(6, num_frames)]
        assert len(packets) == 12 and probe_video(str(path), num_frames)[0] == len(expected)
        np.testing.assert_allclose(levels(path, num_frames), expected, atol=8, err_msg=str(num_frames))


def test_a_forked_worker_frees_what_it_inherits(videos):
    """Videos that are being decoded, whose threads a fork doesn't copy."""
    decoded = [_decode(str(videos / f"a.{suffix}")) for suffix in ("mp4", "webm", "gif")]
    kept = [(frame, _upright(frame), frames) for frames in decoded for frame in [next(frames)]]
    del decoded
    process = multiprocessing.get_context("fork").Process(target=kept.clear)
    process.start()
    process.join(60)
    try:
        assert process.exitcode == 0
    finally:
        process.kill()


def test_a_tail_that_is_missing(tmp_path):
    """One clear error, or the frames before the end: never a crash, and plan and loader agree."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    for name, codec, share, complaint in (
        ("moov.mp4", "mpeg4", 0.7, "can't be decoded"),  # the index stands at the end, without it all is lost
        ("a.avi", "mpeg4", 0.6, "damaged or cut off after"),
        ("a.webm", "libvpx", 0.8, None),
    ):
        write_video(path := tmp_path / name, codec, noise)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        if complaint is None:
            assert 1 <= probe_video(str(path), 99)[0] == len(load_frames(str(path), 99)) < 12
        else:
            refused(path, f"{name}: {complaint}")


def test_what_is_no_video(videos, tmp_path, monkeypatch):
    """A gif without a frame, a list of other files, a frame from elsewhere, too many pixels."""
    Image.new("P", (8, 8)).save(tmp_path / "one.gif")
    assert probe_video(str(tmp_path / "one.gif"), 4) == (1, (8, 8)) and levels(tmp_path / "one.gif", 4) == [0]
    (tmp_path / "none.gif").write_bytes((tmp_path / "one.gif").read_bytes()[:13] + b";")  # header, then the end
    refused(tmp_path / "none.gif", "none.gif: can't be decoded")
    (tmp_path / "secret.mp4").write_bytes((videos / "a.mp4").read_bytes())
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with av.open(str(tmp_path / "list.mp4")) as container:  # FFmpeg itself follows it
        assert container.format.name == "concat"
    refused(tmp_path / "list.mp4", "list.mp4: can't be decoded")
    (tmp_path / "11.png").symlink_to(videos / "frames" / "f1.png")
    refused(tmp_path, "'11.png' is a link out of the image folder")
    monkeypatch.setattr(media, "MAX_PIXELS", 64 * 48)
    assert probe_video(str(videos / "a.mp4"), 1)[0] == len(load_frames(str(videos / "frames"), 1)) == 1
    monkeypatch.setattr(media, "MAX_PIXELS", 64 * 48 - 1)
    for name in ("a.mp4", "a.gif", "frames"):
        refused(videos / name, "64x48 pixels")


def test_transparent_frames_lie_on_white(tmp_path):
    clear, red = (Image.new("RGBA", (8, 8), (255, 0, 0, alpha)) for alpha in (0, 255))
    clear.save(tmp_path / "clear.gif", save_all=True, append_images=[red])
    frames = load_frames(str(tmp_path / "clear.gif"), 2)
    assert [frame.getpixel((4, 4)) for frame in frames] == [(255, 255, 255), (255, 0, 0)]
