"""Statistics of frozen taps, measured once: what ``compare: running`` standardizes the teacher by.

    tap  →  (tap - mean) / sqrt(variance + eps)        of each channel, over images and positions

They are fixed from then on, so that what the teacher says of an image does not hang on the images beside it in the
batch. They lie in the program as buffers of its adapters, and so in checkpoints; until they are measured they are not
numbers, and neither are the losses.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx

from fxdistill import checking
from fxdistill.ir.adapters import FixedScale
from fxdistill.ir.graph import submodule
from fxdistill.ir.program import Batch, Program
from fxdistill.passes.specialize.needed import upto


@checking.checked()
def measure_taps(program: Program, batches: Iterable[Batch]) -> Program:
    """Measure the statistics of a program's frozen taps, where its losses compare by such; no other is touched.

    Args:
        program: The program, or one of a stage; it is changed.
        batches: Images as the program reads them, unaugmented.

    Returns:
        The program.
    """
    parts = {node: submodule(program, node) for node in program.graph.nodes}
    scales = {str(node.target): (node, part) for node, part in parts.items() if isinstance(part, FixedScale)}
    if not scales:
        return program
    frozen = _upto(program, {name: node for name, (node, _) in scales.items()})
    sums = dict[str, Tensor]()
    for batch in batches:
        with torch.no_grad():
            found: dict[str, Tensor] = frozen({"images": batch["images"]})
        for name, value in found.items():
            rows = value.double().transpose(0, 1).flatten(1)
            ones = torch.full_like(rows[:, 0], rows.shape[1])
            now = torch.stack([ones, rows.sum(1), rows.square().sum(1)])
            sums[name] = sums[name] + now if name in sums else now
    for name, (count, total, squares) in sums.items():
        mean = total / count
        scales[name][1].set(mean, squares / count - mean.square())
    return program


def _upto(program: Program, scales: Mapping[str, fx.Node]) -> fx.GraphModule:
    """What goes into each scale, by the scale's name."""
    read = {name: scale.all_input_nodes[0] for name, scale in scales.items()}
    return fx.GraphModule(program, upto(program.graph, program, read))
