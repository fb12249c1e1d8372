"""The user keeps the loop: a plan and two modules become a program, and the program gives the losses of a stage.

Runs on scikit-learn's digits, some seconds on a CPU. The teacher is trained here for a moment, so that there is
something to learn from; the student's parameters in the program are its own, so whatever optimises the program trains
the student. In the main stage a term of our own is added to the program's losses: it compares the two predictions,
which ``program.outputs`` gives beside the losses.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

import fxdistill
from fxdistill import models

MARGIN = 0.1  # weight of our own term


def main() -> None:
    """Train a teacher, plan, then train the student stage by stage in a loop of our own."""
    torch.manual_seed(0)
    digits = fxdistill.load_data("digits")
    own = digits.preprocessing  # its size, mean and deviation: what both models shall take
    teacher, student = models.resnet(widths=[16, 32, 64], blocks=1), models.convnet(widths=[8, 16, 32])
    optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for epoch in range(5):
        for batch in training(digits, epoch):
            optimizer.zero_grad()
            functional.cross_entropy(teacher((batch["images"] - own.mean[0]) / own.std[0]), batch["labels"]).backward()
            optimizer.step()

    both = {"teacher": own, "student": own}
    options = fxdistill.Options(input_shape=(1, 1, 8, 8), epochs=5, preprocessing=both)
    plan = fxdistill.compile(teacher, student, options)
    program = fxdistill.build(plan, teacher, student)
    for stage in plan.arm("distilled").stages:
        staged = fxdistill.specialize(program, stage.name).train()
        optimizer = torch.optim.Adam([p for p in staged.parameters() if p.requires_grad], lr=stage.optimizer.lr)
        for epoch in range(stage.epochs):
            for batch in training(digits, epoch):
                found = staged.outputs(batch)
                total = staged.total(found.losses)
                if stage.name == "main":
                    total = total + MARGIN * functional.l1_loss(found.logits["student"], found.logits["teacher"])
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
        print(stage.name, {name: round(float(loss.detach()), 4) for name, loss in found.losses.items()})
    reached = [fxdistill.evaluate(model, "digits")["accuracy"] for model in (teacher, student)]
    print(f"teacher {reached[0]:.2%}, student {reached[1]:.2%}")


def training(digits: fxdistill.Dataset, epoch: int) -> Iterator[dict[str, Tensor]]:
    """Shuffled batches of an epoch: pixels, which the program normalises."""
    return fxdistill.batches(digits.train, 64, epoch=epoch, shuffle=True)


if __name__ == "__main__":
    main()
