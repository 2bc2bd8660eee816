"""What an API key looks like, how it is kept, and how it is kept out of sight.

A key is 256 random bits, made here and nowhere else, so no key is short and none was chosen by a person. That is why a
fast hash keeps it: there is no list of likely keys to try against SHA-256, while a slow password hash would let each of
a stranger's wrong keys cost the service a tenth of a second. Who may do what with a key is in
`service.inference.access`.
"""

import hashlib
import re
import secrets
from typing import Final

PREFIX: Final = "hpk_"
"""How every key begins, so that people and secret scanners know one when they see it."""

_RANDOM_BYTES: Final = 32
_FORM: Final = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
_LOOKS_LIKE_ONE: Final = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{16,}}")
_HIDDEN: Final = "[key]"


def new_key() -> str:
    """A key that nobody has: the prefix and 43 characters of base64 for URLs."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def is_key(text: str) -> bool:
    """Whether a text has the form of a key. Anything else is none, and is not worth a hash."""
    return _FORM.fullmatch(text) is not None


def digest_of(key: str) -> bytes:
    """What is kept of a key: its SHA-256, 32 bytes."""
    return hashlib.sha256(key.encode()).digest()


def without_keys(text: str) -> str:
    """The text with whatever looks like a key replaced, for logs and answers that repeat a stranger's words."""
    return _LOOKS_LIKE_ONE.sub(_HIDDEN, text)
