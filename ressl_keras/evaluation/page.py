"""Text and pictures as a page of HTML can hold them, and the page itself."""

import base64
import hashlib
import importlib.resources
import os
import shlex
import urllib.parse

import jinja2

from ressl_keras.data.images import name_of
from ressl_keras.evaluation import figures, pictures
from ressl_keras.files import writing


def write(path, template, sections):
    """Writes a page that needs no other file.

    Args:
        path: HTML file to write.
        template: name of a file in `templates`.
        sections: dict of what the template asks for; strings are escaped.
    """
    script = _template("map.js")
    # The browser runs this script and no other, whatever a name contains.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = load_template("ressl_keras.evaluation", template).render(
        sections,
        style=_template("style.css"),
        script=script,
        script_hash=digest,
    )
    with writing(path) as file:
        file.write(page)


def _template(name):
    folder = importlib.resources.files("ressl_keras.evaluation") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def files_of(folder, path):
    """Links to the files of a run that are there.

    Args:
        folder: `RunFolder`.
        path: of the page; the links are relative to its folder.

    Returns:
        List of dicts of `name`, `link`, `what` and `size`.
    """
    listed = (
        (folder.encoder, "encoder: images to features"),
        (folder.description, "facts about the encoder"),
        (folder.initial, "the encoder before the first step"),
        (folder.evaluation, "accuracies"),
        (folder.metrics, "metrics, a row per epoch"),
        (folder.history, "when, on what and how long it trained"),
        (folder.flags, "settings, a flagfile"),
        (folder.views, "the first views"),
        (folder.neighbours, "nearest neighbours"),
        (folder.skipped, "images that could not be read"),
        (folder.export, "SavedModels"),
        (folder.checkpoints, "training states"),
        (folder.tensorboard, "curves for TensorBoard"),
    )
    beside = os.path.dirname(os.path.abspath(path))
    found = []
    for file, what in listed:
        if not os.path.exists(file):
            continue
        link = os.fsencode(os.path.relpath(file, beside))
        size = None if os.path.isdir(file) else _bytes(os.path.getsize(file))
        name = clean(os.path.basename(file))
        link = urllib.parse.quote(link)
        found.append({"name": name, "link": link, "what": what, "size": size})
    return found


def _bytes(count):
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def load_template(package, name):
    """A page of a package's templates, which escapes all that is put into it."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)


def clean(text):
    """Replaces unprintable and non-UTF-8 characters."""
    text = str(text).encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def folded(command):
    """A command with one line per flag, which a shell still reads."""
    words = map(shlex.quote, shlex.split(command))
    return " ".join(
        f"\\\n    {word}" if word.lstrip("'").startswith("--") else word
        for word in words
    )


def named(class_name):
    """A class name, shortened."""
    return figures.shortened(clean(class_name), 28)


# Largest WebP file of a picture by default, in bytes.
_LARGEST = 2**19


def named_file(images, index):
    """The name of an image's file for the page, or None."""
    name = name_of(images, int(index))
    return None if name is None else clean(name).replace("\n", "\ufffd")


def inline(picture, largest=_LARGEST):
    """A picture as a data URL, with its size.

    Args:
        picture: `PIL.Image`.
        largest: number of bytes of its file; the quality is lowered until they suffice,
            down to the lowest. Pictures of up to 64 pixels are kept as they are.
    """
    kind = "WEBP" if max(picture.size) > 64 else "PNG"
    for quality in (85, 60, 35, 10, 0):
        content = pictures.encoded(picture, kind, quality=quality)
        if len(content) <= largest:
            break
    content = base64.b64encode(content).decode()
    return {
        "src": f"data:image/{kind.lower()};base64,{content}",
        "width": picture.width,
        "height": picture.height,
    }


def duration(seconds):
    """A rounded duration: `45 s`, `14 min`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes / 60 / 24:.1f} days"
