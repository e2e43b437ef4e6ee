"""Eight steps of the method in PyTorch, kept as arrays for test_regression.

  PYTHON_WITH_TORCH tests/pytorch_steps.py tests/data/pytorch_steps.npz \
      --public=CHECKOUT

Needs PyTorch and NumPy, nothing of this repository. The step is written from the paper
(arXiv 2107.09282, algorithm 1) and runs in float64. With --public, the class `ReSSL` in
`network/ressl.py` of a checkout of the authors' repository runs the same steps in
float32, around the same small network, and its losses are kept beside.

The arrays: `views` [8, 2, batch, size, size, 3] uint8, the teacher's first; the
student's first weights in the order of `named_parameters`, as `first_NAME`; the queue
at the start and at the end [K, dim]; the losses; the settings.
"""

import argparse
import copy
import os
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional

SETTINGS = {
    "learning_rate": 0.1,
    "optimizer_momentum": 0.9,
    "weight_decay": 5e-4,
    "momentum": 0.9,
    "student_temperature": 0.1,
    "teacher_temperature": 0.04,
}
STEPS, BATCH, SIZE, QUEUE, HIDDEN, DIM, WIDTH = 8, 8, 16, 32, 16, 8, 4


def convolution(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions and what came in."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
        self.body = nn.Sequential(
            convolution(inputs, outputs, 3, stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            convolution(outputs, outputs, 3),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        return torch.relu(
            self.body(x) + (x if self.shortcut is None else self.shortcut(x))
        )


class Encoder(nn.Sequential):
    """A ResNet of four blocks for small images, and the head; unit embeddings."""

    def __init__(self):
        stages = [WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH]
        blocks = [
            Block(inputs, outputs, 2 if stage else 1)
            for stage, (inputs, outputs) in enumerate(zip([WIDTH, *stages], stages))
        ]
        super().__init__(
            nn.Sequential(convolution(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU()),
            *blocks,
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Sequential(
                nn.Linear(stages[-1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM)
            ),
        )

    def forward(self, images):
        return functional.normalize(super().forward(images))


def drawn_views(generator):
    """Blurred noise, of which each view has its own part: uint8, as in the file."""
    coarse = generator.uniform(0, 255, [STEPS, 1, BATCH, 4, 4, 3])
    common = coarse.repeat(SIZE // 4, axis=3).repeat(SIZE // 4, axis=4)
    own = generator.uniform(0, 255, [STEPS, 2, BATCH, SIZE, SIZE, 3])
    return np.round(0.6 * common + 0.4 * own).astype(np.uint8)


def normalised(views, dtype):
    """Views [batch, size, size, 3] as a tensor, channels first."""
    return ((torch.tensor(views).permute(0, 3, 1, 2).to(dtype) / 255) - 0.5) / 0.25


def loss_of(student_logits, teacher_logits):
    """The relational loss (equation 3), mean over the batch."""
    target = functional.softmax(teacher_logits / SETTINGS["teacher_temperature"], 1)
    logits = student_logits / SETTINGS["student_temperature"]
    return -(target * functional.log_softmax(logits, 1)).sum(1).mean()


def optimizer_of(parameters):
    """SGD; weight decay for the weights of rank two and more."""
    parameters = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0},
    ]
    return torch.optim.SGD(
        groups,
        SETTINGS["learning_rate"],
        SETTINGS["optimizer_momentum"],
        weight_decay=SETTINGS["weight_decay"],
    )


class OwnSteps(nn.Module):
    """Algorithm 1 of the paper."""

    def __init__(self, student, queue):
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student)
        self.teacher.requires_grad_(False)
        self.references = queue.clone()  # [K, dim], the next to go at `oldest`
        self.oldest = 0

    def forward(self, strong, weak):
        """Logits of student and teacher [batch, K]; updates teacher and queue."""
        m = SETTINGS["momentum"]
        with torch.no_grad():
            for average, weight in zip(
                self.teacher.parameters(), self.student.parameters()
            ):
                average.copy_(m * average + (1 - m) * weight)
            teacher = self.teacher(weak)
        references = self.references.clone()
        rows = (self.oldest + torch.arange(len(teacher))) % len(references)
        self.references[rows] = teacher
        self.oldest = (self.oldest + len(teacher)) % len(references)
        return self.student(strong) @ references.T, teacher @ references.T


def public_steps(checkout, student, queue):
    """The authors' class, with this network in place of its own."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    sys.path.insert(0, checkout)
    import network.ressl as public

    # One process stands for all devices, and there is no GPU.
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    torch.Tensor.cuda = lambda tensor: tensor
    public.BackBone = lambda **_: copy.deepcopy(student)
    steps = public.ReSSL(dim=DIM, K=len(queue), m=SETTINGS["momentum"])
    steps.queue.copy_(queue.T)
    return steps


def train(steps, views):
    """The loss of each step."""
    optimizer, losses = optimizer_of(steps.parameters()), []
    dtype = next(steps.parameters()).dtype
    for teacher, student in views:
        weak, strong = normalised(teacher, dtype), normalised(student, dtype)
        loss = loss_of(*steps(strong, weak))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output")
    parser.add_argument("--public", help="checkout of the authors' repository")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    # oneDNN's gradient of a strided 1x1 convolution of few channels damages memory.
    torch.backends.mkldnn.enabled = False
    generator = np.random.default_rng(0)
    views, student = drawn_views(generator), Encoder()
    weights = {f"first_{k}": v.detach().numpy() for k, v in student.named_parameters()}
    arrays = {name: weight.copy() for name, weight in weights.items()}
    queue = generator.normal(size=[QUEUE, DIM])
    queue = (queue / np.linalg.norm(queue, axis=1, keepdims=True)).astype(np.float32)
    steps = OwnSteps(copy.deepcopy(student).double(), torch.tensor(queue).double())
    arrays |= {"views": views, "queue": queue, "losses": train(steps, views)}
    arrays["last_queue"] = steps.references.numpy().astype(np.float32)
    if options.public:
        public = public_steps(options.public, student, torch.tensor(queue))
        arrays["public_losses"] = train(public, views)
        print(np.abs(arrays["public_losses"] - arrays["losses"]).max())
    print(arrays["losses"])
    np.savez_compressed(options.output, **arrays, **SETTINGS)


if __name__ == "__main__":
    main()
