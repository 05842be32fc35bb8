import pytest

from tests.datasets.store_servers import CREDENTIALS, ObjectServer


@pytest.fixture
def server():
    """A server that can misbehave, without objects."""
    server = ObjectServer()
    yield server
    server.stop()


@pytest.fixture
def credentials(monkeypatch, tmp_path):
    """What a client of S3 finds in the environment, and no files of the user."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
