"""Plans of small networks, drawn while the documentation is built, as a report draws them: what runs in which stage."""

import torch

import fxdistill
from fxdistill import models
from fxdistill.compiler.outline import outline
from fxdistill.methods.cascade import Cascade
from fxdistill.report.page.document import networks
from fxdistill.report.page.told import of_plan

_LEGEND = """<div class="legend"><span class="teacher"><i class="square sq-runs"></i>runs in that stage</span>
<span class="teacher"><i class="square sq-part"></i>in part</span>
<span><i class="square sq-narrowed"></i>narrowed to the channels that are read</span>
<span><i class="square sq-dead"></i>does not run</span></div>"""


def indistill() -> str:
    """A residual teacher and a plain student: three pairs, a square for each warm-up and for the main stage."""
    teacher = models.resnet(widths=[16, 32, 64], blocks=1, classes=10, in_channels=3).eval()
    student = models.convnet(widths=[8, 16, 32], classes=10, in_channels=3, image_size=32).eval()
    options = fxdistill.Options(input_shape=(1, 3, 32, 32), method="indistill", control=False)
    plan = fxdistill.compile(teacher, student, options)
    (figure,) = networks(of_plan(plan, "indistill", outline(plan, {"teacher": teacher, "student": student})))
    return f'```{{raw}} html\n<div class="drawing">\n{_LEGEND}\n{figure}\n</div>\n```'


def cascade() -> str:
    """A convolutional teacher and the levels between it and its student: what each keeps of every layer."""
    torch.manual_seed(0)  # what a level keeps to begin with hangs on its weights
    teacher = models.convnet(widths=[16, 32, 64, 64], classes=10, in_channels=3, image_size=32).eval()
    options = fxdistill.Options(input_shape=(1, 3, 32, 32), method="cascade", cascade=Cascade(keep=0.2, assistants=3))
    plan = fxdistill.compile(teacher, None, options)
    (figure,) = networks(of_plan(plan, "cascade"))
    return f'```{{raw}} html\n<div class="drawing">\n{figure}\n</div>\n```'
