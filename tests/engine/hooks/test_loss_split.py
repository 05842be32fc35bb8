"""The training loss by dataset."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import LoggerHook
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.models.batches import make_batch, pack
from xtuner_plugins.engine.hooks.loss_split import LossSplitHook

MODEL = SimpleNamespace(num_image_token=16, tile_size=28, img_context_token_id=3)


def batch_of(form, losses, names):
    batch = form(make_batch(MODEL, tiles_of=(2, 0, 1)))
    return {**batch, "datasets": names, "sample_losses": torch.tensor(losses, dtype=torch.float64)}


def hook_of(interval=2):
    hook, found = LossSplitHook(), []
    visualizer = SimpleNamespace(add_scalars=lambda values, step: found.append((step, values)))
    runner = SimpleNamespace(hooks=[LoggerHook(interval=interval)], visualizer=visualizer, iter=0)
    hook.before_train(runner)
    return hook, runner, found


@pytest.mark.parametrize("form", [dict, pack], ids=["padded", "packed"])
def test_means_are_over_supervised_tokens_since_the_last_time(form):
    """Each sample has five supervised tokens; a pack has a segment of padding."""
    hook, runner, found = hook_of()
    padding = [7.0] if form is pack else []
    for step in range(4):
        runner.iter = step
        losses = [5.0 * (step + 1), 10.0, 15.0, *padding]
        hook.after_train_iter(runner, step, [batch_of(form, losses, ["a", "b", "a"])])
    assert [step for step, _ in found] == [2, 4]
    assert found[0][1] == {
        "loss_by_dataset/a": (5 + 10 + 15 + 15) / 20,
        "loss_by_dataset/b": 2.0,
    }
    assert found[1][1]["loss_by_dataset/a"] == (15 + 20 + 15 + 15) / 20


def test_no_value_is_asked_for_between_two_logs():
    """A fake tensor has none, so asking would be an error."""
    hook, runner, found = hook_of(interval=3)
    batch = batch_of(dict, [1.0, 1.0, 1.0], ["a", "a", "a"])
    with FakeTensorMode():
        fake = torch.zeros(3, dtype=torch.float64)
    for step in range(2):
        hook.after_train_iter(runner, step, [{**batch, "sample_losses": fake}])
    assert found == []
