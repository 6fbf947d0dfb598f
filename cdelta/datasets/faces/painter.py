"""The painter: attributes and nuisances become a picture, by layers of smooth shapes."""

import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from cdelta import _check
from cdelta.datasets.faces.structure import ATTRIBUTES

NUISANCES = ("background", "clothes", "eye_colour", "hair_length", "turn", "tilt")
# of an edge, in half widths of the picture: about one pixel of 64 from 10 % to 90 %
SOFTNESS = 0.0095

# of a face: what is on both is painted at once, x outwards
SIDES = np.array([-1, 1], np.float32).reshape(2, 1, 1)

Layer = tuple[Array | np.ndarray, Array]  # a colour [3] and its opacity [h, w], or [sides, h, w]


def render(
    attributes: Float[ArrayLike, " attributes"],
    nuisances: Float[ArrayLike, " nuisances"] | None = None,
    height: int = 64,
    width: int = 64,
) -> Float[Array, "{height} {width} 3"]:
    """A portrait in [-1, 1], channels last, a smooth function of all that it shows.

    ``attributes``: one number for each of :data:`ATTRIBUTES`, of order one; 0 is the middle and the
    sign is the label. ``nuisances``: likewise for :data:`NUISANCES`, 0 when left out. The picture
    is the square [-1, 1]² at any resolution; one that is higher than wide shows more above and
    below at the same scale.

    Raises ValueError when a shape is wrong, or height or width not positive.
    """
    height, width = _check.count("height", height), _check.count("width", width)
    attributes = _check.as_single("attributes", attributes)
    if nuisances is None:
        nuisances = jnp.zeros(len(NUISANCES), attributes.dtype)
    nuisances = _check.as_single("nuisances", nuisances)
    for name, values, names in (
        ("attributes", attributes, ATTRIBUTES),
        ("nuisances", nuisances, NUISANCES),
    ):
        of = f", one number for each of faces.{name.upper()}"
        _check.shape(name, values, (len(names),), of)
    return picture(jnp.concatenate([attributes, nuisances]), height, width)


@functools.partial(jax.jit, static_argnums=(1, 2))
def picture(p: Array, height: int, width: int) -> Array:
    """``[attributes and nuisances] -> [height, width, 3]`` in [-1, 1]."""
    # colours are written in single precision and take on the picture's, whatever JAX is told of
    # promotion
    with jax.numpy_dtype_promotion("standard"):
        return _painted(p, height, width)


def _painted(p: Array, height: int, width: int) -> Array:
    span = jnp.arange(height, dtype=p.dtype), jnp.arange(width, dtype=p.dtype)
    y, x = ((2 * s + 1 - size) / width for s, size in zip(span, (height, width), strict=True))
    x, y = jnp.meshgrid(x, y)
    p = dict(zip(ATTRIBUTES + NUISANCES, p, strict=True))
    # the painter's algorithm; as a scan it compiles to few kernels, and its derivatives are fast
    layers = [
        (jnp.asarray(c, x.dtype), sheet)
        for c, o in _layers(p, x, y)
        for sheet in o.reshape(-1, height, width)
    ]
    colours, opacities = map(jnp.stack, zip(*layers, strict=True))
    image, _ = jax.lax.scan(
        lambda image, layer: (_over(image, *layer), None), _backdrop(p, x, y), (colours, opacities)
    )
    return 2 * image - 1


@functools.partial(jax.jit, static_argnums=(1, 2))
def pictures(p: Array, height: int, width: int) -> Array:
    """``[n, attributes and nuisances] -> [n, height, width, 3]``, one after the other: a picture
    stays in the processor's cache, 4 times faster than ``vmap``."""
    return jax.lax.map(lambda row: picture(row, height, width), p)


def _over(image: Array, colour: Array | np.ndarray, opacity: Array) -> Array:
    return image + opacity[..., None] * (colour - image)


