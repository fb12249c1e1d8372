"""Graphs as data: a model without a factory, written down operation by operation, and made again from that.

    {"modules": MODULE, "nodes": [NODE, …]}

    MODULE   {"class": "Conv2d", "attributes": {…}, "parameters": {…}, "buffers": {…}, "modules": {…}}
    NODE     {"op": …, "name": …, "target": …, "args": […], "kwargs": {…}, "scope": …}

Nothing is looked up but by **names of our own table**: a function is one of torch, its ``functional``, ATen, Python's
``operator`` and ``math`` whose operation is in :mod:`fxdistill.ir.operators`; a method the same, of a tensor; a module
that is called is a layer of ``torch.nn`` that is made without its constructor and gets plain values for attributes.
So a graph can compute, and cannot read, write, fetch or import. What is made from it is an ordinary graph module: it
trains (BatchNorm and Dropout are modules), is traced, shrunk and exported like the model that it was.

What cannot be written down so (a layer of one's own that stays one node, a function of one's own, a hook) is refused
when it is saved, with its name.
"""

from fxdistill.modelfiles.graphs.reading import from_data as from_data
from fxdistill.modelfiles.graphs.writing import of_model as of_model
from fxdistill.modelfiles.graphs.writing import to_data as to_data
