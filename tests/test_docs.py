"""Every page works as written: paths exist, tools take the options shown, make has the targets."""

import re
from collections import Counter
from pathlib import Path

from xtuner_plugins.cli.xtp import find_tool

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


def code_lines(page):
    """Lines of the page's shell blocks, with continued lines joined and comments cut."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(), re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_links_paths_and_make_targets_exist():
    folders, wrong = "configs|tools|xtuner_plugins|tests|docs|benchmarks|notebooks", []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        links = re.findall(r"\]\(([^)#\s]+)\)", text)
        wrong += [(page, link) for link in links if "://" not in link and not (page.parent / link).exists()]
        paths = re.findall(rf"(?<![\w/.])((?:{folders})/[\w./-]+\.(?:py|md|sh|png|html|ipynb))", text)
        history = page.name == "CHANGELOG.md"
        wrong += [(page, path) for path in paths if not history and not (ROOT / path).exists()]
        made = {line.split()[1] for line in code_lines(page) if line.startswith("make ")}
        wrong += [(page, f"make {target}") for target in made - targets]
    assert wrong == []


def test_tools_take_the_options_that_the_pages_show(run_tool):
    shown: dict[str, set[str]] = {}
    for page in PAGES:
        for line in code_lines(page):
            tool = re.search(r"(?:python tools/(\w+)\.py|^xtp ([\w-]+))", line)
            if tool:
                shown.setdefault(find_tool(tool[1] or tool[2]).relative_to(ROOT).as_posix(), set()).update(
                    re.findall(r"(?<=\s)--[a-z][\w-]*", line)
                )
    assert {"tools/evaluate.py", "tools/convert_to_official.py"} <= set(shown)
    for tool, options in shown.items():
        help_text = run_tool(tool, "--help").stdout
        assert "usage:" in help_text, f"{tool} --help shows no usage"
        assert [option for option in sorted(options) if option not in help_text] == [], tool


def blocks(page):
    """Headings, paragraphs, lists, code blocks and tables of a page, and rows of tables, items of lists and links."""
    text = re.sub(r"^```.*?^```", "\n\nCODE\n\n", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    kinds = {"code": r"CODE$", "heading": r"#", "table": r"\|", "list": r"(\*|-|\d+\.) ", "paragraph": ""}
    found = [block for block in re.split(r"\n\s*\n", text) if block.strip()]
    counts = Counter(next(kind for kind, start in kinds.items() if re.match(start, block)) for block in found)
    return counts, *(len(re.findall(part, text, re.MULTILINE)) for part in (r"^\|", r"^ *(?:[*-]|\d+\.) ", r"\]\("))


def test_chinese_pages_show_the_same_commands_and_say_as_much():
    for chinese in (page for page in PAGES if page.stem.endswith("_zh-CN")):
        english = chinese.with_name(chinese.name.replace("_zh-CN", ""))
        assert code_lines(english) == code_lines(chinese), chinese
        assert blocks(english) == blocks(chinese), chinese
