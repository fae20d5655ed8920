"""What building docs/ into a site needs besides mkdocs: pages may point into the rest of the repository.

On a code host such relative links work as they stand. The site holds docs/ alone, so a picture from elsewhere
is copied into it, and any other such link becomes its text with the path. A link to nothing is an error.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = "repository"  # the site's folder of pictures from elsewhere
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def place(target: str, page: str, root: Path) -> str | None:
    """The repository path that a link of a page in docs/ means; None where it stays within docs/.

    PluginError where nothing is there.
    """
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    if path.startswith("docs/"):
        return None
    if path.startswith("..") or not (root / path).exists():
        raise PluginError(f"docs/{page} links to {target}, which is not in the repository")
    return path


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pictures of other folders that pages show."""
    root = Path(config.config_file_path).parent
    for file in list(files.documentation_pages()):
        for image, _, target, _ in _LINK.findall(file.content_string):
            path = place(target, file.src_uri, root) if image else None
            if path and files.get_file_from_path(f"{OUTSIDE}/{path}") is None:
                files.append(File.generated(config, f"{OUTSIDE}/{path}", abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links that leave docs/."""
    root = Path(config.config_file_path).parent

    def rewritten(match: re.Match) -> str:
        image, text, target, _ = match.groups()
        path = place(target, page.file.src_uri, root)
        if path is None:
            return match[0]
        if image:
            here = posixpath.dirname(page.file.src_uri) or "."
            return f"![{text}]({posixpath.relpath(f'{OUTSIDE}/{path}', here)})"
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return _LINK.sub(rewritten, markdown)
