"""Scikit-learn's 1,797 handwritten digits, 1x8x8, bundled with it.

Of each class, in file order, the images at positions 2, 5 and 8 of every ten are for testing.
"""

import torch
from sklearn.datasets import load_digits

from fxdistill.data.dataset import Dataset, Split, checked
from fxdistill.data.sources import Request, Source


def read(request: Request) -> Dataset:
    """The digits."""
    found = load_digits()
    images = torch.from_numpy(found.images).to(torch.float32).div(16).unsqueeze(1)
    labels = torch.from_numpy(found.target).long()
    testing = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = (labels == label).nonzero().flatten()
        testing[members[torch.isin(torch.arange(len(members)) % 10, torch.tensor([2, 5, 8]))]] = True
    train, test = (Split(images[chosen], labels[chosen]) for chosen in (~testing, testing))
    return checked(train, test, [str(label) for label in range(10)], where=request.spec, task=request.task)


SOURCE = Source(read=read)
