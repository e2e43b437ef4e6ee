"""Text and pictures as a page of HTML can hold them."""

import base64
import shlex

from ressl_keras.evaluation import figures, pictures


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


def inline(picture):
    """A picture as a data URL, with its size."""
    kind = "WEBP" if max(picture.size) > 64 else "PNG"
    content = base64.b64encode(pictures.encoded(picture, kind, quality=85)).decode()
    return {
        "src": f"data:image/{kind.lower()};base64,{content}",
        "width": picture.width,
        "height": picture.height,
    }
