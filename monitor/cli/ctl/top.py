"""conmonctl top: who connects where and how long it takes, on the whole screen, once a second.

The only file that imports textual, which takes a third of a second and 30 MB of this command's
memory, and nothing of the daemon's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Input, Static

import conmon
from conmon import Record
from conmon.waterfall import waterfall
from conmon.words import address, clock, count, duration, name, size, user

__all__ = ["Top"]

INTERVAL_S: Final = 1.0
ROWS: Final = 500  # more than anybody scrolls through
_BY: Final = ("process", "comm", "unit", "container", "uid", "host")
_WINDOWS: Final = (None, "1m", "5m", "1h")
_SORTS: Final = (
    "opened", "open", "failed", "bytes", "dns_us", "sockconn_us", "tls_us", "txn_resp_us",
)  # fmt: skip
_SORT_WORDS: Final = dict(
    zip(
        _SORTS,
        ("opened", "open", "failed", "bytes", "DNS p95", "connect p95", "TLS p95", "response p95"),
        strict=True,
    )
)
_PHASES: Final = (("dns_us", "DNS"), ("sockconn_us", "CONN"), ("tls_us", "TLS"),
                  ("txn_resp_us", "RESP"))  # fmt: skip
HELP: Final = """\
conmonctl top: connections of this host, by who made them

  up, down     choose a row            enter   open it: its connections, then one drawn
  s, S         sort by the next, the previous column
  g            group by process, comm, unit, container, user, host
  w            since conmond started, or the last 1m, 5m, 1h
  /            show only rows that contain a text; empty shows all
  space        freeze, and go on
  escape       back                    q       quit

p50 and p95 are medians and 95th percentiles; - is not known. # marks the slowest phase.
"""


class _Table(DataTable[Text]):
    """Rows that stay chosen while the figures change."""

    def put(
        self, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], left: int
    ) -> None:
        """Show rows: (key, cells). Cells are flush right but the first few."""
        chosen = self.chosen()
        if [str(column.label) for column in self.ordered_columns] != list(head):
            self.clear(columns=True)
            self.add_columns(*head)
        else:
            self.clear()
        place = 0
        for index, (key, cells) in enumerate(rows):
            shown = [
                Text(cell, justify="left" if i < left else "right", no_wrap=True)
                for i, cell in enumerate(cells)
            ]
            self.add_row(*shown, key=key)
            if key == chosen:
                place = index
        if rows:
            self.move_cursor(row=place, animate=False)

    def chosen(self) -> str | None:
        """The key of the row under the cursor."""
        if not self.row_count:
            return None
        return self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value


class _Page(Screen[None]):
    """A screen whose content is asked for again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = False
        self.trouble: str | None = None

    def on_mount(self) -> None:
        self.set_interval(INTERVAL_S, self.ask)
        self.ask()

    def ask(self) -> None:
        """Ask the daemon, unless frozen or not in sight."""
        if not self.frozen and self.is_current:
            self._ask()

    @work(thread=True, exclusive=True, exit_on_error=False)
    def _ask(self) -> None:
        try:
            answer: Any = self.question()
            trouble = None
        except conmon.ConmonError as exc:
            answer, trouble = None, str(exc)
        self.app.call_from_thread(self._answered, answer, trouble)

    def _answered(self, answer: Any, trouble: str | None) -> None:
        self.trouble = trouble
        if self.is_attached:
            self.show(answer)

    def question(self) -> Any:
        """Ask; runs in a thread."""
        raise NotImplementedError

    def show(self, answer: Any) -> None:
        """Show an answer; None: there was none, ``trouble`` says why."""
        raise NotImplementedError

    def words(self, text: str) -> None:
        """The line at the top."""
        if self.trouble is not None:
            text = f"{name(self.trouble, 160)}; trying again"
        elif self.frozen:
            text += "  FROZEN"
        self.query_one("#words", Static).update(Text(text, no_wrap=True))

    def action_freeze(self) -> None:
        """Stop and go on."""
        self.frozen = not self.frozen
        self.ask()
        self.show(None)


