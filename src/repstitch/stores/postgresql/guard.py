"""Refuse writers that still send vectors of the old space, after a cut-over between equal dimensions."""

from typing import LiteralString

from repstitch.stores.postgresql.connection import quoted, raw
from repstitch.stores.postgresql.job import guard_name
from repstitch.stores.postgresql.layout import Layout

ON_STATED: LiteralString = "begin new.{G} := '+' || new.{G}; return new; end"
ON_WRITE: LiteralString = """begin
  if not ({job_writes}) and new.{N} is not null and (tg_op = 'INSERT' or new.{N} is distinct from old.{N})
      and new.{G} is distinct from '+' || {space} then
    raise exception using errcode = 'check_violation', message = {message};
  end if;
  if starts_with(new.{G}, '+') then new.{G} := substr(new.{G}, 2); end if;
  return new;
end"""


def make_guard(layout: Layout, space: str) -> None:
    """Refuse a write of the readers' vectors that does not state the new space in a column of its own.

    The first trigger fires if a statement sets that column, and marks the value. So a value that an earlier writer has
    left in the row does not pass for one that was stated.
    """
    target, vector = layout.place
    column = guard_name(layout.book.vector)
    layout.run("alter table {target} add column if not exists {G} text", target=target, G=quoted(column))
    names = {"G": quoted(column), "N": quoted(vector), "space": space, "job_writes": layout.job_writes}
    message = f"a vector must come with {column} = {space!r}; this writer still sends vectors of the old space"
    layout.function("guard_mark", layout.compose(ON_STATED, **names))
    layout.function("guard", layout.compose(ON_WRITE, message=message, **names))
    for name, events, function in (
        ("guard_a", layout.compose("insert or update of {G}", **names), "guard_mark"),
        ("guard_b", raw("insert or update"), "guard"),
    ):
        layout.run(
            "create trigger {name} before {events} on {target} for each row execute function {function}()",
            name=quoted(layout.label(name)),
            events=events,
            target=target,
            function=layout.object_name(function),
        )


def drop_guard(layout: Layout, column: bool) -> None:
    """Remove the triggers of the guard, and its column too if `column`."""
    layout.drop_functions("guard_mark", "guard")
    if column and layout.book.guard:
        target, _ = layout.place
        name = quoted(guard_name(layout.book.vector))
        layout.run("alter table {target} drop column if exists {name}", target=target, name=name)