def _layers(p: Mapping[str, Array], x: Array, y: Array) -> Iterator[Layer]:
    x, y = x / 1.15, y / 1.15
    angle = 0.06 * jnp.tanh(p["tilt"])
    c, s = jnp.cos(angle), jnp.sin(angle)
    x, y = c * x + s * (y - 0.6), c * (y - 0.6) - s * x + 0.6  # the head leans about the neck
    skin, hair = _skin(p), _hair_colour(p)
    yield from _hair_behind(p, x, y, hair)
    yield from _neck(p, x, y, skin)
    face = _inside(_outline(p, x, y))
    yield from _head(x, y, skin, face)
    # the face turns: what is on it moves, its outline hardly
    front = x - 0.06 * jnp.tanh(p["turn"])
    yield from _age(p, front, y, skin)
    yield from _cheeks(p, front, y, face)
    yield from _nose(p, front, y, skin)
    yield from _mouth(p, front, y, skin)
    yield from _eyes(p, SIDES * front - 0.225, y + 0.03, skin, hair)
    yield from _hair_front(p, x, y, hair)
    yield from _glasses(p, front, y)


def _rgb(*values: float) -> np.ndarray:
    return np.array(values, np.float32)  # takes on the picture's precision


def _mix(a: ArrayLike, b: ArrayLike, share: ArrayLike) -> Array:
    return a + share * (b - a)


WHITE = _rgb(1.0, 1.0, 0.97)


def _abs(value: Array) -> Array:
    """Without the kink: a shape's two sides meet smoothly."""
    return jnp.sqrt(value**2 + (SOFTNESS / 2) ** 2)


def _positive(value: Array) -> Array:
    """The part above 0, without the kink."""
    return (value + jnp.sqrt(value**2 + SOFTNESS**2)) / 2


def _inside(distance: Array, softness: float = SOFTNESS) -> Array:
    """Opacity of a shape from its signed distance (negative inside)."""
    return jax.nn.sigmoid(-distance / softness)


def _ellipse(x: Array, y: Array, rx: ArrayLike, ry: ArrayLike, power: float = 2.0) -> Array:
    """Signed distance, to first order, from a (super)ellipse about the origin: (q - 1)/|grad q|, q
    homogeneous."""
    u, v = jnp.sqrt((x / rx) ** 2 + 1e-6), jnp.sqrt((y / ry) ** 2 + 1e-6)
    q = (u**power + v**power) ** (1 / power)
    slope = q ** (1 - power) * jnp.sqrt((u ** (power - 1) / rx) ** 2 + (v ** (power - 1) / ry) ** 2)
    return (q - 1) / slope


def _bump(x: Array, y: Array, rx: ArrayLike, ry: ArrayLike) -> Array:
    return jnp.exp(-0.5 * ((x / rx) ** 2 + (y / ry) ** 2))


def _between(upper: Array, lower: Array, y: Array, softness: float = SOFTNESS) -> Array:
    """Opacity of what lies below one curve and above another."""
    return _inside(upper - y, softness) * _inside(y - lower, softness)


def _stroke(x: Array, y: Array, curve: Array, reach: ArrayLike, thickness: ArrayLike) -> Array:
    """Opacity of a pen line along a curve y(x), thinning out towards |x| = reach."""
    taper = thickness * (1 - (x / reach) ** 2)
    return _inside(_abs(y - curve) - taper) * _inside(_abs(x) - reach)


def _level(value: Array, steepness: float = 1.2) -> Array:
    """An attribute on [0, 1]."""
    return jax.nn.sigmoid(steepness * value)


def _ramp(share: Array, first: np.ndarray, middle: np.ndarray, last: np.ndarray) -> Array:
    """Colours along a quadratic curve from first to last, drawn to the middle one."""
    return (1 - share) ** 2 * first + 2 * share * (1 - share) * middle + share**2 * last


# ---------------------------------------------------------------------------------------- the parts


def _hue(angle: ArrayLike, value: float, saturation: float) -> Array:
    return value + saturation * jnp.cos(angle + _rgb(0.0, -2.1, 2.1))


def _skin(p):
    return _ramp(
        _level(p["Pale_Skin"], 1.0),
        _rgb(0.46, 0.28, 0.2),
        _rgb(0.9, 0.62, 0.46),
        _rgb(1.0, 0.89, 0.83),
    )