class _Groups(_Page):
    """All of the host, by who."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort(1)", "sort"),
        Binding("S", "sort(-1)", "sort back", show=False),
        Binding("g", "group", "group"),
        Binding("w", "window", "window"),
        Binding("slash", "filter", "filter"),
        Binding("space", "freeze", "freeze"),
        Binding("escape", "unfilter", "all", show=False),
    ]

    def __init__(self, filters: dict[str, Any]) -> None:
        super().__init__()
        self.filters = filters
        self.by, self.sort, self.since = _BY[0], _SORTS[0], _WINDOWS[0]
        self.wanted = ""
        self.answer: dict[str, Any] | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="words", markup=False)
        yield _Table(id="rows", cursor_type="row", zebra_stripes=False)
        yield Input(id="filter", placeholder="show only rows that contain ...")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#filter").display = False
        super().on_mount()
        self.query_one(_Table).focus()

    def question(self) -> dict[str, Any]:
        return self.app_daemon().processes(
            by=self.by, sort=self.sort, since=self.since, limit=ROWS, **self.filters
        )

    def app_daemon(self) -> conmon.Daemon:
        """Whom to ask."""
        app = self.app
        assert isinstance(app, Top)
        return app.daemon

    def show(self, answer: dict[str, Any] | None) -> None:
        if answer is not None:
            self.answer = answer
        held = self.answer
        if held is None:
            self.words("asking conmond ...")
            return
        rows = [(_key(row), _cells(row, self.by)) for row in held["processes"]]
        who = ["PID", "COMM", "USER"] if self.by == "process" else [self.by.upper()]
        names = len(who)
        rows = [row for row in rows if any(self.wanted in cell.lower() for cell in row[1][:names])]
        head = [*who, "OPEN", "OPENED", "FAILED", "SENT", "RECV"]
        head += [f"{word} p50/p95" for _, word in _PHASES]
        self.query_one(_Table).put(head, rows, names)
        window = f"last {self.since}" if self.since else "since conmond started"
        text = (
            f"conmonctl top  {held['total']} by {self.by}, {window}, {_SORT_WORDS[self.sort]} first"
        )
        if self.wanted:
            text += f", with {name(self.wanted, 20)!r}"
        untold = held["other"]["opened"] if held["other"] else held.get("untold", 0)
        if untold:
            text += f"; {untold} more are not told apart"
        if held["lost"]:
            text += f"; {held['lost']} EVENTS LOST: too low"
        self.words(text)

    def action_sort(self, step: int) -> None:
        """The next column, or the one before."""
        self.sort = _SORTS[(_SORTS.index(self.sort) + step) % len(_SORTS)]
        self._changed()

    def action_group(self) -> None:
        """The next grouping."""
        self.by = _next(_BY, self.by)
        self._changed()

    def action_window(self) -> None:
        """The next window of time."""
        self.since = _next(_WINDOWS, self.since)
        self._changed()

    def _changed(self) -> None:
        self.frozen = False
        self.ask()

    def action_filter(self) -> None:
        """Ask for a text."""
        field = self.query_one("#filter", Input)
        field.display = True
        self.set_focus(field)  # at once: what is typed next belongs to it

    def action_unfilter(self) -> None:
        """Show all rows."""
        self.query_one("#filter", Input).value = ""
        self._filtered()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.wanted = event.value.lower()
        self.show(None)

    def on_input_submitted(self, _: Input.Submitted) -> None:
        self._filtered()

    def _filtered(self) -> None:
        self.query_one("#filter").display = False
        self.set_focus(self.query_one(_Table))

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        for row in self.answer["processes"] if self.answer else ():
            if _key(row) == event.row_key.value:
                self.app.push_screen(_Detail(row, self.by, self.filters))


class _Detail(_Page):
    """The connections of one row: open ones, then those that ended last."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "back"),
        Binding("space", "freeze", "freeze"),
    ]

    def __init__(self, row: dict[str, Any], by: str, filters: dict[str, Any]) -> None:
        super().__init__()
        key = "pid" if by == "process" else by
        self.filters = {**filters, key: row[key]}
        self.title_words = " ".join(_cells(row, by)[: 2 if by == "process" else 1])
        self.unknown = row[key] is None
        self.records: dict[str, Record] = {}
        self.rows: list[tuple[str, list[str]]] = []

    def compose(self) -> ComposeResult:
        yield Static(id="words", markup=False)
        yield _Table(id="rows", cursor_type="row")
        yield Footer()

    def question(self) -> tuple[list[Record], list[Record]]:
        app = self.app
        assert isinstance(app, Top)
        if self.unknown:
            return [], []  # there is no filter for "not known"
        opened = app.daemon.connections(limit=100, order="newest", **self.filters)
        ended = list(app.daemon.records(count=100, **self.filters))
        return opened, ended

    def show(self, answer: tuple[list[Record], list[Record]] | None) -> None:
        if answer is not None:
            self.records = {}
            self.rows = []
            for record in (*answer[0], *answer[1]):
                key = record.id or str(len(self.rows))
                if key not in self.records:
                    self.records[key] = record
                    self.rows.append((key, _record_cells(record)))
        head = ["START", "STATE", "HOST", "PEER", "DNS", "CONNECT", "TLS", "RESP", "SENT", "RECV"]
        self.query_one(_Table).put(head, self.rows, 4)
        what = "not known, so there is nothing to choose by" if self.unknown else "enter draws one"
        self.words(f"{self.title_words}: {len(self.rows)} connections, newest 100 of each; {what}")

    def action_back(self) -> None:
        """To all."""
        self.app.pop_screen()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        record = self.records.get(event.row_key.value or "")
        if record is not None:
            self.app.push_screen(_Words(waterfall(record)))


