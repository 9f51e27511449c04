"""A table as Markdown, CSV and LaTeX."""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, TextIO

MARKUP = re.compile(r"[&<>`|*_~\[\]\\]")
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{mark: "\\" + mark for mark in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "∞": r"$\infty$",
    "−": "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "…": r"\dots{}",
    "–": "--",
    "²": r"\textsuperscript{2}",
    "⁺": r"\textsuperscript{+}",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
}
"""What LaTeX reads as markup, and the signs of our own that pdflatex does not know."""


NEGATIVE = re.compile(r"(?:^|(?<=… )|(?<=\())-(?=[\d.])")
"""The hyphens that are minus signs of numbers: of whole cells and of either end of an interval."""
FORMULA = re.compile(
    r"(?=[=+\-@\t\r\n＝＋－＠])(?![+-]?(\d+\.?\d*|\.\d+|inf|nan)(e[+-]?\d+)?\Z)", re.IGNORECASE
)
"""The start of a text that a spreadsheet would take for a formula: what is a number is none."""
POWER = re.compile(r"(?<![\w.-])(−?\d+(?:\.\d*)?)e([+-])0*(\d+)(?![\w.-])")
"""Numbers with an exponent."""


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column names what the row is, the others are numbers, to the right.

    Cells may come from the data of others: every form escapes what would be markup in it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Of GitHub, with a line feed at its end."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)]]
        head = [f"| {' | '.join(map(markdown_text, lines[0]))} |", f"| {' | '.join(lines[1])} |"]
        return "\n".join([*head, *(f"| {' | '.join(map(markdown_text, row))} |" for row in self.rows)]) + "\n"

    def csv(self) -> str:
        """As `write_csv` makes it."""
        return csv_text([self.columns, *self.rows])

    def latex(self) -> str:
        r"""A `tabular` for \usepackage{booktabs}."""

        def line(cells: Sequence[str]) -> str:
            text = " & ".join(map(latex_text, cells)) + r" \\"
            return text if not text.startswith("[") else "{[}" + text[1:]  # else an option of what is before

        return "\n".join(
            [
                rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
                r"\toprule",
                line(self.columns),
                r"\midrule",
                *map(line, self.rows),
                r"\bottomrule",
                r"\end{tabular}",
                "",
            ]
        )


def write_csv(file: TextIO, rows: Iterable[Sequence[Any]]) -> None:
    """Rows as RFC 4180 has them, with line feeds alone at the ends of lines; texts are no formulae."""
    csv.writer(file, lineterminator="\n").writerows(map(no_formula, row) for row in rows)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """What `write_csv` writes: of numbers all digits, and nothing where there is None."""
    text = StringIO()
    write_csv(text, rows)
    return text.getvalue()


def no_formula(value: Any) -> Any:
    """The value, a text of which a spreadsheet would make a formula behind an apostrophe."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def markdown_text(text: str) -> str:
    """A text without markup of its own; in tables a backslash may end a cell, so references stand for it."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def latex_text(text: str) -> str:
    """A text without markup of its own; minus signs and powers of ten as formulae."""
    text = NEGATIVE.sub("−", " ".join(text.split()))
    parts = POWER.split(text)  # text, digits, sign and exponent, text, …
    found = ["".join(LATEX.get(sign, sign) for sign in part) for part in parts[::4]]
    powers = zip(parts[1::4], parts[2::4], parts[3::4], strict=True)
    for place, (digits, sign, exponent) in reversed(list(enumerate(powers, 1))):
        found.insert(place, rf"${digits.replace('−', '-')}\times 10^{{{sign.strip('+')}{exponent}}}$")
    return "".join(found)
