"""The model card of an export: `README.md`, from the record of its checkpoint.

What is known only later stands between two comments and is filled in when it is known::

    <!-- begin scores -->      `xtp evaluate --compare BEFORE AFTER --card DIR`
    <!-- begin tensors -->     the verification of the export

All else is the user's to edit, so neither the manifest nor a later step depends on it.
"""

import datetime
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..weights import record
from ..weights.reading import CheckpointError
from .trained import TrainedPlan

FILE = "README.md"
TEMPLATE = "card.md.jinja"
LONG = 200  # characters of a value; a SHA-256 has 64
# What Markdown, HTML or a link begins with
_ACTIVE = re.compile(r"[\\`*_\[\]<>|~#&@$]|:(?=//)|(?<=www)\.", re.IGNORECASE)


def escaped(value: object) -> str:
    """A value from outside as one line of Markdown text that is shown as it is."""
    line = " ".join("".join(each if each.isprintable() else " " for each in str(value)).split())
    return _ACTIVE.sub(r"\\\g<0>", line if len(line) <= LONG else f"{line[:LONG]}...")


def make(plan: TrainedPlan) -> str:
    """The card of a trained model before anything was measured.

    Args:
        plan: From `lay_over`; its record says what the card shows.

    Raises:
        CheckpointError: The record isn't one that a run has written.
    """
    from jinja2 import TemplateError

    said = plan.record
    try:
        return _template().render(
            base=Path(said["base"]["path"]).name,
            exported=datetime.date.today().isoformat(),
            files=said["base"]["files"],
            data=_data(said),
            run=dict(_run(said)),
            settings=record.flat({key: said["settings"][key] for key in sorted(said["settings"])}),
            gain=plan.checkpoint.run.get("image_gain"),
            scores=None,
            changed=None,
            num_replaced=len(plan.replaced),
            num_merged=len(plan.adapters),
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{plan.checkpoint.path}: its record doesn't fit a model card ({error})") from None


def fill(directory: str | Path, section: str, **values: Any) -> None:
    """Writes a section of a card anew; what stands elsewhere in the file stays.

    Args:
        directory: An export.
        section: `scores` (with `scores` and `before`) or `tensors` (with `changed`).
        **values: What the section shows.

    Raises:
        ValueError: No card there, or one without this section.
    """
    path, template = Path(directory) / FILE, _template()
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    block = begin + "".join(template.blocks[section](template.new_context(values))) + end
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    text, found = re.subn(f"{begin}.*?{end}", lambda _: block, text, count=1, flags=re.DOTALL)
    if not found:
        raise ValueError(f"{path} isn't there or lacks {begin} ... {end}; export the model again")
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def _template():
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    options = dict(undefined=StrictUndefined, finalize=escaped, keep_trailing_newline=True)
    return Environment(loader=loader, **options).get_template(TEMPLATE)


def _data(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files of data, each with its share of an epoch's samples in percent."""
    counts = [(each["records"] - len(each["rejected"])) * each["repeat"] for each in said["data"]]
    return [
        {**each, "share": 100 * count / max(sum(counts), 1)} for each, count in zip(said["data"], counts, strict=True)
    ]


def _run(said: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the record says of the run, with readable names."""
    steps, run = said["steps"], said.get("run") or {}
    if run:
        yield from (("command", run["command"]), ("hardware", run["hardware"]))
        yield from (("optimizer steps", run["steps"]), ("saved", run["saved"]))
    if steps["samples_per_step"] is not None:
        product = "{batch_size} x {accumulative_counts} accumulation x {ranks} ranks".format(**steps)
        yield "samples per step", f"{steps['samples_per_step']} = {product}"
        yield from ((name.replace("_", " "), steps[name]) for name in record.LENGTHS if steps[name] is not None)
    yield from said["versions"].items()
