"""A part of the page."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        key: its anchor.
        title: its heading.
        html: what stands in it. Everything that comes from data is escaped: use :class:`markupsafe.Markup` with
            ``format``, or a template with autoescape.
        script: name of a file ``static/<script>.js``, which defines ``biomass.<script>(element, data)``; empty where
            nothing moves. Without scripts, and in print, the section must still say what it has to say.
        data: what the script gets, as JSON.
        lead: one sentence under the heading: how to read it.
    """

    key: str
    title: str
    html: Markup
    script: str = ""
    data: Mapping[str, Any] | None = None
    lead: str = ""
