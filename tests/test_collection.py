"""Every process collects the same tests: pytest-xdist refuses to run what two of them name differently."""

import os
import subprocess
import sys

import pytest

from tests.conftest import HANGS_AFTER, ROOT

# Prints what was collected, whole: pytest's own listing depends on its verbosity.
LIST_IDS = """
import sys, pytest
class Listing:
    def pytest_collection_finish(self, session):
        print("COLLECTED", *(item.nodeid.encode("unicode_escape").decode() for item in session.items), sep="\\n")
sys.exit(pytest.main(["--collect-only", "-qq", "-m", "", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[Listing()]))
"""


def collect(*args, hash_seed, years=0, cwd=ROOT):
    """Starts a collection under a hash seed, as if some years later."""
    later = f"import time; _now = time.time; time.time = lambda: _now() + {years} * 3e7\n"
    return subprocess.Popen(
        [sys.executable, "-c", later + LIST_IDS, *map(str, args)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"},
    )


def ids_of(process):
    output, _ = process.communicate(timeout=HANGS_AFTER)
    assert process.returncode == 0, output[-2000:]
    return output.partition("COLLECTED\n")[2].splitlines()


@pytest.mark.slow
def test_ids_depend_on_neither_time_nor_hash_seed():
    first, second = (ids_of(p) for p in [collect(hash_seed=1), collect(hash_seed=2, years=3)])
    assert len(first) > 500 and first == second


def test_a_differing_id_would_be_seen(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(
        "import gzip, pytest\n"
        "@pytest.mark.parametrize('data', [gzip.compress(b'a')])\n"
        "def test_time(data): pass\n"
        "@pytest.mark.parametrize('name', {'a', 'b', 'c', 'd', 'e'})\n"
        "def test_order(name): pass\n"
    )
    first, later = (
        ids_of(p) for p in [collect(hash_seed=1, cwd=tmp_path), collect(hash_seed=1, years=3, cwd=tmp_path)]
    )
    assert first[0] != later[0] and first[1:] == later[1:]
    assert ids_of(collect(hash_seed=2, cwd=tmp_path))[1:] != first[1:]
