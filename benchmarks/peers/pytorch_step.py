"""The training step of ReSSL as the paper's public script takes it, in PyTorch, timed.

  PYTHON_WITH_TORCH benchmarks/peers/pytorch_step.py --blocks 1,1,1,1 --width 16
  PYTHON_WITH_TORCH benchmarks/peers/pytorch_step.py --size 224 --batch 8 --dtype bf16

What `benchmarks.pytorch` runs beside ours. With `--width`, a ResNet of basic blocks for
small images; without, one of bottlenecks with pooling in the stem and the stride of a
block in its 3x3 convolution. A head of 512 and 128, channels last; the teacher a
running average in training mode, a queue of 4,096 embeddings, SGD; images that are
ready. Prints the best and the median time of a step as JSON. Needs PyTorch, and nothing
of this repository.
"""

import argparse
import copy
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional

QUEUE, HIDDEN, DIM = 4096, 512, 128


def convolution(inputs, outputs, kernel, stride=1):
    """A convolution padded on both sides, and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """Some convolutions, to which is added what came in."""

    def __init__(self, inputs, outputs, stride, *convolutions):
        super().__init__()
        self.convolutions = nn.Sequential(*convolutions)
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = convolution(inputs, outputs, 1, stride)

    def forward(self, x):
        y = self.convolutions(x)
        y += x if self.shortcut is None else self.shortcut(x)
        return functional.relu(y, inplace=True)


def basic(inputs, width, stride):
    """Two 3x3 convolutions."""
    first, second = convolution(inputs, width, 3, stride), convolution(width, width, 3)
    return Residual(inputs, width, stride, first, nn.ReLU(inplace=True), second)


def bottleneck(inputs, width, stride):
    """Narrow, look around, widen by four."""
    narrow, relu = convolution(inputs, width, 1), nn.ReLU(inplace=True)
    look, widen = convolution(width, width, 3, stride), convolution(width, 4 * width, 1)
    return Residual(inputs, 4 * width, stride, narrow, relu, look, relu, widen)


def encoder(blocks, width):
    """Images [batch, 3, height, width] to embeddings [batch, DIM].

    With a width, of basic blocks and with a stem for small images.
    """
    if width:
        block, widening, channels = basic, 1, width
        layers = [convolution(3, width, 3), nn.ReLU(inplace=True)]
    else:
        block, widening, width, channels = bottleneck, 4, 64, 64
        layers = [convolution(3, 64, 7, 2), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(3, 2, 1))
    for stage, count in enumerate(blocks):
        for index in range(count):
            stride = 2 if stage and not index else 1
            layers.append(block(channels, width * 2**stage, stride))
            channels = widening * width * 2**stage
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, HIDDEN)]
    layers += [nn.ReLU(inplace=True), nn.Linear(HIDDEN, DIM)]
    return nn.Sequential(*layers)


class Training:
    """Student, teacher, queue and optimizer; `step` trains on two views."""

    def __init__(self, student, device, half):
        self.student = student.to(device, memory_format=torch.channels_last)
        self.teacher = copy.deepcopy(self.student)
        queue = torch.randn(DIM, QUEUE, device=device)
        self.queue = functional.normalize(queue, dim=0)
        self.written = 0
        self.device, self.half = device, half
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4
        )

    def embed(self, network, images):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            embeddings = network(images)
        return functional.normalize(embeddings.float(), dim=1)

    def step(self, weak, strong):
        queries = self.embed(self.student, strong)  # [b, DIM]
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters())
            for average, weight in pairs:
                average.mul_(0.99).add_(weight, alpha=0.01)
            keys = self.embed(self.teacher, weak)  # [b, DIM]
        references = self.queue.clone()
        target = functional.softmax(keys @ references / 0.04, dim=1)  # [b, QUEUE]
        relation = functional.log_softmax(queries @ references / 0.1, dim=1)
        loss = -(target * relation).sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.queue[:, self.written : self.written + len(keys)] = keys.t()
        self.written = (self.written + len(keys)) % QUEUE
        return loss.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", default="3,4,6,3")
    parser.add_argument("--width", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    blocks = [int(count) for count in options.blocks.split(",")]
    torch.backends.cudnn.benchmark = True  # takes the fastest convolutions
    student = encoder(blocks, options.width)
    training = Training(student, options.device, options.dtype == "bf16")
    shape = [options.batch, 3, options.size, options.size]
    weak, strong = (
        torch.randn(shape).to(options.device, memory_format=torch.channels_last)
        for _ in range(2)
    )
    times = []
    for _ in range(options.steps + 2):
        start = time.perf_counter()
        training.step(weak, strong)
        times.append(1e3 * (time.perf_counter() - start))
    times = times[2:]  # the first two have more to do
    figures = {"best_ms": min(times), "median_ms": statistics.median(times)}
    print(json.dumps({**vars(options), **figures, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
