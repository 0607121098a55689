"""A random order of millions of clips as a function of the place in it, without an array of their numbers.

The function is a generalised Feistel network (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", method
3) over pairs (l, r) with l < a, r < b, where a and b are nearly equal and a * b is hardly more than the count: in each
round one of the two is moved on by a keyed hash of the other. That is a permutation of the pairs whatever the hash is;
a pair beyond the count is permuted again until it is within (cycle walking), which keeps it a permutation.

Hashes are those of SplitMix64 (Steele, Lea and Flood 2014), in 64-bit arithmetic modulo 2^64.
"""

import math

import numpy as np

# With 4 rounds a Feistel network over an ideal hash is a pseudorandom permutation (Luby and Rackoff 1988); the hash is
# not ideal, so there are twice as many.
ROUNDS = 8
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31


class Permutation:
    """The permutation of 0 ... count - 1 that belongs to (seed, epoch). Calling it with places, an array of integers,
    gives the numbers at these places as int64.
    """

    def __init__(self, count: int, seed: int, epoch: int) -> None:
        self.count = count
        self._left = math.isqrt(count - 1) + 1 if count > 1 else 1
        self._right = -(-count // self._left)
        self._keys = np.random.SeedSequence((seed, epoch)).generate_state(ROUNDS, np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        numbers = self._once(np.asarray(places, np.uint64))
        while (beyond := numbers >= self.count).any():
            numbers[beyond] = self._once(numbers[beyond])
        return numbers.astype(np.int64)

    def _once(self, places: np.ndarray) -> np.ndarray:
        width, height = np.uint64(self._left), np.uint64(self._right)
        left, right = places % width, places // width
        for number, key in enumerate(self._keys):
            if number % 2:
                right = (right + _hashed(left, key) % height) % height
            else:
                left = (left + _hashed(right, key) % width) % width
        return right * width + left


def _hashed(values: np.ndarray, key: np.uint64) -> np.ndarray:
    mixed = values * np.uint64(0x9E3779B97F4A7C15) + key
    for shift, factor in _STEPS:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(_LAST_SHIFT))
