"""Units whose conversion a small model works digit by digit."""

from examples.problems import Unit

UNITS = tuple(
    Unit(*told)
    for told in (
        ("kilometers", "meters", "1000"),
        ("meters", "centimeters", "100"),
        ("kilograms", "grams", "1000"),
        ("tonnes", "kilograms", "1000"),
        ("liters", "milliliters", "1000"),
        ("hours", "minutes", "60"),
        ("minutes", "seconds", "60"),
        ("weeks", "days", "7"),
        ("yards", "feet", "3"),
        ("fathoms", "feet", "6"),
        ("miles", "furlongs", "8"),
        ("gallons", "quarts", "4"),
        ("quarts", "pints", "2"),
        ("pints", "cups", "2"),
        ("dollars", "quarters", "4"),
        ("dimes", "cents", "10"),
        ("nickels", "cents", "5"),
        ("bytes", "bits", "8"),
        ("decades", "years", "10"),
        ("centuries", "years", "100"),
    )
)
"""Units whose conversion needs the product with one digit, and zeros."""

SMALL = tuple(unit for unit in UNITS if int(unit.factor) <= 10)
"""Units whose conversion leaves numbers of at most three digits."""

ZEROS = tuple(unit for unit in UNITS if unit.factor.strip("0") == "1")
"""Units that are converted back by taking zeros away."""

CHAINS = tuple(
    (unit, other) for unit in SMALL for other in SMALL if other.name == unit.other
)
"""Units that are converted one after another."""
