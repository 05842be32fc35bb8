"""Pages for people: one HTML file each, with the style sheet that all share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHARED = Path(__file__).parent  # has page.css.jinja and page_languages.jinja, which templates include


def render(folder: Path, template: str, **values: Any) -> str:
    """The page of a template; texts are escaped, and a missing value is an error.

    Args:
        folder: Of the template.
        template: Its file name.
        **values: What it shows.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([folder, SHARED])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(template).render(values)
