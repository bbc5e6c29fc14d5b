"""Regular expressions of module names from files, matched in a time that no pattern can blow up.

Python's ``re`` backtracks, so a pattern in a hostile file could keep it busy for years. Here the set of all places that
a part of the pattern can reach is kept as the bits of one integer; repetitions inside repetitions are refused.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["NamePattern"]

_MAX_CHARS = 300
_MAX_NESTING = 8
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdigit,
    "w": lambda c: c.isalnum() or c == "_",
    "s": str.isspace,
    "D": lambda c: not c.isdigit(),
    "W": lambda c: not (c.isalnum() or c == "_"),
    "S": lambda c: not c.isspace(),
}

#: A part of a pattern: (text, places where it may begin) → places where it may end, both as bits.
_Part = Callable[[str, int], int]


def _one(accepts: Callable[[str], bool]) -> _Part:
    """One character."""

    known: dict[str, int] = {}

    def part(text: str, places: int) -> int:
        if text not in known:
            known.clear()  # repetitions ask for one text many times, then it does not come back
            known[text] = sum(1 << index for index, char in enumerate(text) if accepts(char))
        return (places & known[text]) << 1

    return part


def _repeat(inner: _Part, low: int, once: bool) -> _Part:
    """Zero or one (`once`) or any number of times, at least `low`."""

    def part(text: str, places: int) -> int:
        reached = 0 if low else places
        frontier = places
        while frontier:
            found = inner(text, frontier)
            frontier = found & ~reached
            reached |= found
            if once:
                break
        return reached

    return part


def _sequence(parts: list[_Part]) -> _Part:
    def part(text: str, places: int) -> int:
        for inner in parts:
            places = inner(text, places)
        return places

    return part


def _either(branches: list[_Part]) -> _Part:
    def part(text: str, places: int) -> int:
        reached = 0
        for branch in branches:
            reached |= branch(text, places)
        return reached

    return part


class NamePattern:
    r"""A pattern that must match at the beginning of a name, as ``re.match`` does.

    Understood: characters, ``.``, ``\d \w \s``, escapes, ``[...]``, groups, ``|``, ``* + ?``, ``^`` and ``$``.

    Raises:
        ValueError: anything else, or a repetition inside a repetition.

    Example:
        >>> NamePattern(r"model\.layers\.\d+\.mlp\.(gate|up)_proj$").matches("model.layers.12.mlp.up_proj")
        True
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > _MAX_CHARS:
            raise ValueError(f"pattern {pattern!r:.60} has {len(pattern)} characters, {_MAX_CHARS} are allowed")
        self._pattern, self._at = pattern, 0
        self._part, _ = self._alternatives(0)
        if self._at != len(pattern):
            raise self._error("has a ')' too many")

    def matches(self, name: str) -> bool:
        """Whether some beginning of the name matches."""
        return self._part(name, 1) != 0

    def _error(self, problem: str) -> ValueError:
        return ValueError(f"pattern {self._pattern!r} {problem}; list the modules by name")

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        if not char:
            raise self._error("ends too early")
        self._at += 1
        return char

    def _alternatives(self, depth: int) -> tuple[_Part, bool]:
        """Branches up to a closing parenthesis or the end, and whether they hold a repetition."""
        if depth > _MAX_NESTING:
            raise self._error("is nested too deeply")
        branches: list[_Part] = []
        parts: list[_Part] = []
        repeated = False
        while self._peek() not in ("", ")"):
            if self._peek() == "|":
                self._at += 1
                branches.append(_sequence(parts))
                parts = []
                continue
            part, inner = self._atom(depth)
            if self._peek() in ("*", "+", "?"):
                mark = self._next()
                if mark != "?" and inner:
                    raise self._error("repeats a repetition, which is not supported")
                inner = inner or mark != "?"
                part = _repeat(part, int(mark == "+"), mark == "?")
                if self._peek() == "?":  # the lazy form finds the same places
                    self._at += 1
            parts.append(part)
            repeated = repeated or inner
        return _either([*branches, _sequence(parts)]), repeated

    def _atom(self, depth: int) -> tuple[_Part, bool]:
        char = self._next()
        if char == "(":
            if self._pattern.startswith("?:", self._at):
                self._at += 2
            group = self._alternatives(depth + 1)
            if self._next() != ")":
                raise self._error("lacks a ')'")
            return group
        if char == "^":
            return (lambda text, places: places & 1), False
        if char == "$":
            return (lambda text, places: places & (1 << len(text))), False
        if char == ".":
            return _one(lambda c: c != "\n"), False
        if char == "[":
            return _one(self._set()), False
        if char == "\\":
            return _one(self._escape()), False
        if char in "*+?{}":
            raise self._error(f"has a {char!r} that is not supported there")
        return _one(lambda c, wanted=char: c == wanted), False  # type: ignore[misc]

    def _escape(self) -> Callable[[str], bool]:
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char.isalnum():
            raise self._error(f"has the escape \\{char}, which is not supported")
        return lambda c: c == char

    def _set(self) -> Callable[[str], bool]:
        negated = self._peek() == "^"
        self._at += negated
        members: list[Callable[[str], bool]] = []
        while self._peek() != "]" or not members:
            char = self._next()
            if char == "\\":
                members.append(self._escape())
            elif self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._next()
                members.append(lambda c, low=char, high=high: low <= c <= high)  # type: ignore[misc]
            else:
                members.append(lambda c, wanted=char: c == wanted)  # type: ignore[misc]
        self._at += 1
        return lambda c: any(member(c) for member in members) != negated
