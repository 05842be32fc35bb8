import pytest
from jinja2 import UndefinedError

from xtuner_plugins.html_page import render


def test_texts_are_escaped_styles_included_and_missing_values_refused(tmp_path):
    (tmp_path / "a.jinja").write_text('<style>{% include "page.css.jinja" %}</style><p>{{ text }}</p>')
    page = render(tmp_path, "a.jinja", text="<script>")
    assert "<p>&lt;script&gt;</p>" in page and "prefers-color-scheme:dark" in page
    with pytest.raises(UndefinedError):
        render(tmp_path, "a.jinja")
