"""Who owns a server's folder. Commands and server share it, so everything in it belongs to the
server's user.

Without that rule a run that root submits cannot be read by a server that runs as a user of its own.
Windows inherits rights from the folder and needs no such rule.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fedaipc.errors import OutputError
from fedaipc.protocol.server_folder import STATE_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


def user_name(number: int) -> str:
    """The name of an account, or its number where it has no name."""
    with suppress(ImportError, KeyError):
        import pwd

        return pwd.getpwuid(number).pw_name
    return str(number)


def server_user(folder: Path) -> int:
    """Who runs the server in `folder`: the user who made its state, otherwise the folder's owner.

    Raises OSError where the folder is not there.
    """
    state = folder / STATE_FOLDER
    return (state if state.is_dir() else folder).stat().st_uid


def check_user(folder: Path, files: Iterable[str]) -> None:
    """Raise OutputError where this process cannot run the server in `folder`.

    That is so where another user's server ran there, or where it cannot read one of the `files`.
    """
    if not hasattr(os, "geteuid"):
        return
    own, state = os.geteuid(), folder / STATE_FOLDER
    if state.is_dir() and own != state.stat().st_uid:
        name = user_name(state.stat().st_uid)
        raise OutputError(
            f"{state}: belongs to user {name}, who ran the server before: run it as that user, or "
            f"give another one the whole folder: chown -R USER {folder}"
        )
    for path in (folder / file for file in files):
        try:
            path.open("rb").close()
        except PermissionError:
            name = user_name(own)
            raise OutputError(
                f"{path}: cannot be read by user {name}: chown -R {name} {folder}"
            ) from None


@contextmanager
def as_server(folder: Path) -> Iterator[None]:
    """Within the block, files are made and changed as the server's user, also by root.

    Not by handing them over later: that user could put a link in their place. Raises OutputError
    where this process may not.
    """
    if not hasattr(os, "geteuid") or os.geteuid() == server_user(folder):
        yield
        return
    user, group = server_user(folder), folder.stat().st_gid
    before = os.getegid(), os.getgroups()
    try:
        os.setgroups([group])
        os.setegid(group)
        os.seteuid(user)
    except PermissionError:
        name = user_name(user)
        raise OutputError(
            f"{folder}: belongs to user {name}: run this as that user, "
            f"as in `sudo -u {name} fedaipc ...`"
        ) from None
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(before[0])
        os.setgroups(before[1])


def foreign(run: Path, folder: Path) -> str | None:
    """Why the server in `folder` cannot work in `run`, if it belongs to another user.

    A file that everybody may read is fine: the server replaces files and does not write into them.
    Raises OSError where the run is not there.
    """
    if not hasattr(os, "geteuid"):
        return None
    user, found = server_user(folder), [run.stat()]
    with suppress(OSError):
        found += [s for path in run.iterdir() if not (s := path.stat()).st_mode & stat.S_IROTH]
    others = {one.st_uid for one in found} - {user}
    if not others:
        return None
    return (
        f"it belongs to user {user_name(min(others))}, but the server's is {user_name(user)}: "
        f"chown -R {user_name(user)} {run}"
    )
