"""Print the pairs that are chosen for torchvision models, and the time that it takes.

python benchmarks/pairing.py [TEACHER STUDENT]
"""

import sys
import time

import torchvision

from fxdistill.ir.graph import Traced
from fxdistill.passes.couple import Couple
from fxdistill.passes.match import Match, MatchSource
from fxdistill.passes.match.candidates import Survey
from fxdistill.passes.trace import Trace

PAIRS = [
    ("resnet50", "resnet18"),
    ("resnet50", "mobilenet_v2"),
    ("vgg16_bn", "resnet18"),
    ("densenet121", "resnet18"),
    ("efficientnet_b0", "mobilenet_v3_small"),
    ("regnet_y_1_6gf", "shufflenet_v2_x0_5"),
    ("convnext_tiny", "resnet18"),
    ("swin_t", "mobilenet_v2"),
    ("vit_b_16", "vit_b_32"),
    ("inception_v3", "mnasnet0_5"),
    ("googlenet", "squeezenet1_1"),
]


def traced(name: str) -> Traced:
    kwargs = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return Trace(input_shape=(1, 3, 224, 224))(getattr(torchvision.models, name)(**kwargs).eval()).value


def show(teacher: str, student: str) -> None:
    models = traced(teacher), traced(student)
    labels = Couple()(models[0]).value, Couple()(models[1]).value
    start = time.perf_counter()
    result = Match()(MatchSource(Survey(models[0], labels[0]), Survey(models[1], labels[1], "student")))
    print(f"\n{teacher} -> {student}, matched in {1000 * (time.perf_counter() - start):.0f} ms")
    for pair in result.value:
        ends = (f"{tap.path} {'x'.join(map(str, tap.shape[1:]))}" for tap in (pair.teacher, pair.student))
        print(f"  {pair.score:.2f}  {'  <->  '.join(ends)}")
    for remark in result.diagnostics:
        print(f"        {remark.why}")


if __name__ == "__main__":
    for chosen in [(sys.argv[1], sys.argv[2])] if len(sys.argv) == 3 else PAIRS:
        show(*chosen)
