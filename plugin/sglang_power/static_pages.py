"""Reports as static HTML pages, which open from disk and ask nobody for anything.

Strings reach a page only through an autoescaping template. The page's content security policy forbids all
scripts, and allows one style by its hash. Knows no report.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def rendered(
    package: str,
    spelled: Callable[[str], str],
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """Return a page.

    Args:
        package: whose folder `page` holds report.html and report.css.
        spelled: what every string that the template shows goes through before it is escaped.
        values: what the template shows, beside `style` and `style_hash`.
        filters: of the template.
    """

    def shown(value: Any) -> Any:
        return spelled(value) if type(value) is str else value

    environment = Environment(
        loader=PackageLoader(package, "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters.update(filters or {})
    style = resources.files(package).joinpath("page", "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("report.html").render(style=style, style_hash=digest, **values)
