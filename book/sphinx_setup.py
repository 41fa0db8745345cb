"""What Sphinx is told beyond ``_config.yml``: buttons from one setting, and pages that any browser can read.

``repository.url`` in ``_config.yml`` gives every page buttons to the repository and its issues, and every notebook one
that opens it on Binder. Without it there are none.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError


def buttons(app: Sphinx, config: Config) -> None:
    """Switch the theme's buttons on if there is a repository to lead to, else off."""
    there = bool(config.html_theme_options.get("repository_url"))
    binder = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
    config.html_theme_options |= {
        "use_repository_button": there,
        "use_issues_button": there,
        "launch_buttons": binder if there else {},
    }


def without_thebe(app: Sphinx) -> None:
    """Leave out Thebe, which runs cells over the network: always loaded, never wanted here, and with a script error."""
    for listeners in app.events.listeners.values():
        listeners[:] = [listener for listener in listeners if listener.handler.__module__ != "sphinx_thebe"]


def readable(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Take a role from the bibliography that promises assistive technology a list and holds none."""
    if "body" in context:
        context["body"] = context["body"].replace('<div role="list" class="citation-list">', "<div>")


def html_alone(app: Sphinx) -> None:
    """Refuse a form of the book that would lack its tables and figures: their outputs exist as HTML alone."""
    if app.builder.format != "html":
        raise ExtensionError(
            f"the {app.builder.name} builder would leave out the book's tables and figures, which are HTML: use html"
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", buttons)
    app.connect("builder-inited", html_alone, priority=0)
    app.connect("builder-inited", without_thebe, priority=0)
    app.connect("html-page-context", readable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
