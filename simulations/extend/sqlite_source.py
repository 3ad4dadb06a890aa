"""A data source: `sqlite:FILE/TABLE`, a table of a SQLite database."""

import sqlite3
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import fedaipc as fa
from fedaipc.errors import DataError


@fa.register_source("sqlite")
def read_table(name: str, columns: Sequence[str]) -> Sequence[Iterable[object]]:
    file, _, table = name.rpartition("/")
    wanted = ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
            rows = database.execute(f'SELECT {wanted} FROM "{table}"').fetchall()  # noqa: S608
    except sqlite3.Error as error:
        raise DataError(f"sqlite:{name}: cannot be read ({error})") from None
    return list(zip(*rows, strict=True)) or [[] for _ in columns]


def main() -> fa.Run:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mails.db"
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE mails (body TEXT, kind TEXT)")
            rows = [(f"mail number {n} about {n % 7}", "ab"[n % 2]) for n in range(300)]
            database.executemany("INSERT INTO mails VALUES (?, ?)", rows)
        data = fa.load_data(f"sqlite:{path}/mails", text="body", label="kind")
        return fa.simulate(fa.Job(rounds=2), data.partition(clients=3))


if __name__ == "__main__":
    print(main())
