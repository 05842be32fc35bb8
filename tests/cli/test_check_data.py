"""The checker as a user runs it: its output, its status."""

import json
from concurrent.futures import BrokenExecutor
from unittest import mock

import pytest
from PIL import Image

from tests.small_data import write_dataset
from xtuner_plugins.files import CACHE_VARIABLE

KEY = "train_dataloader.dataset"


def record(image=None, answer="A cat."):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({"image": image} if image else {})}


def write(path, *records):
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


@pytest.fixture
def check(toy_base, tmp_path, monkeypatch, tool):
    """check(words) -> (status, what was printed), of the tool in this process; what is in braces is one of `places`."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for name, size in (("a", (112, 112)), ("large", (700, 700))):  # one tile, several
        Image.new("RGB", size).save(tmp_path / "images" / f"{name}.png")
    data = write(tmp_path / "data.jsonl", *[record("a.png")] * 5)
    places = {"here": str(tmp_path), "base": str(toy_base), "data": data, "images": str(tmp_path / "images")}
    places["leaf"] = "toy_finetune_lora --set base={base} data_paths={data} image_folders={images}".format(**places)

    def call(words):
        status, said, errors = tool("check_data", *words.format(**places).split())
        return status, said if status != 2 else errors

    call.places = places
    return call


LOST = "from no_such import Thing\ntrain_dataloader = dict(dataset=dict(type=Thing))\n"
REFUSED = [
    ("{here}/nothing.py", "no train_dataloader.dataset"),
    ("{here}/lost.py", "lost.py cannot be read: ModuleNotFoundError: Failed to import no_such"),
    ("{here}/lost.py --step 1", "lost.py cannot be read: ModuleNotFoundError: Failed to import no_such"),
    (f"{{leaf}} {KEY}.max_tile=3", "max_tile"),
    (f"{{leaf}} {KEY}.type=None.Such", "None.Such"),
    ("{here}/none", "{here}/none:1: the annotation file can't be read"),
    ("{data} --image-folder {here} --image-folder {here}", "2 image folders for 1 files"),
    ("{data} --image-folder nosuch://bucket/images", "nosuch"),
    ("{data} --base {here}", "config.json"),
    ("{data} --reject-list {images}", "{images}: Is a directory; name another path, or give permission there"),
    ("{data} --json {data}", "{data} is an input, too, which would be lost; name another file for the output"),
    ("{leaf} --html {here}/linked.jsonl", "{here}/linked.jsonl is an input, too"),
    ("finetune_lora {data}", "a config and other inputs together"),
    ("finetune_lora --base x", "--base goes with annotation files"),
    ("{data} --cfg-options a=1", "--cfg-options goes with a config"),
    ("finetune_lora --step 0", "--step: 0: give at least 1"),
    ("finetune_lora --step 1 --ranks 2 --rank 2", "--rank 2 counts from 0 to --ranks - 1"),
    ("finetune_lora --seed 1", "--seed goes with --step"),
    ("finetune_lora --step 1 --json x", "--step prints a step of a config; it writes nothing"),
    ("{data} --image-folder none", "folder 'none' isn't there; correct its path; records without images need none"),
    ("{leaf} --step 9999", "there is no step 9,999"),
]


def test_what_cannot_be_checked_is_said_in_one_line(check, tmp_path, monkeypatch):
    for name, text in (("nothing", "train_dataloader = None\n"), ("lost", LOST)):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "linked.jsonl").symlink_to(check.places["data"])
    held = (tmp_path / "data.jsonl").read_bytes()
    for words, message in REFUSED:
        status, printed = check(words)
        *above, last = [line for line in printed.splitlines() if line]
        assert status == 2 and message.format(**check.places) in last and "error: " in last, (words, printed)
        assert not above or above[0].startswith("usage: "), (words, printed)
    assert (tmp_path / "data.jsonl").read_bytes() == held
    with mock.patch("xtuner_plugins.audit.check.check_dataset", side_effect=BrokenExecutor):
        status, printed = check("{leaf}")
    assert status == 2 and "error: a worker was killed, most likely for want of memory" in printed
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "data.jsonl/cache"))
    status, printed = check("{leaf} --workers 0")
    assert status == 2 and printed.splitlines()[-1].startswith("error: ") and "cache" in printed, printed


MIXED = "{leaf} data_paths={here}/mixed.jsonl max_length=100 repeat_times=2"
UNREAD = "the record has 'reasoning_content', which isn't read; remove it, or name it in columns"
SHOWN = "\n".join(f"warning: {{here}}/mixed.jsonl:{number}: {UNREAD}" for number in range(9, 14))
# An epoch has the samples that train: repeats count, unusable and rejected records don't.
WHOLE = f"""{{here}}/mixed.jsonl:8: {{images}}/none.png: no such image; correct the name or the image folder
{SHOWN}
{{here}}/mixed.jsonl: 14 records, 1 wrong (1 image_missing), 6 warnings (6 unread_key:reasoning_content); 6 images, \
6 tiles, 526 tokens, longest 100
  1 record with fewer tiles, to fit max_length
  1 record with the end cut off, to fit max_length
