"""Train a config: the arguments of `xtuner train` and --set, with a status that tells whether training succeeded.

python tools/train.py finetune_lora --set base=models/base data_paths=a.jsonl image_folders=images lr=5e-5
NPROC_PER_NODE=4 python tools/train.py configs/pretrain_mlp.py --deepspeed deepspeed_zero3
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xtuner_plugins.engine.launch.launcher import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
