# TensorFlow Serving with an exported encoder inside.
#
#   docker build -f examples/serving.Dockerfile --build-arg EXPORT=runs/cifar10/export \
#     -t my-encoder .
#   docker run --rm -p 8500:8500 -p 8501:8501 my-encoder
#
# The folder of versions must be below the current folder. The server takes the newest.
FROM tensorflow/serving:latest
ARG EXPORT=export
COPY ${EXPORT} /models/encoder
ENV MODEL_NAME=encoder
