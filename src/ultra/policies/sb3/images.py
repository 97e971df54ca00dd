"""Stable-Baselines3's NatureCNN as our convolutional network, and back.

There weights are (filters, inputs, rows, columns) and images come with the channels first, also to the
layer behind the convolutions; here both have rows and columns first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import PolicyError
from ultra.policies import networks
from ultra.policies.networks import Image

EXTRACTORS = ("features_extractor", "pi_features_extractor", "vf_features_extractor")
"""Where one extractor's weights stand: version 2 names those of actor and critic as well, also if they are the same."""
_LAYERS = ("cnn.0", "cnn.2", "cnn.4", "linear.0")


def has_extractor(weights: Iterable[str]) -> bool:
    """Whether names of weights are those of an extractor."""
    return any(name.startswith(tuple(f"{extractor}." for extractor in EXTRACTORS)) for name in weights)


def read_image(path: Path, data: Mapping[str, Any]) -> Image:
    """Height, width and channels of the images that a policy with NatureCNN looks at.

    Raises:
        PolicyError: if they are not bytes, or not scaled to 1 as usual.
    """
    space = data.get("observation_space")
    shape = tuple(space.get("_shape") or ()) if isinstance(space, Mapping) else ()
    if len(shape) != 3 or not isinstance(space, Mapping) or space.get("dtype") != "uint8":
        raise PolicyError(f"{path} has a features extractor for observations of shape {shape}, not images of bytes")
    if (data.get("policy_kwargs") or {}).get("normalize_images", True) is not True:
        raise PolicyError(f"{path} was trained with normalize_images=False, which is not supported: train without")
    channels, height, width = (int(number) for number in shape)
    return height, width, channels


def flattened_image(data: Mapping[str, Any]) -> tuple[Image, bool] | None:
    """Height, width and channels of images that a policy without a features extractor looks at, and whether they are
    scaled to 1; None where observations are no images to Stable-Baselines3.

    It puts the channels of images first, and divides them by 255, also for MlpPolicy.
    """
    space = data.get("observation_space")
    shape = tuple(space.get("_shape") or ()) if isinstance(space, Mapping) else ()
    if len(shape) != 3 or not isinstance(space, Mapping) or space.get("dtype") != "uint8":
        return None
    bounds = [set(re.findall(r"-?\d+", str(space.get(name)))) for name in ("low", "high")]
    if bounds != [{"0"}, {"255"}]:
        return None
    channels, height, width = (int(number) for number in shape)
    scaled = (data.get("policy_kwargs") or {}).get("normalize_images", True) is True
    return (height, width, channels), scaled


def rows_first(weight: NDArray[np.float32], image: Image, scaled: bool) -> NDArray[np.float32]:
    """Weights (inputs, outputs) of a first layer for images as they come: rows first, from 0 to 255."""
    height, width, channels = image
    turned = weight.reshape(channels, height, width, -1).transpose(1, 2, 0, 3).reshape(weight.shape)
    return np.ascontiguousarray(turned / np.float32(255) if scaled else turned)


def read_features(path: Path, weights: Mapping[str, NDArray[Any]], image: Image) -> dict[str, NDArray[np.float32]]:
    """The extractor's arrays under our names.

    Raises:
        PolicyError: if it is not NatureCNN with 512 features, or actor and critic have one each.
    """
    shapes = networks.shapes(image)
    own = {name for name in weights if has_extractor([name])}
    usual = {f"{e}.{layer}.{part}" for e in EXTRACTORS for layer in _LAYERS for part in ("weight", "bias")}
    if not own <= usual:
        raise PolicyError(f"{path} has a features extractor of its own: only NatureCNN can be read")
    arrays: dict[str, NDArray[np.float32]] = {}
    for number, (layer, shape) in enumerate(zip(_LAYERS, shapes, strict=True)):
        for part in ("weight", "bias"):
            copies = [weights[name] for e in EXTRACTORS if (name := f"{e}.{layer}.{part}") in weights]
            if not copies:
                raise PolicyError(f"{path}: its NatureCNN has no {f'{layer}.{part}'!r}: it is damaged")
            if not all(np.array_equal(copies[0], copy) for copy in copies):
                raise PolicyError(
                    f"{path}: actor and critic have a NatureCNN each (share_features_extractor=False), "
                    "which is not supported: train with one"
                )
            wanted = _their_shape(shapes, number) if part == "weight" else shape[-1:]
            if copies[0].shape != wanted:
                raise PolicyError(f"{path}: {layer}.{part} of its NatureCNN is {copies[0].shape}, not {wanted}")
            arrays[f"features.{number}.{part[0]}"] = copies[0]
        arrays[f"features.{number}.w"] = _turned(arrays[f"features.{number}.w"], shapes, number)
    return arrays


def write_features(flat: Mapping[str, NDArray[Any]], image: Image) -> dict[str, NDArray[Any]]:
    """Our layers under Stable-Baselines3's names."""
    shapes = networks.shapes(image)
    arrays: dict[str, NDArray[Any]] = {}
    for number, layer in enumerate(_LAYERS):
        weight = flat[f"features.{number}.w"]
        if number == len(_LAYERS) - 1:
            weight = weight.reshape(_grid(shapes))
        weight = np.ascontiguousarray(weight.transpose(3, 2, 0, 1)).reshape(_their_shape(shapes, number))
        for extractor in EXTRACTORS:
            arrays[f"{extractor}.{layer}.weight"] = weight
            arrays[f"{extractor}.{layer}.bias"] = flat[f"features.{number}.b"]
    return arrays


def _grid(shapes: list[tuple[int, ...]]) -> tuple[int, int, int, int]:
    """Rows, columns, filters and outputs of the layer behind the convolutions, whose images are square."""
    filters, (inputs, outputs) = shapes[-2][-1], shapes[-1]
    side = round((inputs // filters) ** 0.5)
    return side, side, filters, outputs


def _their_shape(shapes: list[tuple[int, ...]], number: int) -> tuple[int, ...]:
    """A layer's weights as torch has them."""
    shape = shapes[number]
    return shape[::-1] if len(shape) == 2 else (shape[3], shape[2], *shape[:2])


def _turned(weight: NDArray[np.float32], shapes: list[tuple[int, ...]], number: int) -> NDArray[np.float32]:
    """Torch's weights as ours."""
    if weight.ndim == 2:
        rows, columns, filters, outputs = _grid(shapes)
        weight = weight.reshape(outputs, filters, rows, columns)
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(shapes[number])