class _Words(Screen[None]):
    """Text, until escape."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "back", "back")]

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(Text(self.text), markup=False)
        yield Footer()

    def action_back(self) -> None:
        """To where one came from."""
        self.app.pop_screen()


class Top(App[None]):
    """The program.

    Args:
        daemon: whom to ask.
        filters: what of all is shown.
    """

    CSS = """
    Screen { background: ansi_default; color: ansi_default; }
    #words { height: 1; }
    _Table { height: 1fr; background: ansi_default; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("question_mark", "help", "help"),
    ]

    def __init__(self, daemon: conmon.Daemon, filters: dict[str, Any]) -> None:
        super().__init__(ansi_color=True)
        self.daemon = daemon
        self.filters = filters

    def on_mount(self) -> None:
        self.push_screen(_Groups(self.filters))

    def action_help(self) -> None:
        """What the keys do."""
        if not isinstance(self.screen, _Words):
            self.push_screen(_Words(HELP))


def _next(choices: Sequence[Any], current: Any) -> Any:
    return choices[(choices.index(current) + 1) % len(choices)]


def _key(row: dict[str, Any]) -> str:
    parts = ("pid", "started", "comm", "unit", "container", "uid", "host")
    return "\0".join(str(row[part]) for part in parts)


_FIRST: Final[dict[str, Callable[[dict[str, Any]], list[str]]]] = {
    "process": lambda row: [count(row["pid"]), name(row["comm"], 16), user(row["uid"])],
    "comm": lambda row: [name(row["comm"], 16)],
    "unit": lambda row: [name(row["unit"])],
    "container": lambda row: [name(row["container"], 12)],
    "uid": lambda row: [user(row["uid"])],
    "host": lambda row: [name(row["host"])],
}


def _cells(row: dict[str, Any], by: str) -> list[str]:
    cells = _FIRST[by](row)
    cells += [count(row["open"]), count(row["opened"]), count(row["failed"])]
    cells += [size(row["bytes_sent"]), size(row["bytes_received"])]
    for phase, _ in _PHASES:
        p50, p95 = row[phase]["p50"], row[phase]["p95"]
        cells.append("-" if p50 is None else f"{duration(p50)}/{duration(p95)}")
    return cells


def _record_cells(record: Record) -> list[str]:
    tcp = record.tcp
    state = name(record.error) if record.state == "failed" and record.error else record.state
    return [
        clock(record.start),
        state,
        name(record.host),
        address(record.raddr, record.rport),
        duration(record.dns_us),
        duration(record.sockconn_us),
        duration(record.tls_us),
        duration(record.txn_resp_us),
        size(tcp.bytes_sent if tcp else None),
        size(tcp.bytes_received if tcp else None),
    ]