def _hair_colour(p):
    """From black by brown to blond; grey with age."""
    colour = _ramp(
        _level(p["Blond_Hair"], 1.1),
        _rgb(0.07, 0.06, 0.09),
        _rgb(0.42, 0.22, 0.1),
        _rgb(1.0, 0.84, 0.5),
    )
    return _mix(colour, _rgb(0.74, 0.74, 0.77), 0.9 * _level(-p["Young"] - 1, 2.2))


def _backdrop(p, x, y):
    hue = 3.6 + 1.3 * p["background"]
    light, dark = _hue(hue, 0.84, 0.1), _hue(hue + 0.5, 0.66, 0.13)
    field = _mix(light, dark, jax.nn.sigmoid(2.2 * y + 1.2 * x)[..., None])
    return _over(field, WHITE, 0.25 * _bump(x + 0.45, y + 0.6, 0.5, 0.5))


def _hair_behind(p, x, y, hair):
    end = _mix(0.2, 1.0, _level(p["hair_length"], 1.0))
    crown = _ellipse(x, y + 0.2, 0.61, 0.62)
    width = 0.56 + 0.06 * jax.nn.sigmoid(6 * (y - 0.2))
    fall = _ellipse(x, y - (end - 0.35) / 2, width, (end + 0.35) / 2, 4.0)
    # their smooth union
    yield 0.72 * hair, _inside(-0.04 * jnp.logaddexp(-crown / 0.04, -fall / 0.04))


def _neck(p, x, y, skin):
    yield _hue(1.0 + 1.4 * p["clothes"], 0.5, 0.22), _inside(_ellipse(x, y - 1.42, 0.95, 0.68, 2.6))
    column = _inside(_abs(x) - 0.19 - 0.25 * jax.nn.sigmoid((y - 1.0) / 0.06)) * _inside(0.3 - y)
    neck = column * _inside(_ellipse(x, y - 0.7, 0.34, 0.36))
    yield 0.9 * skin, neck
    yield 0.68 * skin, 0.8 * neck * _inside(y - 0.86 + 0.8 * x**2, 0.03)  # the chin's shadow


def _outline(p, x, y):
    chubby = jnp.tanh(0.6 * p["Chubby"])
    jaw = jax.nn.sigmoid((y - 0.45) / 0.16)
    width = 0.475 + 0.03 * chubby - (0.085 - 0.095 * chubby) * jaw
    return _ellipse(x, y - 0.06, width, 0.72 + 0.01 * chubby, 2.25)


def _head(x, y, skin, face):
    yield 0.9 * skin, _inside(_ellipse(SIDES * x - 0.5, y - 0.05, 0.075, 0.125))  # the ears
    yield 0.75 * skin, 0.6 * _inside(_ellipse(SIDES * x - 0.505, y - 0.05, 0.03, 0.07))
    yield skin, face
    # light from the upper left: the far side and the jaw fall into shade
    yield 0.78 * skin, 0.55 * face * jax.nn.sigmoid((x + 0.25 * y - 0.36) / 0.07)
    yield 0.8 * skin, 0.4 * face * jax.nn.sigmoid((y - 0.7) / 0.05)
    yield _mix(skin, WHITE, 0.5), 0.45 * face * _bump(x + 0.1, y + 0.32, 0.22, 0.14)


def _age(p, x, y, skin):
    old, line = _level(-p["Young"] - 0.9, 2.2), 0.55 * skin
    for level in (-0.42, -0.33):
        yield line, 0.4 * old * _stroke(x, y, level + 0.25 * x**2, 0.25, 0.018)
    x = SIDES * x
    fold = 0.16 + 0.3 * (y - 0.24) + (y - 0.24) ** 2
    yield line, 0.5 * old * _stroke(y - 0.34, x, fold, 0.11, 0.017)  # beside the nose
    # under the eyes
    yield line, 0.55 * old * _stroke(x - 0.225, y, 0.125 - 1.8 * (x - 0.225) ** 2, 0.13, 0.016)


