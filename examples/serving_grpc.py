"""Asks a TensorFlow Serving for the embeddings of image files, over gRPC.

  pip install --no-deps tensorflow-serving-api
  python examples/serving_grpc.py --server=localhost:8500 a.jpg

Prints one line a file: its name and its embedding.
"""

import argparse
import sys

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def embed(server, images, model="encoder", timeout=30):
    """Embeddings of encoded images.

    Args:
        server: host and port, as in `localhost:8500`.
        images: list of bytes, each a JPEG or PNG file.
        model: name under which the server has the encoder.
        timeout: seconds to wait.

    Returns:
        float32 array [images, dim].

    Raises:
        grpc.RpcError: if the server refuses the request.
    """
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "serve_bytes"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(images))
    with grpc.insecure_channel(server) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = service.Predict(request, timeout)
    return tf.make_ndarray(response.outputs["embedding"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", default="localhost:8500")
    parser.add_argument("--model", default="encoder")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    images = []
    for name in arguments.files:
        with open(name, "rb") as file:
            images.append(file.read())
    try:
        embeddings = embed(arguments.server, images, arguments.model)
    except grpc.RpcError as error:
        sys.exit(f"serving_grpc.py: error: {error.details()}")
    for name, embedding in zip(arguments.files, embeddings):
        print(name, *(f"{value:.6g}" for value in embedding))


if __name__ == "__main__":
    main()
