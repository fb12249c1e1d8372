"""Numbers as people read them: so many digits, and no exponent where one would write none."""

_PLAIN = 6
"""By so many powers of ten a number may be larger than its digits tell and is still written out."""


def figure(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """A number to so many digits at least: ``0.0123``, ``12.3``, ``1,230``.

    Args:
        value: The number.
        digits: How many digits it has; a whole number that has more of them has them all.
        sign: Whether a plus stands before what is not negative.
    """
    plus = "+" if sign else ""
    rounded = abs(float(f"{value:.{digits}g}"))
    whole = 10.0**digits <= rounded < 10.0 ** (digits + _PLAIN)
    return f"{value:{plus},.0f}" if whole else f"{value:{plus},.{digits}g}"
