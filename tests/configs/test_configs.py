"""One loop over all configs, which reports each that is wrong; `test_leaves` trains one of each kind."""

import re
from collections import Counter
from pathlib import Path

from xtuner_plugins.engine.check.text import check_values
from xtuner_plugins.settings import CONFIGS, DEEPSPEED, LABELS, RUNNER_KEYS, labels_of, leaves, read_config

LEAVES = leaves()
BATCH = re.compile(r"batch_size ?= ?(\d+),?  # x (\d+) accumulation x (\d+) (?:GPU|process)e?s? = (\d+) \w+ per step")
BASE = re.compile(r"^    from (\.+)(\S+) import \*$", re.MULTILINE)


def batch_comment(path: Path) -> list[int]:
    """Batch, accumulation, processes and samples per step as a config says them, or the one that it takes in."""
    text = path.read_text()
    if found := BATCH.search(text):
        return [int(number) for number in found.groups()]
    dots, module = BASE.search(text).groups()
    return batch_comment(path.parents[len(dots) - 1].joinpath(*module.split(".")).with_suffix(".py"))


def complaints(name: str, path: Path) -> list[str]:
    """What is wrong with a leaf."""
    cfg, labels = read_config(str(path)), labels_of(path)
    check_values(cfg._to_lazy_dict())
    found = [f"nothing reads {key}" for key in set(cfg._to_lazy_dict()) - RUNNER_KEYS]
    found += [f"the docstring doesn't say: {label}" for label in LABELS[:6] if not labels.get(label)]
    launch = labels["launch"].split()
    if str(path.relative_to(CONFIGS.parent)) not in launch:
        found.append("the launch line starts another config")
    if not {word for word in launch if word.startswith("deepspeed_")} <= DEEPSPEED.keys():
        found.append("the launch line names no file of ours")
    processes = next((int(word.partition("=")[2]) for word in launch if word.startswith("NPROC_PER_NODE=")), 1)
    real = [cfg.train_dataloader.batch_size, cfg.optim_wrapper.accumulative_counts, processes]
    real.append(real[0] * real[1] * real[2])
    if batch_comment(path) != real:
        found.append(f"the comment of batch_size says {batch_comment(path)}, it is {real}")
    return [f"{name}: {problem}" for problem in found]


def test_every_leaf_is_right():
    found = []
    for name, path in LEAVES.items():
        try:
            found += complaints(name, path)
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {error}")
    files = [path for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts and path.name != "__init__.py"]
    doubled = [stem for stem, count in Counter(path.stem for path in files).items() if count > 1]
    found += [f"{stem}: twice, but XTuner keys work directories by stem" for stem in doubled]
    assert found == []
