"""The example clients against a stand-in that answers as TF Serving would."""

import base64
import concurrent.futures
import http.server
import io
import json
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from PIL import Image

from ressl_keras import build_backbone
from ressl_keras.data import shapes
from ressl_keras.encoders import serving
from ressl_keras.encoders.building import build_encoder

sys.path.insert(0, str(ROOT / "examples"))


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    return build_encoder(build_backbone("resnet10_small", (32, 32, 3), 4))


@pytest.fixture(scope="module")
def serve(encoder, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("export"))
    path = serving.save_saved_model(encoder, 32, folder, warmup=False)
    signatures = tf.saved_model.load(path).signatures

    def answer(signature, inputs):
        return signatures[signature](**inputs)["embedding"].numpy()

    return answer


@pytest.fixture(scope="module")
def images():
    return shapes.render(3, seed=0)[0]


@pytest.fixture(scope="module")
def files(images):
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


@pytest.fixture
def rest(serve):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/models/encoder:predict"
            rows = [row["image_bytes"]["b64"] for row in body["instances"]]
            inputs = {"image_bytes": tf.constant(list(map(base64.b64decode, rows)))}
            try:
                answer = serve(body["signature_name"], inputs).tolist()
                status, answer = 200, {"predictions": answer}
            except tf.errors.InvalidArgumentError as error:
                status, answer = 400, {"error": str(error)}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/models/encoder"
        server.shutdown()


@pytest.mark.long
def test_the_rest_client_gets_the_embeddings_of_image_files(
    rest, encoder, images, files
):
    import serving_rest

    embeddings = serving_rest.embed(rest, files)
    np.testing.assert_allclose(embeddings, encoder(images), atol=1e-5)
    with pytest.raises(RuntimeError, match=r"image_bytes at \[1\]"):
        serving_rest.embed(rest, [files[0], b"no image"])
    assert len(serving_rest.embed(rest, files[:1])) == 1


@pytest.mark.long
def test_the_grpc_client_gets_the_embeddings_of_image_files(
    serve, encoder, images, files
):
    pytest.importorskip("tensorflow_serving.apis")
    import grpc
    import serving_grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            assert request.model_spec.name == "encoder"
            encoded = tf.make_ndarray(request.inputs["image_bytes"])
            inputs = {"image_bytes": tf.constant(encoded.tolist(), tf.string)}
            response = predict_pb2.PredictResponse()
            try:
                embedding = serve(request.model_spec.signature_name, inputs)
            except tf.errors.InvalidArgumentError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            response.outputs["embedding"].CopyFrom(tf.make_tensor_proto(embedding))
            return response

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Service(), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        address = f"127.0.0.1:{port}"
        embeddings = serving_grpc.embed(address, files)
        np.testing.assert_allclose(embeddings, encoder(images), atol=1e-5)
        with pytest.raises(grpc.RpcError) as caught:
            serving_grpc.embed(address, [files[0], b"no image"])
        assert "image_bytes at [1]" in caught.value.details()
    finally:
        server.stop(None)
