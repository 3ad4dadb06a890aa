"""What can go wrong, as one tree.

    FedaipcError
    ├── ConfigError       a setting is unknown, out of range or clashes with another
    ├── DataError         a data file, column, label or partition cannot be used
    ├── AssetError        a named asset is neither cached nor reachable, or its hash is wrong
    ├── ModelError        weights or tokenizer cannot be loaded or trained as asked
    ├── PrivacyError      a mechanism or a schedule cannot be accounted for
    │   ├── BudgetExhausted  the PC's lifetime budget does not cover the next charge
    │   ├── LedgerError      the ledger is damaged, locked, out of order or cannot be written
    │   └── CertificateError a certificate cannot be issued or read, or does not hold
    ├── SecAggError      a sealed message, key, share or signature is not valid
    │   └── BadUploader     one PC's shares do not rebuild the key that it used
    ├── EncodingError     an update has the wrong size, is not finite or does not fit the ring
    ├── RoundError        a run cannot continue: nobody can take part, a checkpoint does not match
    │   └── RunOver       and waiting will not help: every PC refuses, no attempt is left
    ├── EngineError       Flower's runtime did not start or did not finish
    ├── OutputError       a run folder cannot be written or read
    ├── MissingExtra      what was asked for needs packages of an extra that is not installed
    └── AdmissionError    a federation's folder, token, member or certificate is not valid

Every message is one line that says what was wrong and how to mend it, and never holds a text of a
PC's data. A DataError may hold what its reader must know to mend the data: lines, counts and
labels that are not listed. It goes to their own terminal or the PC's own log. No other error holds
such a value, and no error's text leaves a PC. `exit_code` is what the command line returns.
"""

from __future__ import annotations

from datetime import UTC, datetime


class FedaipcError(Exception):
    """Base of every error that fedaipc raises on purpose."""

    exit_code = 1


class ConfigError(FedaipcError):
    exit_code = 2


class DataError(FedaipcError):
    exit_code = 3


class AssetError(FedaipcError):
    exit_code = 4


class ModelError(FedaipcError):
    exit_code = 5


class PrivacyError(FedaipcError):
    exit_code = 6


class BudgetExhausted(PrivacyError):  # noqa: N818 - it names a state, not a fault
    exit_code = 7


class LedgerError(PrivacyError):
    exit_code = 8


class CertificateError(PrivacyError):
    exit_code = 15


class EncodingError(FedaipcError):
    exit_code = 9


class RoundError(FedaipcError):
    exit_code = 10


class RunOver(RoundError):  # noqa: N818 - it names a state, not a fault
    pass


class EngineError(FedaipcError):
    exit_code = 11


class OutputError(FedaipcError):
    exit_code = 12


class SecAggError(FedaipcError):
    exit_code = 13


class AdmissionError(FedaipcError):
    exit_code = 14


class MissingExtra(FedaipcError):  # noqa: N818 - it names what is missing
    exit_code = 16


class BadUploader(SecAggError):  # noqa: N818 - it names who is at fault
    """`uploader` is the PC's identity."""

    def __init__(self, uploader: bytes) -> None:
        super().__init__(
            f"PC {uploader.hex()[:16]} uploaded shares of another key than the one it used"
        )
        self.uploader = uploader


def check_clock() -> str:
    """What a reader can do about a date that does not fit, besides asking its issuer."""
    return f"check this machine's clock, which says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
