"""Convolutional backbones: an image in, features out.

Each is a `feature_map` (N, C, H', W'), of which something is known of where, and what `read`s it into features.
Pixels are uint8, or float32 of the same range, 0 to 255. Normalisations keep no running statistics: what a network
answers depends on its weights and its one input alone, also in a target network, or in another process that acts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faults import ConfigError
from learners import average


class Backbone(nn.Module):
    """Observation (N, *obs_shape) -> features (N, out_dim)."""

    out_dim: int


class ImageBackbone(Backbone):
    """Images (N, C, H, W) -> features (N, out_dim)."""

    computes_bfloat16 = False

    def feature_map(self, image: Tensor) -> Tensor:
        """(N, C, H, W) uint8, or float32 of the same range -> (N, C', H', W'), after its last nonlinearity."""
        raise NotImplementedError

    def read(self, feature_map: Tensor) -> Tensor:
        """The rest of the way: feature map -> (N, out_dim) float32."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        return self.read(self.feature_map(image))

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16) if self.computes_bfloat16 else nullcontext()


def pixels(image: Tensor) -> Tensor:
    """As the convolutions compute fastest: float32 in channels_last layout."""
    return image.to(torch.float32, memory_format=torch.channels_last)


def first_conv(layer: nn.Conv2d, image: Tensor) -> Tensor:
    """The layer on pixels scaled to [0, 1]. Scaling the kernel (a few thousand numbers) is the same function as scaling
    millions of pixels."""
    return F.conv2d(pixels(image), layer.weight * (1 / 255), layer.bias, layer.stride, layer.padding)


class WideLinear(nn.Linear):
    """A linear layer of a whole feature map: (N, D) -> (N, K), quick for the few rows of acting.

    The product is taken as weights times inputs: the other way round MKL leaves a batch of 4 or 8 to one thread, which
    takes up to twice as long. From 64 rows on it makes no difference.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():  # whoever reads the file looks for a linear layer
            return super().forward(x)
        return torch.addmm(self.bias[:, None], self.weight, x.T).T


def rectified(x: Tensor, norm: nn.Module) -> Tensor:
    """ReLU of the normalised channels of each pixel: (N, C, H, W) -> (N, C, H, W), in place where nothing normalises.

    In memory channels lie last, so that normalising them takes no copy. What is rectified in place must be no view, or
    its gradient is copied.
    """
    if isinstance(norm, nn.Identity):
        return F.relu_(x)
    normalised: Tensor = norm(x.permute(0, 2, 3, 1))
    return F.relu_(normalised).permute(0, 3, 1, 2)


def too_small(image_shape: Sequence[int]) -> ConfigError:
    """The error line for images that a backbone shrinks to nothing."""
    return ConfigError(f"an image of {image_shape[1]}x{image_shape[2]} pixels is too small for this backbone")


class CNN(ImageBackbone):
    """Convolutions without padding, then one fully connected layer, ReLU after each: (N, C, H, W) -> (N, out_dim).

    Pixels enter as x / 255, or, with `center_pixels`, as (x - mean image) / 64 once `center` has been called. With
    `layer_norm` the channels of each pixel are normalised before the ReLU, as Flax's LayerNorm does (some PyTorch code
    normalises all pixels of an image together, which is another network).
    """

    pixel_mean: Tensor

    def __init__(
        self,
        image_shape: tuple[int, ...],
        convolutions: Sequence[tuple[int, int, int]],
        out_dim: int,
        center_pixels: bool = False,
        bfloat16: bool = False,
        layer_norm: bool = False,
    ) -> None:
        """Builds the layers.

        Args:
            image_shape: channels, height, width.
            convolutions: (filters, kernel size, stride) of each.
            out_dim: width of the fully connected layer.
            center_pixels: see the class.
            bfloat16: compute in bfloat16. About 1.6 times as fast where the hardware has instructions for it
                (AVX512-BF16, AMX, recent GPUs), many times slower where it has not.
            layer_norm: see the class.
        """
        super().__init__()
        planes, *size = image_shape
        layers = []
        for filters, kernel, stride in convolutions:
            if min(size) < kernel:
                raise too_small(image_shape)
            layers.append(nn.Conv2d(planes, filters, kernel, stride))
            size, planes = [(s - kernel) // stride + 1 for s in size], filters
        self.first, self.rest = layers[0], nn.ModuleList(layers[1:])
        self.linear = WideLinear(planes * size[0] * size[1], out_dim)
        widths = [filters for filters, _, _ in convolutions]
        self.norms = nn.ModuleList(nn.LayerNorm(n) if layer_norm else nn.Identity() for n in [*widths, out_dim])
        self.out_dim = out_dim
        self.center_pixels, self.computes_bfloat16 = center_pixels, bfloat16
        if center_pixels:
            self.register_buffer("pixel_mean", torch.zeros(image_shape))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def center(self, pixel_mean: Tensor) -> None:
        """Sets the image (C, H, W), in pixel values, that is subtracted from every input."""
        self.pixel_mean.copy_(average(pixel_mean))  # learners have seen equally many

    def feature_map(self, image: Tensor) -> Tensor:
        # Scaling the kernel and subtracting the mean image's response is the same function as scaling and subtracting
        # on millions of pixels.
        kernel = self.first.weight * (1 / 64 if self.center_pixels else 1 / 255)
        with self._precision(image.device):
            x = F.conv2d(pixels(image), kernel, self.first.bias, self.first.stride)
            if self.center_pixels:
                x = x - F.conv2d(self.pixel_mean[None], kernel, None, self.first.stride)
            x = rectified(x, self.norms[0])
            for layer, norm in zip(self.rest, self.norms[1:], strict=False):
                x = rectified(layer(x), norm)
        return x

    def read(self, feature_map: Tensor) -> Tensor:
        with self._precision(feature_map.device):
            flat = feature_map.permute(0, 2, 3, 1).flatten(1)
            features: Tensor = F.relu(self.norms[-1](self.linear(flat)))
        return features.float()


CNNS: dict[str, tuple[Sequence[tuple[int, int, int]], int]] = {
    # Mnih et al. 2015, Nature 518, "Methods": 1.69 million parameters with its head on 84x84x4.
    "nature_cnn": ([(32, 8, 4), (64, 4, 2), (64, 3, 1)], 512),
    # Mnih et al. 2013, arXiv:1312.5602, section 4.1: a third of the Nature network's work.
    "nips_cnn": ([(16, 8, 4), (32, 4, 2)], 256),
    # For images of about 42x42 pixels.
    "small_cnn": ([(16, 4, 2), (32, 4, 2)], 256),
}
"""(filters, kernel size, stride) of each convolution, and the width of the fully connected layer."""


class PoolCNN(ImageBackbone):
    """Convolutions that keep the size, each halved by pooling after its nonlinearity, then fully connected layers."""

    def __init__(
        self,
        image_shape: tuple[int, ...],
        convolutions: Sequence[tuple[int, int, int]],
        hidden_sizes: Sequence[int],
        bfloat16: bool = False,
        layer_norm: bool = False,
    ) -> None:
        """Builds the layers.

        Args:
            image_shape: channels, height, width.
            convolutions: (filters, kernel size, padding) of each.
            hidden_sizes: widths of the fully connected layers; the last is the feature size.
            bfloat16: see `CNN`.
            layer_norm: whether each pixel's channels, and each fully connected layer, are normalised before the
                nonlinearity.
        """
        super().__init__()
        planes, *size = image_shape
        self.convolutions, self.linears = nn.ModuleList(), nn.ModuleList()
        for filters, kernel, padding in convolutions:
            self.convolutions.append(nn.Conv2d(planes, filters, kernel, padding=padding))
            size, planes = [(s + 2 * padding - kernel + 1) // 2 for s in size], filters
            if min(size) < 1:
                raise too_small(image_shape)
        width = planes * size[0] * size[1]
        for hidden in hidden_sizes:
            self.linears.append(nn.Linear(width, hidden))
            width = hidden
        widths = [*(filters for filters, _, _ in convolutions), *hidden_sizes]
        self.norms = nn.ModuleList(nn.LayerNorm(n) if layer_norm else nn.Identity() for n in widths)
        self.out_dim = width
        self.computes_bfloat16 = bfloat16
        for layer in (*self.convolutions, *self.linears):
            self.initialise(layer)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def initialise(self, layer: nn.Module) -> None:
        """Draws the initial weights of one layer, in place."""
        raise NotImplementedError

    def nonlinearity(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def pool(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H // 2, W // 2)."""
        raise NotImplementedError

    def feature_map(self, image: Tensor) -> Tensor:
        with self._precision(image.device):
            x = image
            for k, (layer, norm) in enumerate(zip(self.convolutions, self.norms, strict=False)):
                x = first_conv(layer, image) if k == 0 else layer(x)  # type: ignore[arg-type]
                x = self.pool(self.nonlinearity(norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))
        return x

    def read(self, feature_map: Tensor) -> Tensor:
        with self._precision(feature_map.device):
            x = feature_map.permute(0, 2, 3, 1).flatten(1)
            for layer, norm in zip(self.linears, self.norms[len(self.convolutions) :], strict=True):
                x = self.nonlinearity(norm(layer(x)))
        return x.float()


class LeNet(PoolCNN):
    """LeNet-5: 6 and 16 filters of 5 x 5, then 120 and 84 units, each followed by 1.7159 tanh(2/3 x).

    Images are padded by 2 pixels, as the paper pads digits of 28 to 32. Its 120 units, there filters of 5 x 5 on a map
    of that size, read the whole map whatever the image's size.

    Source:
        LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section II.B and appendix A:
        layers, nonlinearity and initial weights, uniform in +-2.4 / fan-in.

    Deviations:
        The second convolution reads all 6 maps (the paper leaves connections out to save work); pooling is a plain
        mean, without weights of its own.
    """

    def __init__(self, image_shape: tuple[int, ...], bfloat16: bool = False, layer_norm: bool = False) -> None:
        super().__init__(image_shape, [(6, 5, 2), (16, 5, 0)], [120, 84], bfloat16, layer_norm)

    def initialise(self, layer: nn.Module) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        bound = 2.4 / layer.weight[0].numel()
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def nonlinearity(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))

    def pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)


class ConvNet(PoolCNN):
    """64 and 128 filters of 3 x 3, each followed by ReLU and a maximum over 2 x 2, then 256 units.

    The plain network of many tutorials; initial weights are those for ReLU of He et al. 2015, arXiv:1502.01852,
    equation 10 (normal, variance 2 / fan-in), biases zero.
    """

    def __init__(self, image_shape: tuple[int, ...], bfloat16: bool = False, layer_norm: bool = False) -> None:
        super().__init__(image_shape, [(64, 3, 1), (128, 3, 1)], [256], bfloat16, layer_norm)

    def initialise(self, layer: nn.Module) -> None:
        he_(layer)

    def nonlinearity(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)


def he_(layer: nn.Module) -> None:
    """In place: normal weights of variance 2 / fan-in, zero biases (He et al. 2015, arXiv:1502.01852, equation 10)."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
