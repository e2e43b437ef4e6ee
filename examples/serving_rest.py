"""Asks a TensorFlow Serving for the embeddings of image files, over REST.

  python examples/serving_rest.py --url=http://localhost:8501/v1/models/encoder a.jpg

Needs the standard library only. Prints one line a file: its name and its embedding.
"""

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request


def embed(url, images, timeout=30):
    """Embeddings of encoded images.

    Args:
        url: of the model, as in `http://localhost:8501/v1/models/encoder`.
        images: list of bytes, each a JPEG or PNG file.
        timeout: seconds to wait.

    Returns:
        List of lists of floats.

    Raises:
        RuntimeError: with the server's own words, if it refuses the request.
    """
    request = {
        "signature_name": "serve_bytes",
        "instances": [
            {"image_bytes": {"b64": base64.b64encode(image).decode()}}
            for image in images
        ],
    }
    request = urllib.request.Request(
        f"{url}:predict",
        json.dumps(request).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.load(response)["predictions"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.load(error)["error"]) from error


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://localhost:8501/v1/models/encoder")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    images = []
    for name in arguments.files:
        with open(name, "rb") as file:
            images.append(file.read())
    try:
        embeddings = embed(arguments.url, images)
    except (RuntimeError, OSError) as error:
        sys.exit(f"serving_rest.py: error: {error}")
    for name, embedding in zip(arguments.files, embeddings):
        print(name, *(f"{value:.6g}" for value in embedding))


if __name__ == "__main__":
    main()
