"""Text for terminals and logs: it cannot steer them, any encoding takes it, and a stream that fails has a name.

Every line of a command passes `write` or an `Output`, every row of rich `spaced`. It uses no rich.
"""

import errno
import io
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO, cast

UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of characters that steer a terminal, change the order of a line, or cannot be encoded."""
JOINERS = "\u200c\u200d"
"""Of category Cf, but harmless: emoji and several scripts need them."""
ASCII = str.maketrans({
    "…": "..", "×": "x", "≈": "~", "→": "->", "·": "-", "°": " ", "—": "-", "–": "-",
    "✓": "+", "▲": "^", "✗": "x", "‘": "'", "’": "'", "“": '"', "”": '"', "≤": "<=", "≥": ">=", "±": "+-",
})  # fmt: skip
STANDARD_OUTPUT = "standard output"


def is_safe(character: str) -> bool:
    """Whether a terminal shows the character and does nothing else."""
    return (
        character.isprintable()
        or character in JOINERS
        or unicodedata.category(character) not in UNSAFE
    )


def python_escape(character: str) -> str:
    r"""`\x1b`, `\u202e`: as Python writes it."""
    return ascii(character)[1:-1]


def toml_escape(character: str) -> str:
    r"""`\u001b`: as TOML and JSON write it, in quotes."""
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def escaped(text: str, *, keep: str = "\n", escape: Callable[[str], str] = python_escape) -> str:
    """The text with unsafe characters written out, those of `keep` aside."""
    if text.isprintable():
        return text
    return "".join(c if c in keep or is_safe(c) else escape(c) for c in text)


def spaced(text: str) -> str:
    """The text with a space for each unsafe character: as many characters as before."""
    return text if text.isprintable() else "".join(c if is_safe(c) else " " for c in text)


def encodable(text: str, encoding: str) -> str:
    """The text, or where the encoding cannot write it: our glyphs in ASCII, other characters as `?`."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(ASCII).encode(encoding, "replace").decode(encoding)
    return text


def write(text: str, stream: TextIO) -> None:
    """Writes the text at once, safe for a terminal.

    Raises:
        OSError: the stream failed; of an `Output`, an `OutputFailed`.
    """
    stream.write(encodable(escaped(text), stream.encoding or "utf-8"))
    stream.flush()


class OutputFailed(OSError):
    """A stream that cannot be written; `filename` is its name."""

    def __str__(self) -> str:
        return f"cannot write to {self.filename}: {self.strerror}"


class Output(io.TextIOBase):
    """A stream over another, without a buffer: nothing is left to fail when the process ends.

    A failure raises `OutputFailed` with this name. Without a name, text that cannot be written is dropped:
    there is nowhere to say so.
    """

    def __init__(self, stream: TextIO, name: str | None, *, errors: str | None = None) -> None:
        self.stream = stream
        self._name = name
        self._errors = errors
        """How to write what the encoding cannot; None as `encodable` does."""
        with suppress(OSError):
            stream.flush()  # what is there comes first

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding or "utf-8"

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        try:
            self._put(text)
        except OSError as error:
            if self._name is not None:
                raise OutputFailed(error.errno, error.strerror, self._name) from error
        return len(text)

    def _put(self, text: str) -> None:
        encoding = self.encoding
        shown = encodable(text, encoding) if self._errors is None else text
        data = shown.encode(encoding, self._errors or "strict")
        try:
            descriptor = self.fileno()
        except io.UnsupportedOperation:  # in memory
            self.stream.write(data.decode(encoding))
            self.stream.flush()
            return
        while data:
            data = data[os.write(descriptor, data) :]


class CleanOutput(Output):
    """The same for text of others: libraries, tracebacks. A progress bar gets a line for each of its states."""

    def _put(self, text: str) -> None:
        lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")
        super()._put(escaped(lines))


def tell_failed_output(error: OutputFailed) -> None:
    """Says it on standard error; a reader that leaves, as `head` does, is told nothing."""
    if error.errno != errno.EPIPE:
        write(f"chatlm: {error}\n", sys.stderr)


def clean(stream: TextIO, name: str | None = None) -> TextIO:
    """A `CleanOutput` over the stream."""
    return cast(TextIO, CleanOutput(stream, name))


def unclean(stream: TextIO) -> TextIO:
    """The stream below a `CleanOutput`, for who draws and cleans its own text; else the stream itself."""
    return stream.stream if isinstance(stream, CleanOutput) else stream


def open_standard_streams() -> None:
    """Opens standard streams that the caller closed, for reading: writes to them fail.

    Left closed, their numbers would go to files of ours, which then got what others print.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


@contextmanager
def standard_outputs() -> Iterator[None]:
    """Standard output and error as `Output`s; a failure of standard error is never raised."""
    open_standard_streams()
    out, err = Output(sys.stdout, STANDARD_OUTPUT), Output(sys.stderr, None)
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        yield


def clean_standard_outputs() -> None:
    """From now on this process prints clean text; what cannot be written is dropped. For workers."""
    open_standard_streams()
    sys.stdout, sys.stderr = clean(sys.stdout), clean(sys.stderr)
