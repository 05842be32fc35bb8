"""The reference's log probabilities, computed once before the first step, are those of the live reference."""

import re
import shutil
import signal
from functools import partial

import pytest

from ..forked import at_call, fault, send, write_dataset

FOLDER = "default_hooks.reference.folder"
SAVE = "datasets.reference.ReferenceLogProbs.save"


def small_chunks(then=None):
    """Four pairs in each file."""
    from xtuner_plugins.datasets import reference

    reference.CHUNK = 4
    if then:
        then()


def compute_nothing():
    small_chunks(partial(at_call, SAVE, 1, partial(send, signal.SIGKILL)))


@pytest.fixture
def trained(train, tmp_path):
    """trained(name, ...): MPO on eight pairs of which the image of one can't be read, in four steps."""
    path, images = write_dataset(tmp_path / "data", 8)
    (images / "2.png").write_bytes(b"no image")
    case = dict(leaf="toy_finetune_mpo_full", data=(path.with_name("pairs.jsonl"), images), batch_size=2, save_steps=2)
    options = {"train_dataloader.dataset.on_bad_sample": "skip", FOLDER: str(tmp_path / "kept")}

    def trained(name, prepare=small_chunks, own=None, **more):
        return train(name, prepare=prepare, options={**options, **(own or {})}, **case, **more)

    return trained


def test_the_loss_is_that_with_a_live_reference_and_nothing_is_computed_twice(trained, tmp_path):
    """A stopped start goes on; other tiles have a folder of their own."""
    live, once, kept = trained("live"), {"precompute_reference": True}, tmp_path / "kept"
    assert not kept.exists()
    killed = fault(SAVE, 2, partial(send, signal.SIGKILL))
    trained("stopped", codes=(-9,), prepare=partial(small_chunks, killed), **once)
    (first,) = kept.glob("*/0*.npz")
    since = first.stat().st_mtime_ns
    run = trained("run", **once)
    assert first.stat().st_mtime_ns == since and len(list(kept.glob("*/0*.npz"))) == 2
    again = trained("again", prepare=compute_nothing, **once)
    for key in ("loss", "kl"):
        assert run.logged(key) == again.logged(key) == pytest.approx(live.logged(key), rel=1e-4, abs=1e-6)
    assert max(live.logged("kl")) > 1e-3  # the model isn't its reference any more
    trained("tiles", max_tiles=2, **once)
    assert len(list(kept.iterdir())) == 2
    shutil.rmtree(kept)
    file = {FOLDER: f"{run.work_dir}/last_checkpoint"}
    for name, more, says in (
        ("on", {"extra": ("--resume", str(run.saved(2)))}, "kept/.* isn't complete, and only a run that begins with"),
        ("other", {"own": {"load_from": str(run.saved(2))}}, "Start once with max_steps=1, without --resume and load"),
        ("jpeg", {"jpeg_quality": (75, 100)}, "precompute_reference with jpeg_quality"),
        ("file", {"own": file}, "name another directory by default_hooks.reference.f"),
    ):
        assert re.search(says, trained(name, codes=(1,), **once, **more).errors[0])
