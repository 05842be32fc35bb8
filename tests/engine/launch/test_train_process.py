import pytest
import torch
from torch.utils.data import DataLoader

from xtuner_plugins.engine.launch.train_process import user_message
from xtuner_plugins.errors import RecordError


class Broken(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise self.error


def raised_in_worker(error):
    with pytest.raises((RuntimeError, ZeroDivisionError)) as caught:
        next(iter(DataLoader(Broken(error), num_workers=1)))
    return caught.value


def test_our_errors_are_one_line_and_others_keep_their_traceback():
    error = RecordError("image", "a.png can't be decoded", "remove the record", "data.jsonl:7")
    assert user_message(raised_in_worker(error)) == str(error) == user_message(error)
    assert user_message(raised_in_worker(ZeroDivisionError("1/0"))) is None
    assert user_message(RuntimeError("CUDA out of memory")) is None
