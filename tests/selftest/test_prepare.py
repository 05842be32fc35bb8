"""A config becomes a tiny base, samples and rows."""

from xtuner_plugins.config_file import read_config
from xtuner_plugins.selftest.equalities import STRATEGIES
from xtuner_plugins.selftest.prepare import prepare


def test_rows_of_a_recipe(tmp_path):
    equalities, lines = prepare(read_config("finetune_packed"), tmp_path)
    assert "exports/pretrain_mlp isn't there" in lines[0] and "24 toy records" in lines[1]
    quick = [name for name, _ in equalities.rows(STRATEGIES, quick=True)]
    every = [name for name, _ in equalities.rows(STRATEGIES, quick=False)]
    assert len(quick) == 7 and every[:7] == quick and len(every) == 7 + 2 * len(STRATEGIES)
