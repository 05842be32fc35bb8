"""What the checker prints; as a process it is tested in tests/tools/test_check_data.py."""

import json

import pytest
from PIL import Image

from xtuner_plugins.cli.check_output import plural, print_histograms, print_report
from xtuner_plugins.datasets.audit.check import check_dataset
from xtuner_plugins.datasets.audit.looking import PlainFiles


@pytest.fixture
def report(tmp_path):
    Image.new("RGB", (1000, 448)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    records = [{"conversations": turns, **image} for image in ({"image": "a.png"}, {}, {}, {"image": "none.png"})]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    dataset = PlainFiles([str(tmp_path / "a.jsonl")], [str(tmp_path)])
    return check_dataset(dataset, num_workers=0, complain=lambda text: None)[0]


def test_a_line_for_each_file(report, capsys):
    print_report(report, counted=False)
    assert capsys.readouterr().out == f"{report.path}: 4 records, 1 wrong (1 image_missing); 1 image\n"
    print_report(report, counted=True)
    assert "1 image, 3 tiles, 0 tokens of which 0 supervised" in capsys.readouterr().out


def test_bars_are_as_long_as_counts(report, capsys):
    print_histograms([report])
    lines = capsys.readouterr().out.splitlines()
    assert "tokens" not in lines  # none were counted
    at = lines.index("tiles")
    assert [line.split()[0] for line in lines[at + 1 : at + 5]] == ["0", "1", "2", "3"]
    assert lines[at + 1].count("#") == 2 * lines[at + 4].count("#") == 40


def test_plural():
    assert [plural(number, "tile") for number in (0, 1, 2)] == ["0 tiles", "1 tile", "2 tiles"]
