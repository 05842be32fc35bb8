"""Train a config: the arguments of `xtuner train`, with an exit status that tells whether training succeeded.

NPROC_PER_NODE=4 python tools/train.py configs/pretrain_mlp.py --deepspeed deepspeed_zero3
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xtuner_plugins.cli.terminal import quiet_imports  # noqa: E402

quiet_imports()
from xtuner_plugins.cli.launcher import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
