"""JAX's random numbers in PyTorch: Threefry keys, bits, uniform and normal numbers, bit for bit.

Keys are int64[...,2]; all axes but the last are a batch. The bits equal those of JAX on any device
(with jax_threefry_partitionable, its default). Normal numbers equal those of its CPU backend, which
fuses each multiplication with the addition that follows, if the processor can; so does `_fma`.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WORD = 2**32 - 1
ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)


def key(seed: int) -> Tensor:
    """The key of a seed, 0 <= seed < 2 ** 64."""
    return torch.tensor([seed >> 32, seed & WORD])


def fold_in(key: Tensor, data: Tensor | int) -> Tensor:
    """key[...,2], data[...] -> key[...,2]; both broadcast, and data count modulo 2 ** 32."""
    data = torch.as_tensor(data, dtype=torch.int64) & WORD
    return torch.stack(_threefry(key, torch.zeros_like(data), data), dim=-1)


def split(key: Tensor, num: int = 2) -> Tensor:
    """key[...,2] -> keys[...,num,2]."""
    return fold_in(key[..., None, :], torch.arange(num))


def random_bits(key: Tensor, shape: Sequence[int], width: int = 32) -> Tensor:
    """key[...,2] -> int64[...,*shape]: 32 random bits, or 64 in two's complement."""
    count = torch.arange(math.prod(shape))
    high, low = _threefry(key[..., None, :], count >> 32, count & WORD)
    bits = high ^ low if width == 32 else high << 32 | low
    return bits.reshape((*key.shape[:-1], *shape))


