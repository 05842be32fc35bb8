"""What a rank says when another one is gone; with processes in tests/cli/test_nodes.py."""

import pytest
import torch.distributed as dist

from xtuner_plugins.engine.lost_ranks import lost_rank_message
from xtuner_plugins.engine.stopping import COMMAND

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Read error [10.0.0.2]:2788: Connection reset by peer"


@pytest.mark.parametrize(
    "error, reason",
    [
        (RuntimeError(GLOO), "(Read error [10.0.0.2]:2788: Connection reset by peer)"),
        (dist.DistBackendError("NCCL error in: a.cpp:1\nremote process exited"), "(NCCL error in: a.cpp:1 remote"),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), "(failed to recv, got 0 bytes)"),
    ],
)
def test_one_line_names_the_reason_and_the_way_on(error, reason, monkeypatch):
    monkeypatch.setenv(COMMAND, "python tools/train.py configs/a.py")
    monkeypatch.setenv("NODE_RANK", "1")
    message = lost_rank_message(error)
    assert reason in message and message.endswith("NODE_RANK=1 python tools/train.py configs/a.py --resume")
    assert len(message.splitlines()) == 1


def test_other_errors_are_none_of_it():
    assert lost_rank_message(RuntimeError("shape mismatch")) is None
