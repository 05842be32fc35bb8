"""Wrong inputs of `tools/train.py`: the table `wrong_inputs.tsv`, and the files that it names."""

import csv
import json
import shlex
import shutil
from pathlib import Path

TABLE = Path(__file__).with_suffix(".tsv")


def rows() -> list[dict[str, str]]:
    """Rows of the table.

    config: The config's name or path.
    words: What follows it.
    says: What stands in the one line of the refusal, in parts with `` ... `` between them.
    seen: ``text`` where nothing large is imported for it, ``build`` before a process starts, ``run`` later.
    """
    with open(TABLE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def places(folder: Path, base: Path) -> dict[str, Path]:
    """Writes what stands in braces in the table: right data beside the right ``base``, wrong bases, data, configs."""
    from tests.small_data import write_dataset

    data, images = write_dataset(folder / "data", num_samples=4)
    found = {"base": base, "data": data, "images": images}
    for name in ("empty", "untold", "blind"):
        found[name] = folder / name
        found[name].mkdir()
    (found["untold"] / "config.json").write_text("{}")
    (found["blind"] / "config.json").write_text('{"model_type": "qwen2"}')
    (found["blind"] / "tokenizer.json").write_text("{}")
    for name in ("weightless", "misshapen"):
        found[name] = shutil.copytree(base, folder / name)
    for path in found["weightless"].glob("*.safetensors*"):
        path.unlink()
    config = json.loads((base / "config.json").read_text())
    config["llm_config"]["intermediate_size"] //= 2
    (found["misshapen"] / "config.json").write_text(json.dumps(config))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A square."}]
    files = {
        "no_records.jsonl": "",
        "no_json.jsonl": "{'image': 'a.png'}\n",
        "no_messages.jsonl": '{"image": "0.png"}\n',
        "no_image.jsonl": json.dumps({"image": "none.png", "conversations": turns}) + "\n",
        "broken_config.py": "with read_base(:\n",
    }
    for name, text in files.items():
        found[Path(name).stem] = folder / name
        (folder / name).write_text(text)
    return found


def command(row: dict[str, str], found: dict[str, Path]) -> list[str]:
    """Arguments of `tools/train.py`; what a row doesn't make wrong is right."""
    ready = ["--set", f"base={found['base']}", f"data_paths={found['data']}", f"image_folders={found['images']}"]
    return [row["config"].format(**found), *ready, *shlex.split(row["words"].format(**found), posix=False)]


def is_told(row: dict[str, str], found: dict[str, Path], line: str) -> bool:
    """Whether a line is the refusal of a row."""
    parts = row["says"].format(**found).split(" ... ")
    return line.startswith("error") and all(part in line for part in parts)
