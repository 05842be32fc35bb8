"""What the inspector's server answers, and what it refuses."""

import pytest
from fastapi.testclient import TestClient

from xtuner_plugins.serving.inspector import create_app


class Recorded:
    """In the place of a browser of records."""

    def ask(self, question, after, limit):
        self.asked = question, after, limit
        return {"total": 1, "next": None, "cards": [{"at": "a.jsonl:1"}]}


@pytest.fixture
def client():
    recorded = Recorded()
    client = TestClient(create_app("<h1>Page</h1>", recorded), base_url="http://127.0.0.1:8123")
    client.recorded = recorded
    return client


def test_page_and_cards(client):
    page = client.get("/")
    assert page.text == "<h1>Page</h1>" and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "http" not in policy and "*" not in policy
    ends = [("limits", end) for end in ("", "5", "0", "", "", "")]
    words = [("after", "24"), ("text", "a&b 猫"), ("dataset", "a"), ("reason", "-"), ("sort", "-tiles"), *ends]
    assert client.get("/cards", params=words).json()["cards"] == [{"at": "a.jsonl:1"}]
    question, after, limit = client.recorded.asked
    assert (after, limit, question.text, question.dataset, question.reason) == (24, 24, "a&b 猫", "a", "-")
    assert question.limits == ((None, 5), (0, None), (None, None)) and question.sort == "-tiles"
    assert client.get("/cards").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:80", "evil.example:8123", ""])
def test_other_hosts_are_refused(client, host):
    """As a page would send whose name was pointed to this machine."""
    for path in ("/", "/cards"):
        done = client.get(path, headers={"host": host})
        assert done.status_code == 400 and "Page" not in done.text
    assert client.get("/", headers={"host": "localhost:8123"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/cards/../x", "/docs", "/openapi.json"]
)
def test_nothing_else_is_served(client, path):
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "words", ["limit=0", "limit=101", "after=-1", "after=x", "sort=tokens;--", "limits=1", "text=" + "a" * 1001]
)
def test_wrong_questions(client, words):
    assert client.get("/cards?" + words).status_code == 422


def test_nothing_can_be_sent(client):
    assert client.post("/cards", json={}).status_code == 405
