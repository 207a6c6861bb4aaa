"""A hook of mkdocs: links that leave docs/ hold in the site as they do in the repository.

`[quiz.yaml](../recipes/quiz.yaml)` is right on any page that shows the repository. In the site it
leads to a page with that file's text, so that it also works from the disk and at any address. A few
Markdown files outside of docs/ are pages of the site (PAGES), with their links led on likewise.
What does not exist is left as it is, and mkdocs names it.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
SHOWN = "files"  # the folder of the pages that show a file
LANGUAGES = {".json": "json", ".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(?=[)#])")
# Out of the search: whoever searches the documentation does not look for code.
_SHOWN_PAGE = "---\nsearch:\n  exclude: true\n---\n# {path}\n\n````{language}\n{text}\n````\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/, and one for each file that a page links to."""
    root = _find_root(config)
    for path, page in PAGES.items():
        text = (root / path).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    linked = {
        path
        for page in files.documentation_pages()
        for path in _list_links(page.src_uri, page.content_string)
        if not path.startswith("docs/") and path not in PAGES and (root / path).is_file()
    }
    for path in sorted(linked):
        language = LANGUAGES.get(posixpath.splitext(path)[1], "text")
        text = (root / path).read_text(encoding="utf-8").rstrip()
        content = _SHOWN_PAGE.format(path=path, language=language, text=text)
        files.append(File.generated(config, _name_page(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead a page's links on to where the site has what they mean."""
    if page.file.src_uri.startswith(f"{SHOWN}/"):
        return markdown
    folder = posixpath.dirname(page.file.src_uri)

    def lead_on(link: re.Match[str]) -> str:
        found = files.get_file_from_path(_find_page(_resolve(page.file.src_uri, link[1])))
        return posixpath.relpath(found.src_uri, folder or ".") if found else link[1]

    return _LINK.sub(lead_on, markdown)


def _list_links(page: str, markdown: str) -> list[str]:
    return [_resolve(page, link[1]) for link in _LINK.finditer(markdown)]


def _resolve(page: str, link: str) -> str:
    """Return the path below the repository's root that a link on a page of the site means."""
    written_in = {page: path for path, page in PAGES.items()}.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(written_in), link))


def _find_page(path: str) -> str:
    """Return the page of the site for a path of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path, _name_page(path))


def _name_page(path: str) -> str:
    """Return the page that shows a file; mkdocs leaves out what begins with a dot."""
    return f"{SHOWN}/{path.replace('/.', '/').lstrip('.')}.md"


def _find_root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent
