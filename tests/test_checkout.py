"""Where a checkout's files are; where an installed wheel has them is tested with `xtp`."""

from tests.conftest import ROOT
from xtuner_plugins import checkout


def test_a_checkout_reads_its_own_files():
    assert checkout.ROOT == ROOT and not checkout.IS_INSTALLED
    assert (checkout.CONFIGS / "_base_").is_dir() and (checkout.ROOT / "tools/train.py").is_file()
