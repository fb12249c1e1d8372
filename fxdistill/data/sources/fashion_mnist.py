"""Fashion-MNIST in torchvision's layout: the idx files in ROOT/FashionMNIST/raw; 60,000 and 10,000 images, 1x28x28."""

from torchvision.datasets import FashionMNIST

from fxdistill.data.dataset import Dataset, Split, checked
from fxdistill.data.sources import Request, Source


def read(request: Request) -> Dataset:
    """Fashion-MNIST."""
    parts = [FashionMNIST(str(request.place), train=train, download=False) for train in (True, False)]
    train, test = (Split(part.data.unsqueeze(1), part.targets) for part in parts)
    return checked(train, test, parts[0].classes, where=request.spec, task=request.task)


SOURCE = Source(
    read=read,
    place="ROOT",
    layout="ROOT/FashionMNIST/raw must hold the four unpacked idx files of Fashion-MNIST",
    augmentation=lambda _: ("flip",),
)