def _cheeks(p, x, y, face):
    rosy = 0.95 * _level(p["Rosy_Cheeks"] - 0.4)
    yield _rgb(0.96, 0.28, 0.35), rosy * face * _bump(SIDES * x - 0.285, y - 0.245, 0.115, 0.09)


def _nose(p, x, y, skin):
    """Short, wide and round, or long, narrow and pointed: a shaded side, the lower edge, nostrils,
    a lit tip."""
    pointy = _level(p["Pointy_Nose"])
    half, tip = _mix(0.15, 0.065, pointy), _mix(0.18, 0.305, pointy)
    depth = _mix(0.05, 0.12, pointy)
    side = half * _mix(0.3, 1.0, (_positive(y + 0.1) / (tip + 0.1)) ** 2)
    bridge = jax.nn.sigmoid((y + 0.08) / 0.04) * _inside(y - tip + 0.03, 0.02)
    yield 0.8 * skin, 0.6 * bridge * _inside(_abs(x - 0.6 * side) - 0.4 * side, 0.016)
    round_ = _mix(1.6, 0.05, pointy)  # a hyperbola, from nearly a parabola to nearly a V
    bend = (jnp.sqrt((x / half) ** 2 + round_**2) - round_) / (jnp.sqrt(1 + round_**2) - round_)
    yield 0.58 * skin, 0.85 * _stroke(x, y, tip - depth * bend, 1.15 * half, 0.021)
    nostrils = _inside(_ellipse(SIDES * x - 0.5 * half, y - tip + 0.012, 0.33 * half, 0.018))
    yield 0.3 * skin, 0.7 * _mix(1.0, 0.2, pointy) * nostrils
    yield WHITE, 0.52 * _bump(x + 0.015, y - tip + 0.075, _mix(0.04, 0.018, pointy), 0.045)


def _mouth(p, x, y, skin):
    smile = jnp.tanh(0.7 * (p["Smiling"] + 0.35))
    full = _mix(0.55, 2.3, _level(p["Big_Lips"], 1.0))
    half = 0.2 + 0.05 * smile
    arch = 1 - (x / half) ** 2
    line = 0.485 + _mix(0.065, 0.095, _level(p["Smiling"])) * smile * (arch - 0.5)
    gap = 0.075 * jax.nn.softplus(4 * (smile - 0.35)) / 2.6 * arch
    dip = 1 - 0.35 * jnp.exp(-((x / half / 0.22) ** 2))
    upper, lower = line - 0.034 * full * arch * dip, line + gap + 0.045 * full * arch
    bare, lipstick = _mix(skin, _rgb(0.8, 0.3, 0.32), 0.5), _rgb(0.78, 0.03, 0.17)
    lips = _mix(bare, lipstick, _level(p["Wearing_Lipstick"], 1.3))
    yield 0.8 * skin, 0.45 * _bump(x, y - lower - 0.035, 0.1, 0.022)  # shadow of the lower lip
    yield lips, _between(upper, lower, y) * _inside(_abs(x) - half)
    shine = _bump(x + 0.02, y - line - gap - 0.028 * full, 0.07, 0.012 * full)
    yield _mix(lips, WHITE, 0.55), 0.5 * shine
    yield _rgb(0.35, 0.07, 0.09), 0.8 * _stroke(x, y, line + gap / 2, 1.08 * half, 0.011)
    yield WHITE, _between(line, line + gap - 0.01, y) * _inside(_abs(x) - 0.9 * half)  # teeth


