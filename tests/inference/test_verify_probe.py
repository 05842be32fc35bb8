"""The probe's own few lines agree with this project, which it can't import."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tests.conftest import HANGS_AFTER, ROOT
from xtuner_plugins.datasets.images.tiling import DynamicTiling
from xtuner_plugins.inference.session import normalize
from xtuner_plugins.inference.verify import PROBE

CALL = """
import json, runpy, sys, pathlib, torch
probe = runpy.run_path(sys.argv[1])
function, arguments, out = sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
torch.save(probe[function](*map(pathlib.Path, arguments[:1]), *arguments[1:]), out)
try:
    import xtuner_plugins
except ImportError:
    print("refused")
"""


def call(tmp_path, function, *arguments):
    """What a function of the probe returns in a process of its own."""
    command = [sys.executable, "-c", CALL, PROBE, function, json.dumps(arguments), tmp_path / "out.pt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS_AFTER)
    assert done.returncode == 0 and done.stdout == "refused\n", done.stderr
    return torch.load(tmp_path / "out.pt")


@pytest.mark.parametrize(
    "size, limits", [((300, 100), (1, 6, True)), ((112, 112), (1, 6, True)), ((90, 200), (2, 4, False))]
)
def test_tiles_equal_the_training_s(tmp_path, size, limits):
    image = Image.fromarray(torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8).numpy())
    image.save(tmp_path / "image.png")
    least, most, thumbnail = limits
    tiling = DynamicTiling(min_tiles=least, max_tiles=most, use_thumbnail=thumbnail, tile_size=112)
    found = call(tmp_path, "cut", str(tmp_path / "image.png"), 112, *limits)
    assert torch.equal(found, normalize(tiling(image)))


LLAVA = {"model_type": "llava", "vision_config": {"image_size": 336}}
OFFICIAL = {"model_type": "internvl_chat", "force_image_size": 448, "vision_config": {"image_size": 224}}
TILED = {"dynamic_image_size": True, "min_dynamic_patch": 2, "max_dynamic_patch": 8, "use_thumbnail": True}


@pytest.mark.parametrize(
    "config, expected",
    [
        (LLAVA, (336, 1, 1, False)),
        (OFFICIAL, (448, 1, 1, False)),
        ({**OFFICIAL, **TILED}, (448, 2, 8, True)),
        ({**OFFICIAL, **TILED, "force_image_size": None, "max_dynamic_patch": 1}, (224, 1, 1, True)),
    ],
)
def test_limits_as_the_files_say(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert call(tmp_path, "limits", str(tmp_path)) == expected
