"""CIFAR-10 in torchvision's layout: ROOT/cifar-10-batches-py; 50,000 and 10,000 images, 3x32x32."""

from torchvision.datasets import CIFAR10

from fxdistill.data.dataset import Dataset
from fxdistill.data.sources import Request, Source
from fxdistill.data.sources._torchvision import cifar


def read(request: Request) -> Dataset:
    """CIFAR-10."""
    return cifar(CIFAR10, request)


SOURCE = Source(
    read=read,
    place="ROOT",
    layout="ROOT/cifar-10-batches-py must hold the files of the Python version of CIFAR-10",
    augmentation=lambda _: ("flip", "crop:4"),
)
