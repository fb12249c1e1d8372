"""Plan torchvision's ResNet-50 as the teacher of ResNet-18: pairs, kept channels, and what each stage costs.

Needs no data and no GPU. On the command line: fxdistill plan torchvision.models:resnet50 torchvision.models:resnet18
"""

from torchvision import models

import fxdistill


def main() -> None:
    """Compile a structural plan and print what it decided."""
    teacher, student = models.resnet50(weights=None), models.resnet18(weights=None)
    plan = fxdistill.compile(teacher, student, fxdistill.Options(input_shape=(1, 3, 224, 224)))
    for pair, kept in zip(plan.pairs, plan.kept, strict=True):
        print(f"{pair.teacher.path} -> {pair.student.path}: keep {len(kept.channels)} of {kept.width}")
    for stage in plan.arm("distilled").stages:
        print(f"{stage.name}: {stage.epochs} epochs, {stage.cost:.1%} of the full cost")


if __name__ == "__main__":
    main()
