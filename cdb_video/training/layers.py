"""A backbone as a chain of layers, for learning rates that fall towards its input."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from torch import nn


def layer_depths(backbone: nn.Module) -> dict[str, int]:
    """Parameter name -> its layer: 0 next to the input, the highest next to the heads.

    A layer is a block of a chain of blocks (`nn.Sequential`, `nn.ModuleList`), or whatever stands
    before and after a chain, in the order in which the network registers them. Neighbouring module
    lists of one length are pathways beside each other: their i-th blocks are one layer. What
    belongs to no layer, such as a class token, counts as the first. A backbone whose modules do not
    show it says itself: `layers_from_input`, a list of modules a layer.
    """
    depths: dict[str, int] = {}
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    for depth, layer in enumerate(getattr(backbone, "layers_from_input", _layers(backbone))):
        for module in layer:
            depths |= {names[id(parameter)]: depth for parameter in module.parameters()}
    return {name: depths.get(name, 0) for name in names.values()}


def _layers(module: nn.Module) -> Iterator[list[nn.Module]]:
    parts = [child for child in module.children() if _learns(child)]
    if len(parts) == 1 and len(list(module.parameters(recurse=False))) == 0:
        yield from _layers(parts[0])
        return
    for _, neighbours in groupby(enumerate(parts), key=lambda part: _pathway(*part)):
        group = [part for _, part in neighbours]
        if isinstance(group[0], nn.ModuleList) and is_chain(group[0]):
            for blocks in zip(*map(_blocks, group), strict=True):
                yield list(blocks)
        elif type(group[0]) is nn.Sequential and is_chain(group[0]):
            for block in _blocks(group[0]):
                yield from _layers(block) if is_chain(block) else [[block]]
        else:
            yield group


def _pathway(place: int, part: nn.Module) -> tuple[str, int]:
    """The same for neighbours that are module lists of one length, else different."""
    is_list = isinstance(part, nn.ModuleList)
    return ("pathways", len(_blocks(part))) if is_list else ("part", place)


def is_chain(part: nn.Module) -> bool:
    """Whether it is made of blocks, and not, as a stem, of a convolution and a norm."""
    blocks = _blocks(part)
    is_list = isinstance(part, nn.ModuleList) or type(part) is nn.Sequential
    return is_list and bool(blocks) and all(any(True for _ in b.children()) for b in blocks)


def _blocks(part: nn.Module) -> list[nn.Module]:
    return [child for child in part.children() if _learns(child)]


def _learns(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
