"""Arrays in, arrays out: decode, mix, encode. No paths and no names. The rules are numerics version 1 (docs/numerics.md)."""

VERSION = 1
