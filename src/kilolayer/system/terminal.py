"""The terminal: its width, whether a line in it can be redrawn, and what fits into it.

Everything that a command shows goes through here. A pipe and a file have no width: nothing is cut or
wrapped in them.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Protocol

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import ConsoleDimensions, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress import Progress, Task
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from kilolayer.system.printer import escape, escape_line, escape_streams, unescaped
from kilolayer.system.ranks import is_main_process

if TYPE_CHECKING:
    from collections.abc import Callable

NO_WIDTH = 100_000
"""The columns of a stream that is no terminal."""
DEFAULT_COLUMNS, DEFAULT_LINES = 80, 25
COLUMN_GAP = 2
RIGHT_MARGIN = 3
"""Columns left free after a redrawn line: a full line, or the echo "^C" of Ctrl-C, would start another."""
NO_BREAK_SPACE = "\ue000"
"""Stands for a space at which no line is broken."""
MIN_TEXT_WIDTH = 16
"""A column of words is never narrower than this, or than its longest word."""
MAX_WORD_WIDTH = 40
"""A longer word, such as the name of a class or a path, may be broken."""
MIN_BAR_WIDTH, MAX_BAR_WIDTH = 8, 40


class TextTable(Protocol):
    """A table of plain text, as `kilolayer.report.document.Table`."""

    @property
    def header(self) -> tuple[str, ...]: ...
    @property
    def rows(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def numeric(self) -> tuple[bool, ...]: ...


def terminal_size(stream: IO[str]) -> tuple[int, int] | None:
    """Columns and lines of the terminal that `stream` writes to; None if it is a pipe or a file.

    $COLUMNS can make it narrower but not wider than it is, so that the terminal never wraps a line.
    """
    if not stream.isatty():
        return None
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, lines = 0, 0
    configured = os.environ.get("COLUMNS", "")
    widths = [width for width in (columns, int(configured) if configured.isdecimal() else 0) if width > 0]
    return min(widths, default=DEFAULT_COLUMNS), lines or DEFAULT_LINES


def is_redrawable(stream: IO[str]) -> bool:
    """Whether a line can be overwritten: on a terminal that is not dumb, in a run's main process."""
    return stream.isatty() and not _is_dumb_terminal() and is_main_process()


def _is_dumb_terminal() -> bool:
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown", "")


def is_screen(stream: IO[str]) -> bool:
    """Whether several lines can be overwritten: the terminal of a notebook's `!command` cannot move up."""
    return is_redrawable(stream) and "JPY_PARENT_PID" not in os.environ


