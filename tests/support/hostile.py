"""Text that would steer a terminal, and how to find it in what was printed."""

import unicodedata

HOSTILE = "\x1b[2J\x9b31m\x07\u202e\r"
"""Clears the screen, colours it, rings, writes from right to left, and goes to the line's begin."""
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def unsafe(text: str) -> list[str]:
    """The characters that no output of ours may have, by the table of Unicode."""
    kept = "\n\u200c\u200d"
    return [c for c in text if c not in kept and unicodedata.category(c) in UNSAFE]
