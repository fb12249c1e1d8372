"""CIFAR-100 in torchvision's layout: ROOT/cifar-100-python; 50,000 and 10,000 images, 3x32x32."""

from torchvision.datasets import CIFAR100

from fxdistill.data.dataset import Dataset
from fxdistill.data.sources import Request, Source
from fxdistill.data.sources._torchvision import cifar


def read(request: Request) -> Dataset:
    """CIFAR-100."""
    return cifar(CIFAR100, request)


SOURCE = Source(
    read=read,
    place="ROOT",
    layout="ROOT/cifar-100-python must hold the files of the Python version of CIFAR-100",
    augmentation=lambda _: ("flip", "crop:4"),
)