class Console(RichConsole):
    """rich's console, as wide as the terminal is now, and without a width in a pipe."""

    def __init__(self, *, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(
            stderr=stderr,
            force_terminal=stream.isatty(),  # in spite of $FORCE_COLOR
            force_jupyter=False,
            color_system=None if _is_dumb_terminal() else "auto",
            highlight=False,
            markup=False,
            emoji=False,
        )

    @property
    def file(self) -> IO[str]:
        """The stream behind the escaping one: what this console adds to texts is for the terminal."""
        return unescaped(super().file)

    @file.setter
    def file(self, new: IO[str]) -> None:
        raise AttributeError("the stream is standard output or standard error")

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The pieces of a renderable: their texts escaped, the console's own control codes as they are."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escape(segment.text), segment.style)

    @property
    def size(self) -> ConsoleDimensions:
        """The terminal's current size: a window can be resized."""
        return ConsoleDimensions(*(terminal_size(self.file) or (NO_WIDTH, DEFAULT_LINES)))

    @size.setter
    def size(self, new: tuple[int, int]) -> None:
        raise AttributeError("the width is the terminal's")


def print_text(
    text: str, *, hanging: int = 0, style: str = "", stderr: bool = False, width: int | None = None
) -> None:
    """Prints text; in a terminal, lines are broken between words, and continue indented by `hanging` columns.

    A command to be copied goes on in the next line as a shell's does. `width` is another than the
    terminal's.
    """
    console = Console(stderr=stderr)
    for line in map(escape_line, text.split("\n")):
        for part in _wrap_line(line, hanging, width or console.width, console):
            console.print(Text(part, style), soft_wrap=True)
    console.file.flush()


def _wrap_line(line: str, hanging: int, width: int, console: Console) -> list[str]:
    if cell_len(line) <= width:
        return [line]
    if is_command(line[hanging:]):
        start = len(line) - len(line[hanging:].lstrip())
        return wrap_command(line[:start], line[start:], width)
    indent = len(line) - len(line.lstrip()) + hanging
    # A number and its % stay together.
    head, tail = line[:indent], Text(line[indent:].replace(" %", f"{NO_BREAK_SPACE}%"), overflow="ignore")
    wrapped = tail.wrap(console, max(20, width - indent))
    parts = [part.plain.rstrip().replace(NO_BREAK_SPACE, " ") for part in wrapped]
    return [head + parts[0], *(" " * indent + part for part in parts[1:])]


def is_command(line: str) -> bool:
    """Whether a line is a command that you can copy into a shell."""
    return line.lstrip().startswith(("kilolayer ", 'eval "$(kilolayer '))


def wrap_command(prefix: str, command: str, width: int) -> list[str]:
    r"""A command on as many lines as it needs, each but the last ending in a backslash.

    >>> print(*wrap_command("try: ", "kilolayer train --model resnet20_cifar", 32), sep="\n")
    try: kilolayer train --model \
             resnet20_cifar
    """
    first, *words = re.findall(r"""(?:'[^']*'|"[^"]*"|\S)+""", command)
    parts = [prefix + first]
    for word in words:
        if cell_len(f"{parts[-1]} {word} \\") > width:
            parts[-1] += " \\"
            parts.append(f"{' ' * (len(prefix) + 4)}{word}")
        else:
            parts[-1] += f" {word}"
    return parts


def print_rows(rows: Mapping[str, str]) -> None:
    """Prints a line for each row, with its name in front."""
    for name, text in rows.items():
        print_text(f"{name:<11} {text}", hanging=12)


def print_table(table: TextTable, *, drop: Sequence[str] = (), blocks: bool = False) -> None:
    """Prints a table that fits the width of the terminal.

    To make it fit, words are broken first; then the columns in `drop` are left out in their order, and then
    others from the last one on, with a line that names them. With `blocks` no column is left out: those that
    do not fit follow below, as a table of their own.
    """
    console = Console()
    for part in fit_table(table, console.width, drop=drop, blocks=blocks):
        console.print(part)


def fit_table(
    table: TextTable, width: int, *, drop: Sequence[str] = (), blocks: bool = False
) -> list[RenderableType]:
    """The renderables that `print_table` prints."""
    min_widths = [_min_width(table, column) for column in range(len(table.header))]
    if blocks:
        parts: list[RenderableType] = []
        for columns in _column_blocks(min_widths, width):
            parts += [*([Text("")] if parts else []), _render_columns(table, columns, min_widths, width)]
        return parts
    columns, dropped = _select_columns(table, min_widths, width, drop)
    rendered = _render_columns(table, columns, min_widths, width)
    if not dropped:
        return [rendered]
    names = ", ".join(table.header[column] or "the last column" for column in dropped)
    return [rendered, Text(f"not shown: {names}; a wider window shows all, and so does | cat", "dim")]


def _select_columns(
    table: TextTable, min_widths: Sequence[int], width: int, drop: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The indices of the columns that fit, and of those that are left out, in their order."""
    droppable = [table.header.index(name) for name in drop]
    remaining = [column for column in range(len(table.header) - 1, 0, -1) if column not in droppable]
    columns, dropped = list(range(len(table.header))), []
    for column in (*droppable, *remaining):
        if _total_width([min_widths[at] for at in columns]) <= width:
            break
        columns.remove(column)
        dropped.append(column)
    return columns, sorted(dropped)


def _column_blocks(min_widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """The indices of the columns of each block; the first column is in all of them."""
    block = [0]
    for column in range(1, len(min_widths)):
        if len(block) > 1 and _total_width([min_widths[at] for at in (*block, column)]) > width:
            yield block
            block = [0]
        block.append(column)
    yield block


def _render_columns(
    table: TextTable, columns: Sequence[int], min_widths: Sequence[int], width: int
) -> RichTable:
    rendered = RichTable(box=None, pad_edge=False, padding=(0, COLUMN_GAP, 0, 0), header_style="bold")
    for column, wide in zip(columns, _column_widths(table, columns, min_widths, width), strict=True):
        is_numeric = table.numeric[column]
        rendered.add_column(
            Text(escape_line(table.header[column])),
            justify="right" if is_numeric else "left",
            width=wide,
            overflow="fold",
        )
    for row in table.rows:
        rendered.add_row(*(Text(escape_line(row[column])) for column in columns))
    return rendered


def _column_widths(
    table: TextTable, columns: Sequence[int], min_widths: Sequence[int], width: int
) -> list[int]:
    """The widths that the columns need; the widest is made narrower until all fit."""
    widths = [max(map(cell_len, _cells(table, column))) for column in columns]
    bounds = [min_widths[column] for column in columns]
    bodies = [max(map(cell_len, _cells(table, column)[1:]), default=0) for column in columns]
    # Headings are broken before the cells below them.
    for lowest in ([max(pair) for pair in zip(bounds, bodies, strict=True)], bounds):
        while _total_width(widths) > width:
            spare = [wide if wide > low else 0 for wide, low in zip(widths, lowest, strict=True)]
            if not any(spare):
                break
            widths[spare.index(max(spare))] -= 1
    return widths


def _min_width(table: TextTable, column: int) -> int:
    """The width below which numbers or words of a column would be broken."""
    cells = _cells(table, column)
    words = max((cell_len(word) for cell in cells for word in cell.split()), default=0)
    longest_cell = max(map(cell_len, cells[1:]), default=0) if table.numeric[column] else MIN_TEXT_WIDTH
    natural = max(map(cell_len, cells))
    return min(natural, max(min(words, MAX_WORD_WIDTH), longest_cell))


def _cells(table: TextTable, column: int) -> list[str]:
    return [escape_line(row[column]) for row in (table.header, *table.rows)]


def _total_width(widths: Sequence[int]) -> int:
    return sum(widths) + COLUMN_GAP * (len(widths) - 1)


def truncate_middle(text: str, max_length: int) -> str:
    """The text cut to `max_length` characters, in the middle, since names differ at their ends.

    >>> truncate_middle("preact_resnet110_cifar", 12)
    'preac…_cifar'
    """
    if len(text) <= max_length:
        return text
    tail = text[len(text) - (max_length - 1) * 3 // 5 :]
    # Half a word or half a number would mislead: "5 on F" for "0.5 on F".
    tail = tail.partition(" ")[2] or tail
    return f"{text[: max_length - 1 - len(tail)].rstrip()}…{tail.lstrip()}"


BAR = "━" * MIN_BAR_WIDTH
"""Stands for the bar among the texts of a line."""


def fit_progress_line(parts: Sequence[str], share: float, width: int) -> RichTable:
    """Texts on one line, with a bar after the first; `parts`, among them `BAR`, go by importance.

    A text that does not fit is left out.
    """
    room = width - RIGHT_MARGIN
    texts: list[str] = []
    for text in map(escape_line, filter(None, parts)):
        if _total_width([*map(cell_len, texts), cell_len(text)]) <= room:
            texts.append(text)
    spare = room - _total_width([cell_len(text) for text in texts])
    bar = ProgressBar(1.0, share, width=min(MIN_BAR_WIDTH + spare, MAX_BAR_WIDTH))
    line = RichTable.grid(padding=(0, COLUMN_GAP, 0, 0), pad_edge=False)
    words = [Text(text) for text in texts if text != BAR]
    cells: list[Text | ProgressBar] = [*words[:1], *([bar] if BAR in texts else []), *words[1:]]
    for _ in cells:
        line.add_column(no_wrap=True)
    line.add_row(*cells)
    return line


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """A function that shows a text on a temporary line of standard error, if that is a terminal."""
    console = Console(stderr=True)
    if _active_lines or not is_redrawable(console.file):
        yield lambda text: None
        return
    with LiveDisplay(console=console, transient=True, auto_refresh=False, redirect_stdout=False) as live:

        def show(text: str) -> None:
            text = truncate_middle(escape_line(text), console.width - RIGHT_MARGIN)
            live.update(Text(text, no_wrap=True), refresh=True)

        yield show


class LiveDisplay(Live):
    """Lines that are redrawn; what is printed meanwhile appears above them, escaped."""

    def start(self, refresh: bool = False) -> None:
        super().start(refresh)
        escape_streams()


_active_lines: list[object] = []
"""The line that is being redrawn: a second one, as for pictures read during training, would overwrite it."""


class ProgressLine(Progress):
    """A temporary line with a progress bar; a subclass says which texts are beside the bar."""

    def __init__(self, total: float | None, *, stderr: bool = False, disable: bool = False) -> None:
        super().__init__(
            console=Console(stderr=stderr),
            transient=True,
            refresh_per_second=5,
            # rich must not move output from a file to the terminal.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
            disable=disable or bool(_active_lines),
        )
        self.task_id = self.add_task("", total=total)

    def start(self) -> None:
        if not self.disable:
            _active_lines.append(self)
        super().start()
        escape_streams()  # what is printed above the line, too

    def stop(self) -> None:
        super().stop()
        if self in _active_lines:
            _active_lines.remove(self)

    def figures(self, task: Task) -> Sequence[str]:
        """The texts of the line, `BAR` among them, the most important first."""
        raise NotImplementedError

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.tasks:
            yield self.line(self.console.width)

    def line(self, width: int) -> RenderableType:
        """The current line, in `width` columns."""
        task = self.tasks[0]
        return fit_progress_line(self.figures(task), task.percentage / 100, width)


class ReadingProgress(ProgressLine):
    """The progress of reading files; shown only on a terminal."""

    def __init__(self, label: str, total: int | None) -> None:
        super().__init__(total, stderr=True, disable=not is_redrawable(sys.stderr))
        self.label = label

    def figures(self, task: Task) -> Sequence[str]:
        time_left = "" if task.time_remaining is None else f"{format_duration(task.time_remaining)} left"
        label = truncate_middle(escape_line(self.label), self.console.width - RIGHT_MARGIN)
        return [label] if task.total is None else [label, f"{task.percentage:.0f} %", time_left, BAR]


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> format_duration(7), format_duration(750), format_duration(18_000)
    ('0:07', '12:30', '5:00:00')
    """
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"


def notebook_writer() -> Callable[[RenderableType], None] | None:
    """A function that overwrites one line of a notebook cell's output; None outside a notebook."""
    if not type(unescaped(sys.stdout)).__module__.startswith("ipykernel."):
        return None
    from IPython.display import display

    handle = display({"text/plain": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def write(line: RenderableType) -> None:
        console = RichConsole(file=io.StringIO(), width=NO_WIDTH, color_system=None, force_jupyter=False)
        with console.capture() as captured:
            console.print(line)
        handle.update({"text/plain": captured.get().rstrip()}, raw=True)

    return write
