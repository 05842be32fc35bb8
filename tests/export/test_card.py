"""The model card: what it shows, that values stay text, and that later steps fill in their sections alone."""

from types import SimpleNamespace

from markdown_it import MarkdownIt

from xtuner_plugins.export import card
from xtuner_plugins.weights.record import STEPS

RECORD = {
    "base": {"path": "/models/Base-1B", "files": {"config.json": "aa", "model.safetensors": "b" * 64, "a.json": "cc"}},
    "data": [
        {"name": "ocr", "records": 102, "rejected": [1, 2], "repeat": 1.5, "sha256": "d" * 64},
        {"name": "captions", "records": 50, "rejected": [], "repeat": 1.0, "sha256": "ee"},
    ],
    "settings": {"model": {"llm_lora": {"r": 16}}, "optim_wrapper": {"optimizer": {"lr": 1e-4}}},
    "steps": dict(zip(STEPS, (16, 2, 1, 8, 3, None), strict=True)),
    "versions": {"torch": "2.11.0"},
    "run": {"command": "xtp train my.py", "hardware": "2 x NVIDIA H100", "steps": 40, "saved": "2026-11-24T10:00:00"},
}
GAIN = {f"images/{name}": 0.5 for name in ("gain", "low", "high", "projector_norm", "word_norm")}
SCORES = dict(name="own", metric="exact_match: accuracy", before="40.0", after="60.0", gain="+20.0")
SCORES |= dict(interval="9.0 to 31.0", verdict="better", questions="200")
HOSTILE = (
    "a|b\n# title <script>alert(1)</script> <!-- end scores --> [x](http://evil) www.evil.de ![](a.png) "
    "`c` **d** _e_ ~~f~~ &lt; \\"
)
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False}).enable("table")


def plan_of(record=RECORD, gain=GAIN):
    checkpoint = SimpleNamespace(path="iter_40.pth", run={"image_gain": gain})
    return SimpleNamespace(record=record, checkpoint=checkpoint, replaced=["a"] * 3, adapters=["b"] * 4)


def outside(text):
    """What stands outside of sections."""
    return [each.partition("<!-- end")[2] for each in text.split("<!-- begin")]


def replaced(value, by):
    """The same with another text in place of each."""
    if isinstance(value, dict):
        return {key: replaced(each, by) for key, each in value.items()}
    if isinstance(value, list):
        return [replaced(each, by) for each in value]
    return by if isinstance(value, str) else value


def test_what_it_shows(refused):
    text = card.make(plan_of())
    assert text.startswith("---\nlicense: other  # fill in\n") and text.count("fill in") == 5
    for line in (
        "# Base-1B, fine-tuned",
        f"| model.safetensors | {'b' * 64} |",
        f"| ocr | 100 | 1.5 | 75.0 % | {'d' * 64} | fill in |",
        "| command | xtp train my.py |",
        "| optimizer steps | 40 |",
        "| samples per step | 16 = 1 x 8 accumulation x 2 ranks |",
        "| max epochs | 3 |",
        r"| model.llm\_lora.r | 16 |",
        "Not verified. The checkpoint holds 3 trained tensors and adapters of 4 layers.",
    ):
        assert f"\n{line}\n" in text, line
    assert "a.json" not in text and "/models" not in text and "lower the loss by 0.500 nats" in text
    old = {**RECORD, "data": [], "steps": dict.fromkeys(STEPS), "versions": {}, "run": None}
    text = card.make(plan_of(old, None))
    assert "doesn't say on what it was trained" in text and "## Images" not in text and "samples per step" not in text
    broken = [{**RECORD, **each} for each in ({"data": [{"name": "a"}]}, {"settings": 3}, {"run": {"command": "a"}})]
    for said, gain in (*((each, GAIN) for each in broken), (RECORD, {"images/gain": "high"})):
        refused("iter_40.pth: its record doesn't fit a model card", card.make, plan_of(said, gain))


def test_values_stay_text(tmp_path):
    """A card of hostile values has the structure of one of plain words."""
    structures = []
    for word in ("word", HOSTILE):
        record = replaced(RECORD, word)
        record["base"]["files"] = {"config.json": word, word: word}
        (tmp_path / card.FILE).write_text(card.make(plan_of(record)))
        card.fill(tmp_path, "scores", scores=[replaced(SCORES, word)], before=word)
        card.fill(tmp_path, "tensors", changed={word: (1, 2)})
        text = (tmp_path / card.FILE).read_text()
        tokens = MARKDOWN.parse(text.partition("---\n\n")[2])
        structures.append([(each.type, [part.type for part in each.children or ()]) for each in tokens])
    assert structures[0] == structures[1]
    rendered = MARKDOWN.render(text)
    assert "<script" not in rendered and "<a " not in rendered and "<img" not in rendered
    assert "https://" not in card.escaped("https://a.b") and "www." not in card.escaped("WWW.a.b www.c")
    assert card.escaped("x" * 200) == "x" * 200 and card.escaped("x" * 201) == "x" * 200 + "..."


def test_sections_are_filled_in_again_and_the_rest_stays(tmp_path, refused):
    path = tmp_path / card.FILE
    path.write_text(before := card.make(plan_of()).replace("| the base | fill in |", "| the base | MIT |"))
    card.fill(tmp_path, "tensors", changed={"mlp1": (6, 7)})
    for name, base in (("old", "b"), ("own", "models/base")):
        card.fill(tmp_path, "scores", scores=[{**SCORES, "name": name}], before=base)
    text = path.read_text()
    assert "| mlp1 | 6 | 7 |" in text and "Not verified" not in text and outside(text) == outside(before)
    row = r"| own | exact\_match: accuracy | 40.0 | 60.0 | +20.0 | 9.0 to 31.0 | better | 200 |"
    assert row in text and "| old |" not in text and "Before is models/base." in text
    path.write_text(text.replace("<!-- end scores -->", ""))
    words = "README.md isn't there or lacks <!-- begin scores --> ... <!-- end scores"
    for folder in (tmp_path, tmp_path / "none"):
        refused(words, card.fill, folder, "scores", scores=[SCORES], before="b", error=ValueError)