1 of 14 records can't be trained on; an epoch has 26 of 28 samples without them

validation data
{{here}}/val.jsonl:2: {{images}}/none.png: no such image; correct the name or the image folder
{{here}}/val.jsonl: 3 records, 1 wrong (1 image_missing); 1 image, 1 tile, 75 tokens, longest 47
1 of 3 records can't be trained on; an epoch has 2 of 3 samples without them
1 record on the reject list {{here}}/reject.jsonl

findings
  1 of 2 validation records that are training records, too (val / mixed: 1)
  1 of 1 validation images that are training images, too (val / mixed: 1)
  4 of 13 records that repeat another: equal text and equal images (mixed: 4)
"""
SAID = [  # words, status, parts of what is said
    ("{leaf} val_benchmarks={here}/own.jsonl val_benchmark_images={images} --workers 0", 0,
     ["all 5 records can be", "1 of 1 validation images that are training images, too (own / data: 1)"]),
    (f"{MIXED} val_data_paths={{here}}/val.jsonl val_image_folders=['{{images}}'] --workers 0 "
     "--reject-list {here}/reject.jsonl", 1, [WHOLE]),
    (f"{MIXED} {KEY}.reject_list={{here}}/reject.jsonl --workers 0", 0,
     ["  1 record on the reject list", "all 13 records can be trained on; an epoch has 26 of 28 samples"]),
    ("{data} --image-folder {images} --workers 0 --reject-list {here}/reject.jsonl", 0,
     ["0 records on the reject list {here}/reject.jsonl, which held 1 before\n"]),
    # copies and leaks, without a model
    ("{data} --image-folder {images} --workers 0 --val {here}/val.jsonl --val-image-folder {images} "
     "--html {here}/a/b/page.html --json {here}/n.json", 1, ["page with 6 cards written to {here}/a/b/page.html"]),
    ("{leaf} data_paths={here}/more/train.jsonl image_folders={here}/more/images batch_size=4 "
     "--step 1 --ranks 2 --rank 1", 0,
     ["step 1, in epoch 1; rank 1 of 2\n\nmicro-batch 1 of 1:\n4 x 114 tokens", "in the image.<|im_end|>]"]),
]  # fmt: skip


def test_what_is_said(check, tmp_path, run_tool):
    write(tmp_path / "val.jsonl", record("a.png"), record("none.png"), record())
    write(tmp_path / "own.jsonl", {"image": "a.png", "question": "Is it black?", "answer": "yes"})
    odd = record("large.png"), record(answer="word " * 5000), record("none.png")
    unread = [record(answer=f"{number}") | {"reasoning_content": "x"} for number in range(6)]
    write(tmp_path / "mixed.jsonl", *[record("a.png")] * 5, *odd, *unread)
    write_dataset(tmp_path / "more", 12)
    for words, status, parts in SAID:
        found, printed = check(words)
        assert found == status and [p for p in parts if p.format(**check.places) not in printed] == [], (words, printed)
    assert "Data check" in (tmp_path / "a/b/page.html").read_text()
    findings = json.loads((tmp_path / "n.json").read_text())["findings"]
    assert [(each["kind"], each["count"]) for each in findings][:2] == [("leaked_records", 1), ("leaked_images", 1)]
    assert findings[0]["examples"] == [[f"{tmp_path}/val.jsonl:1", f"{tmp_path}/data.jsonl:1"]]
    planned = run_tool("tools/plan.py", *check.places["leaf"].split())  # finds the lengths of the check
    assert planned.returncode == 0 and "lengths measured: 5 samples" in planned.stdout, planned.stderr
