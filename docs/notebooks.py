"""Hook of mkdocs: a page for each notebook, so that its links are checked like others.

The notebooks are kept without outputs, so that their text and code are all there is.
"""

import json
import os
import pathlib

from mkdocs.structure.files import File


def on_files(files, config):
    """Adds a page beside each notebook; the notebook itself stays to be downloaded."""
    for file in list(files):
        name, ending = os.path.splitext(file.src_uri)
        if ending == ".ipynb":
            text = _markdown(pathlib.Path(file.abs_src_path))
            files.append(File.generated(config, f"{name}.md", content=text))
    return files


def on_page_markdown(markdown, **_):
    """Lets links to a notebook lead to its page."""
    return markdown.replace(".ipynb)", ".md)")


def _markdown(path):
    """Text and code of a notebook, and a link to it at the end."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            language = "bash" if text.startswith("%%bash") else "python"
            text = f"```{language}\n{text}\n```"
        parts.append(text)
    parts.append(f'<a href="{path.name}" download>This page as a notebook</a>')
    return "\n\n".join(parts) + "\n"