def uniform(
    key: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """key[...,2] -> float32 or float64 numbers[...,*shape] in [low, high)."""
    width, mantissa = {torch.float32: (32, 23), torch.float64: (64, 52)}[dtype]
    integers = random_bits(key, shape, width) >> (width - mantissa) & (2**mantissa - 1)
    lowest, highest = torch.tensor([low, high], dtype=dtype)
    numbers = _fma(integers.to(dtype) / 2**mantissa, highest - lowest, lowest)
    return numbers.maximum(lowest)


def normal(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """key[...,2] -> float32 or float64 standard normal numbers[...,*shape]."""
    low = torch.tensor(-1.0, dtype=dtype).nextafter(torch.tensor(0.0, dtype=dtype)).item()
    return erf_inv(uniform(key, shape, dtype, low, 1.0)) * math.sqrt(2)


def _threefry(key: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypt the words x, y with Threefry-2x32, 20 rounds (Salmon et al. 2011)."""
    words = key[..., 0], key[..., 1], key[..., 0] ^ key[..., 1] ^ 0x1BD11BDA
    x, y = x + words[0] & WORD, y + words[1] & WORD
    for i in range(5):
        for rotation in ROTATIONS[i % 2]:
            x = x + y & WORD
            y = (y << rotation | y >> (32 - rotation)) & WORD ^ x
        x, y = x + words[(i + 1) % 3] & WORD, y + words[(i + 2) % 3] + i + 1 & WORD
    return x, y


def erf_inv(x: Tensor) -> Tensor:
    """The inverse error function on (-1, 1) (Giles 2010), rounded like XLA's."""
    w = -_log1p(-x * x)
    shift, coefficients = CENTRE[x.dtype]
    factor = _polynomial(w - shift, coefficients)
    for start, shift, coefficients in TAILS[x.dtype]:
        tail = w >= start
        factor[tail] = _polynomial(_each(math.sqrt, w[tail]) - shift, coefficients)
    return factor * x


def _log1p(x: Tensor) -> Tensor:
    """log(1 + x) for x > -1: a rational function near 0 (Cephes)."""
    ratio = _polynomial(x, LOG1P_ABOVE) / _polynomial(x, LOG1P_BELOW)
    square = x * x
    near = x + _fma(square, -0.5, x * square * ratio)
    # In float64, XLA calls the logarithm of the C library.
    far = _log_float32(1 + x) if x.dtype == torch.float32 else _each(math.log, 1 + x)
    return torch.where(x.abs() < 0.41421356237309503, near, far)


def _log_float32(x: Tensor) -> Tensor:
    """log(x) for float32 x > 0 (Cephes), from x = m * 2 ** e with m close to 1."""
    m, exponent = torch.frexp(x)
    small = m < 0.70710677
    z = torch.where(small, m - 1 + m, m - 1)
    e = (exponent - small.int()).float()
    square, cube = z * z, z * z * z
    a, b, c = (_polynomial(z, coefficients) for coefficients in LOG)
    y = _fma(_fma(_fma(a, cube, b), cube, c), cube, e * -0.00021219444)
    return _fma(e, 0.6933594, _fma(square, -0.5, z) + y)


def _each(function: Callable[[float], float], x: Tensor) -> Tensor:
    """A function of the C library; PyTorch's logarithm and root may differ in the last bit."""
    return x.to(torch.float64, copy=True).apply_(function).to(x.dtype)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """The polynomial with these coefficients, highest power first."""
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = _fma(total, x, coefficient)
    return total


def _fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a * b + c, rounded once."""
    b, c = (torch.as_tensor(value, dtype=a.dtype) for value in (b, c))
    if a.dtype == torch.float32:
        return (a.double() * b.double() + c.double()).float()  # the product is exact
    product = a * b  # plus `lost`, its rounding error (Dekker 1971)
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    lost = (a_high * b_high - product) + a_high * b_low + a_low * b_high + a_low * b_low
    total = product + c  # plus its rounding error (Knuth)
    rest = total - product
    return total + ((product - (total - rest)) + (c - rest) + lost)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as the sum of two 26-bit numbers (Veltkamp)."""
    scaled = x * (2**27 + 1)
    high = scaled - (scaled - x)
    return high, x - high


def _parse(numbers: str) -> list[float]:
    """Coefficients of a polynomial, highest power first."""
    return [float(number) for number in numbers.split()]


LOG1P_ABOVE = _parse(
    """
    4.52700008624452e-05 0.49854102823193375 6.578732594206104 29.911919328553072
    60.94966798098779 57.11296359058554 20.039553499201283
    """
)
LOG1P_BELOW = _parse(
    """
    1.0 15.062909083469192 83.04756596796722 221.76239823732857 309.09872225312057
    216.42788614495947 60.11866049760384
    """
)
LOG = (
    _parse("0.070376836 -0.1151461 0.116769984"),
    _parse("-0.12420141 0.14249323 -0.16668057"),
    _parse("0.20000714 -0.24999994 0.3333333"),
)
CENTRE_32 = _parse(
    """
    2.8102264e-08 3.4327394e-07 -3.5233877e-06 -4.3915065e-06 0.00021858087 -0.001253725
    -0.0041776816 0.24664073 1.5014094
    """
)
TAIL_32 = _parse(
    """
    -0.00020021426 0.00010095056 0.0013493432 -0.0036734284 0.0057395077 -0.0076224613 0.0094388705
    1.001674 2.8329768
    """
)
CENTRE_64 = _parse(
    """
    -3.64441206401782e-21 -1.6850591381820166e-19 1.28584807152564e-18 1.1157877678025181e-17
    -1.333171662854621e-16 2.0972767875968562e-17 6.637638134358324e-15 -4.054566272975207e-14
    -8.151934197605472e-14 2.6335093153082323e-12 -1.2975133253453532e-11 -5.415412054294628e-11
    1.0512122733215323e-09 -4.112633980346984e-09 -2.9070369957882005e-08 4.2347877827932404e-07
    -1.3654692000834679e-06 -1.3882523362786469e-05 0.00018673420803405714 -0.000740702534166267
    -0.006033670871430149 0.24015818242558962 1.6536545626831027
    """
)
TAIL_64 = _parse(
    """
    2.2137376921775787e-09 9.075656193888539e-08 -2.7517406297064545e-07 1.8239629214389228e-08
    1.5027403968909828e-06 -4.013867526981546e-06 2.9234449089955446e-06 1.2475304481671779e-05
    -4.7318229009055734e-05 6.828485145957318e-05 2.4031110387097894e-05 -0.0003550375203628475
    0.0009532893797373805 -0.0016882755560235047 0.002491442096107851 -0.003751208507569241
    0.005370914553590064 1.0052589676941592 3.0838856104922208
    """
)
FAR_TAIL_64 = _parse(
    """
    -2.7109920616438573e-11 -2.555641816996525e-10 1.5076572693500548e-09 -3.789465440126737e-09
    7.61570120807834e-09 -1.496002662714924e-08 2.914795345090108e-08 -6.771199775845234e-08
    2.2900482228026655e-07 -9.9298272942317e-07 4.526062597223154e-06 -1.968177810553167e-05
    7.599527703001776e-05 -0.00021503011930044477 -0.00013871931833623122 1.0103004648645344
    4.849906401408584
    """
)
# erf_inv(x) / x is a polynomial in w - shift, where w = -log(1 - x**2): (shift, coefficients).
CENTRE = {torch.float32: (2.5, CENTRE_32), torch.float64: (3.125, CENTRE_64)}
# For larger w it is a polynomial in sqrt(w) - shift: (smallest w, shift, coefficients).
TAILS = {
    torch.float32: [(5.0, 3.0, TAIL_32)],
    torch.float64: [(6.25, 3.25, TAIL_64), (16.0, 5.0, FAR_TAIL_64)],
}
