"""A backbone as a chain of layers, for learning rates that fall towards its input."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from torch import nn


def layers_to_heads(backbone: nn.Module) -> dict[str, int]:
    """Parameter name -> how many layers it is away from the heads' layer.

    A layer is a block of a chain of blocks (`nn.Sequential`, `nn.ModuleList`), in the order in
    which the network registers them. Neighbouring module lists of one length are pathways beside
    each other: their i-th blocks are one layer. As in BEiT and VideoMAE, what stands before the
    first block is one layer, a class token and positions included, and what follows the last
    block, such as a norm, is in the heads' layer: 0. A network without blocks has a layer a module.
    A backbone whose modules do not show it says itself: `layers_from_input`, a list of modules a
    layer, of which the last follows the blocks.
    """
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    layers = getattr(backbone, "layers_from_input", None) or _merged(list(_parts(backbone)))
    found = {
        names[id(parameter)]: len(layers) - 1 - place
        for place, layer in enumerate(layers)
        for module in layer
        for parameter in module.parameters()
    }
    return {name: found.get(name, len(layers) - 1) for name in names.values()}


def _merged(parts: list[tuple[list[nn.Module], bool]]) -> list[list[nn.Module]]:
    """Layers of modules: all before the first block, what follows it, and all behind the last."""
    places = [place for place, (_, is_block) in enumerate(parts) if is_block]
    first, last = (places[0], places[-1] + 1) if places else (0, len(parts))
    before, after = (
        [module for modules, _ in ends for module in modules]
        for ends in (parts[:first], parts[last:])
    )
    return [*([before] if before else []), *(modules for modules, _ in parts[first:last]), after]


def _parts(module: nn.Module) -> Iterator[tuple[list[nn.Module], bool]]:
    """Modules beside each other, and whether they are a block of a chain; from the input on."""
    parts = [child for child in module.children() if _learns(child)]
    if len(parts) == 1 and len(list(module.parameters(recurse=False))) == 0:
        yield from _parts(parts[0])
        return
    for _, neighbours in groupby(enumerate(parts), key=lambda part: _pathway(*part)):
        group = [part for _, part in neighbours]
        if isinstance(group[0], nn.ModuleList) and is_chain(group[0]):
            for blocks in zip(*map(_blocks, group), strict=True):
                yield list(blocks), True
        elif type(group[0]) is nn.Sequential and is_chain(group[0]):
            for block in _chained(group[0]):
                yield [block], True
        else:
            yield group, False


def _chained(chain: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a chain, and of the chains in it."""
    for block in _blocks(chain):
        if type(block) is nn.Sequential and is_chain(block):
            yield from _chained(block)
        else:
            yield block


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
