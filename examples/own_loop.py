"""The user keeps the loop: a plan and two modules become a program, and the program gives the losses of a stage.

Runs on scikit-learn's digits, some seconds on a CPU. The teacher is trained here for a moment, so that there is
something to learn from; the student's parameters in the program are its own, so whatever optimises the program trains
the student.
"""

from collections.abc import Iterator

import torch
from torch.nn import functional

import fxdistill
from fxdistill import models
from fxdistill.data import batches
from fxdistill.measure import evaluate


def main() -> None:
    """Train a teacher, plan, then train the student stage by stage in a loop of our own."""
    torch.manual_seed(0)
    digits = batches.load("digits")
    teacher, student = models.resnet(widths=[16, 32, 64], blocks=1), models.convnet(widths=[8, 16, 32])
    optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for epoch in range(5):
        for images, labels in training(digits, epoch):
            optimizer.zero_grad()
            functional.cross_entropy(teacher(images), labels).backward()
            optimizer.step()

    plan = fxdistill.compile(teacher, student, fxdistill.Options(input_shape=(1, 1, 8, 8), epochs=5))
    program = fxdistill.build(plan, teacher, student)
    for stage in plan.stages:
        staged = program.stage(stage.name).train()
        optimizer = torch.optim.Adam([p for p in staged.parameters() if p.requires_grad], lr=stage.optimizer.lr)
        for epoch in range(stage.epochs):
            for images, labels in training(digits, epoch):
                losses = staged(images, labels)
                optimizer.zero_grad()
                staged.total(losses).backward()
                optimizer.step()
        print(stage.name, {name: round(float(loss.detach()), 4) for name, loss in losses.items()})
    print(f"teacher {accuracy(teacher, digits):.2%}, student {accuracy(student, digits):.2%}")


def training(digits: batches.Dataset, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches of an epoch."""
    return batches.batches(digits.train, 64, mean=digits.mean, std=digits.std, epoch=epoch, shuffle=True)


def accuracy(module: torch.nn.Module, digits: batches.Dataset) -> float:
    """Share of the test images that are right."""
    return evaluate.accuracy(module, batches.batches(digits.test, 64, mean=digits.mean, std=digits.std))


if __name__ == "__main__":
    main()
