"""Every process collects the same tests: pytest-xdist refuses to run what two of them name differently."""

import pytest

# Prints what was collected, whole, as if some years later; pytest's own listing depends on its verbosity.
LIST_IDS = """
import sys, pytest, time
now = time.time
time.time = lambda: now() + float(sys.argv[1])
class Listing:
    def pytest_collection_finish(self, session):
        print("COLLECTED", *(item.nodeid.encode("unicode_escape").decode() for item in session.items), sep="\\n")
sys.exit(pytest.main(["--collect-only", "-qq", "-m", "", "-p", "no:cacheprovider", *sys.argv[2:]], plugins=[Listing()]))
"""
OWN = """
import gzip, pytest
@pytest.mark.parametrize('data', [gzip.compress(b'a')])
def test_time(data): pass
@pytest.mark.parametrize('name', {'a', 'b', 'c', 'd', 'e'})
def test_order(name): pass
"""


@pytest.mark.slow
def test_ids_depend_on_neither_time_nor_hash_seed(run_tool, tmp_path):
    """Which would be seen: tests of one's own that depend on both."""
    (tmp_path / "test_it.py").write_text(OWN)
    for words, is_same in (([], True), ([tmp_path, "-c", "/dev/null"], False)):
        found = []
        for seed, seconds in (("1", "0"), ("2", "1e8")):
            done = run_tool("-c", LIST_IDS, seconds, *words, env={"PYTHONHASHSEED": seed})
            found.append(done.stdout.partition("COLLECTED\n")[2].splitlines())
        first, second = found
        assert (first == second) == is_same and len(first) > (500 if is_same else 5), done.stdout[-2000:]
