"""What can go wrong, as one tree below `FedaipcError`.

Every message is one line that says what was wrong and how to mend it, and never holds a text of a
PC's data. A DataError may hold what its reader must know to mend the data: lines, counts and
labels that are not listed. It goes to their own terminal or the PC's own log. No other error holds
such a value, and no error's text leaves a PC.

`exit_code` is what the command line returns. A docstring says what an error means and, in its
second paragraph, what to do: docs/reference/exit-codes.md is made from them.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class FedaipcError(Exception):
    """Base of every error that fedaipc raises on purpose.

    1 without such an error means that the operating system refused something: a file cannot be
    read, the disk is full, memory ends. The message says which.
    """

    exit_code = 1


class ConfigError(FedaipcError):
    """A setting is unknown, out of range, or clashes with another.

    Change the key or option that the message names. `fedaipc config show --keys` lists all keys;
    `fedaipc config check` tries a file without running it.
    """

    exit_code = 2


class DataError(FedaipcError):
    """A data file, column, label or partition cannot be used.

    Mend the file at the line that the message names, or name the right columns.
    `--skip-unusable` leaves out records that cannot be used, and counts them.
    """

    exit_code = 3


class AssetError(FedaipcError):
    """A named asset is neither cached nor reachable, or its hash is wrong.

    Connect to the network and run `fedaipc assets fetch` with its name, or copy the cache folder
    from a machine that has it. Where the hash is wrong: `fedaipc assets fetch NAME --again`.
    """

    exit_code = 4


class ModelError(FedaipcError):
    """Weights or tokenizer cannot be loaded, or not be trained as asked.

    Name a base of a family that is supported, or another training method; the message says
    which part of the model is in the way.
    """

    exit_code = 5


class PrivacyError(FedaipcError):
    """A mechanism or a schedule cannot be accounted for, or an attack has refuted a promise.

    Where no noise meets the target, allow a larger epsilon, fewer rounds or a lower sampling rate
    (`fedaipc privacy plan`). Where `fedaipc privacy audit` refuted a promise, do not use the
    model, and report it.
    """

    exit_code = 6


class BudgetExhausted(PrivacyError):  # noqa: N818 - it names a state, not a fault
    """A PC's lifetime budget does not cover the next charge.

    The run so far is kept and can be used. A budget is fixed for life: plan shorter jobs or
    larger noise (`fedaipc privacy plan --ledger`).
    """

    exit_code = 7


class LedgerError(PrivacyError):
    """A ledger is missing, damaged, locked, out of order or cannot be written.

    Run `fedaipc privacy ledger verify` on the folder. If a disk was full or another process held
    the file, run the command again; never edit a ledger or put an older copy in its place.
    """

    exit_code = 8


class CertificateError(PrivacyError):
    """A certificate cannot be issued or read, or does not hold.

    `fedaipc privacy certificate verify` names the first check that fails. Do not rely on such a
    certificate; ask its issuer for another.
    """

    exit_code = 15


class EncodingError(FedaipcError):
    """An update or a message of a round has the wrong size or version, or holds what cannot be.

    Lower the learning rate where values are not finite. Else see that both sides run the same
    version of fedaipc.
    """

    exit_code = 9


class RoundError(FedaipcError):
    """A run cannot go on: nobody can take part, or a checkpoint does not match.

    See that enough PCs are there and that their policies allow the job, then resume:
    `fedaipc simulate --resume`, or `fedaipc server train --resume`.
    """

    exit_code = 10


class RunOver(RoundError):  # noqa: N818 - it names a state, not a fault
    """A run cannot go on, and waiting will not help: every PC refuses, or no attempt is left.

    Read why the PCs refused (their own logs say it), change the job, and start a new run in a new
    folder.
    """


class EngineError(FedaipcError):
    """Flower's runtime, or a process of the server, did not start or did not finish.

    Read the log that the message names. A simulation can take `--engine in-process` instead.
    """

    exit_code = 11


class OutputError(FedaipcError):
    """A run folder cannot be written or read, or a run has not ended.

    Give the folder that a run wrote, free some space, or choose a new name.
    """

    exit_code = 12


class SecAggError(FedaipcError):
    """A message, key, share or signature of secure aggregation is not what it should be.

    In a simulation this is a bug: report it. In a fleet the round is void and is tried again; if
    it repeats, somebody on the way changes messages, or a member runs other code.
    """

    exit_code = 13


class AdmissionError(FedaipcError):
    """A federation's folder, token, member or certificate is not as it must be.

    Follow the message: most often something has expired, or a clock is wrong. The operator renews a
    membership or the server's certificate (`fedaipc federation renew`), and writes a new invite or
    signs the job again. An owner prints a request again (`fedaipc client enroll --again`).
    """

    exit_code = 14


class MissingExtra(FedaipcError):  # noqa: N818 - it names what is missing
    """What was asked for needs packages of an extra that is not installed.

    Install the extra that the message names, as in `pip install ".[lab]"` in a clone.
    """

    exit_code = 16


class BadShares(SecAggError):  # noqa: N818 - it names who is at fault
    """A PC's shares do not give the key that it stated. `pcs` are the identities of such PCs.

    The attempt is void, and the run goes on without those PCs; `blamed` in results.json names them.
    If it repeats, revoke them (`fedaipc federation revoke`).
    """

    def __init__(self, pcs: Sequence[bytes]) -> None:
        names = ", ".join(pc.hex()[:16] for pc in pcs)
        super().__init__(f"PC {names} gave out shares of another key than the one it stated")
        self.pcs = tuple(pcs)


def check_clock() -> str:
    """What a reader can do about a date that does not fit, besides asking its issuer."""
    return f"check this machine's clock, which says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


@contextmanager
def os_errors_as(kind: type[FedaipcError], what: str, advice: str = "") -> Iterator[None]:
    """Raise `kind` where the system refuses something: `what`, its reason in brackets, `advice`."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what} ({error.strerror or error}){advice}") from None