def _eyes(p, x, y, skin, hair):
    """Both eyes and brows, each about the eye's centre, x outwards."""
    makeup = _level(p["Heavy_Makeup"] - 0.4, 1.3)
    opening = _mix(1.4, 0.42, _level(p["Narrow_Eyes"], 0.9))
    opening = opening * _mix(0.9, 1.05, _level(p["Young"], 1.0))
    half, lift = 0.135, 0.03 * x
    arch = 1 - (x / half) ** 2
    upper, lower = -0.085 * opening * arch - lift, 0.055 * opening * arch - lift
    lid = _positive(arch)

    shadow = _between(upper - 0.11 * lid - 0.01, lower, y, 0.02)
    shadow = shadow * _inside(_abs(x - 0.02) - half - 0.02, 0.02)
    yield _rgb(0.4, 0.16, 0.5), 0.85 * makeup * shadow
    ball = _between(upper, lower, y) * _inside(_abs(x) - half)
    yield _rgb(0.99, 0.99, 1.0), ball
    iris = _ramp(
        _level(p["eye_colour"], 1.3),
        _rgb(0.25, 0.12, 0.05),
        _rgb(0.25, 0.4, 0.2),
        _rgb(0.25, 0.55, 0.85),
    )
    for colour, radius in ((0.55 * iris, 0.068), (iris, 0.052), (0.04 * WHITE, 0.028)):
        yield colour, ball * _inside(_ellipse(x, y, radius, radius))
    yield 0.5 * WHITE, 0.35 * ball * _bump(x, y - upper, 1.0, 0.02)  # the lid's shadow
    yield WHITE, 0.95 * ball * _inside(_ellipse(x + SIDES * 0.02, y + 0.025, 0.017, 0.017))

    lash = _mix(0.5 * skin, _rgb(0.06, 0.03, 0.06), 0.6 + 0.4 * makeup)
    reach, thickness = half + _mix(0.01, 0.05, makeup), _mix(0.011, 0.026, makeup)
    # along the lid, and out into a wing
    curve = -0.085 * opening * lid - 0.6 * _positive(x - half) - lift
    line = _inside(_abs(y - curve) - thickness * (1 - (x / reach) ** 4)) * _inside(_abs(x) - reach)
    yield lash, line
    below = _stroke(x, y, 0.055 * opening * lid - lift, half, 0.01)
    yield lash, 0.5 * _mix(0.5, 1.0, makeup) * below

    arched = jnp.tanh(0.6 * p["Arched_Eyebrows"])
    brow = -0.205 - 0.05 * arched + (1.9 + 2.6 * arched) * (x - 0.02 - 0.03 * arched) ** 2
    yield 0.6 * hair, 0.9 * _stroke(x - 0.01, y, brow, 0.165, 0.024)


def _hair_front(p, x, y, hair):
    """Swept aside from a parting, or bangs down to the brows; strands, and a band of light."""
    bangs = _level(p["Bangs"], 1.2)
    part = x + 0.12
    swept = -0.5 + 1.5 * part**2 - 0.25 * part
    fringe = -0.215 + 0.012 * jnp.cos(34 * x) + 0.12 * x**2
    above = _inside(y - _mix(swept, fringe, bangs))
    temple = _inside(0.405 + 0.4 * (y + 0.1) ** 2 - _abs(x))
    temple = temple * _inside(y - _mix(0.1, 0.2, bangs), 0.03)
    shape = _inside(_ellipse(x, y + 0.2, 0.585, 0.6)) * (1 - (1 - above) * (1 - temple))
    yield hair, shape
    yield 0.72 * hair, 0.3 * shape * (0.5 + 0.5 * jnp.cos(32 * part / (1.5 - y)))
    ring = jnp.sqrt((x + 0.05) ** 2 + (y + 0.05) ** 2 + 1e-6) - 0.58
    shine = jnp.exp(-((ring / 0.05) ** 2) - 0.5 * ((x + 0.15) / 0.22) ** 2)
    yield _mix(hair, WHITE, 0.55), 0.6 * shape * shine


def _glasses(p, x, y):
    worn = _level(p["Eyeglasses"] - 0.3, 2.0)
    frame = _rgb(0.1, 0.08, 0.12)
    u = SIDES * x
    rims = _ellipse(u - 0.225, y + 0.02, 0.185, 0.155, 3.0)
    yield _rgb(0.85, 0.93, 1.0), 0.22 * worn * _inside(rims)
    yield frame, worn * _inside(_abs(rims) - 0.02 * worn)
    # the temples
    yield frame, worn * _inside(_abs(y + 0.07) - 0.016) * _inside(0.41 - u) * _inside(u - 0.5)
    # the bridge
    yield frame, worn * _inside(_abs(y + 0.06 - 2 * x**2) - 0.016) * _inside(_abs(x) - 0.045)
