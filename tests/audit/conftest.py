import pytest

from tests.datasets.conftest import data_base, make_image, qa, six_records, write_data  # noqa: F401


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XTUNER_PLUGINS_CACHE", str(tmp_path / "cache"))
