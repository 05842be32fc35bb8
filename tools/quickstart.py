"""The whole chain on toy data in some minutes on a CPU: assemble, check, train, export, ask.

python tools/quickstart.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout that isn't installed

from xtuner_plugins.toy.quickstart import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(root=ROOT))
