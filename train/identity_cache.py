"""A cache of what a frozen ID encoder returns for photographs."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from magicedit.pipelines.reference_attention import Features

logger = logging.getLogger(__name__)

Identity = tuple[Features | None, torch.Tensor]  # as `encode_identity` returns it


class IdentityCache:
    """Identities by record number; evicts the least recently used first.

    Every photograph is encoded alone, cached or not: rounding depends on the batch size, so that a resumed
    run, which starts with an empty cache, would differ from an uninterrupted one.

    Args:
        encode: latents (1, channels, height, width) -> result of `encode_identity`.
        capacity: bytes, in the encoder's dtype, on its device.
        photographs: of the dataset, to log how many of them fit.
    """

    def __init__(self, encode: Callable[[torch.Tensor], Identity], capacity: int, photographs: int):
        self.encode, self.capacity, self.photographs = encode, capacity, photographs
        self.hits = self.misses = self._bytes = 0
        self._announced = False
        self._entries: OrderedDict[int, Identity] = OrderedDict()

    def identities(self, records: Sequence[int | None], latents: torch.Tensor) -> Identity:
        """Returns a batch's identities: features (batch, tokens, channels) by layer name, or None, and the
        cross-attention's tokens (batch, tokens, channels), or (1, tokens, channels) if they are the prompt's.

        records: numbers of the photographs; None for a modified picture. latents: (batch, channels, height,
        width) of the same.
        """
        rows = [self._identity(record, latents[row : row + 1]) for row, record in enumerate(records)]
        features, tokens = zip(*rows, strict=True)
        shared = all(x is tokens[0] for x in tokens)
        joined_tokens = tokens[0] if shared else torch.cat(tokens)
        if features[0] is None:
            return None, joined_tokens
        return {layer: torch.cat([row[layer] for row in features]) for layer in features[0]}, joined_tokens

    def _identity(self, record: int | None, latents: torch.Tensor) -> Identity:
        if record in self._entries:
            self.hits += 1
            self._entries.move_to_end(record)
            return self._entries[record]
        self.misses += 1
        identity = self.encode(latents)
        if record is None:
            return identity
        size = _bytes(identity)
        if not self._announced:
            room = min(self.capacity // size, self.photographs)
            logger.info(
                "reference features: %.3g MB a photograph, --reference_cache_gb has room for %d of %d",
                *(size / 1e6, room, self.photographs),
            )
            self._announced = True
        if size <= self.capacity:
            while self._bytes + size > self.capacity:
                self._bytes -= _bytes(self._entries.popitem(last=False)[1])
            self._entries[record] = identity
            self._bytes += size
        return identity


def _bytes(identity: Identity) -> int:
    features, tokens = identity
    return tokens.nbytes + sum(x.nbytes for x in (features or {}).values())
