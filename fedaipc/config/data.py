"""Settings of texts: where they are, how they are written, how they are spread over clients."""

from __future__ import annotations

import codecs
from typing import ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedaipc.config import remedy
from fedaipc.config.section import Choice, Count, Positive, Section, Seed, register


class TextSource(Section):
    """Where labelled texts are, and how their file is written.

    `source` is an asset, "hf:ID", a file or a folder with one sub-folder of .txt per label. What
    is below `label_column` matters to text files only; "auto" is what `data.sources` says.
    `section` is where these settings stand, for `remedy`.
    """

    section: ClassVar[str] = ""

    source: str | None = Field(None, min_length=1)
    text_column: str = Field(
        "text", min_length=1, coerce_numbers_to_str=True, description="column with the text"
    )
    label_column: str = Field(
        "label", min_length=1, coerce_numbers_to_str=True, description="column with the label"
    )
    encoding: str = Field(
        "auto",
        description="encoding of a text file, such as cp1252; auto: UTF-8, or UTF-16/32 "
        "with a byte order mark",
    )
    quoting: Literal["auto", "csv", "line", "none"] = Field(
        "auto",
        description="csv: a quoted text may span several lines; line: it ends on its line; none: "
        "quotation marks are text; auto: none for .tsv, otherwise csv",
    )
    header: bool = Field(
        True, description="of a CSV or TSV; without one the columns are numbers: 1 is the first"
    )

    @field_validator("encoding")
    @classmethod
    def _is_an_encoding(cls, name: str) -> str:
        if name != "auto" and not _decodes_text(name):
            raise PydanticCustomError(
                "unknown_encoding",
                "no text encoding of this name is known; examples are utf-8 and cp1252",
            )
        return name

    @model_validator(mode="after")
    def _columns_are_numbers(self) -> Self:
        columns = self.text_column, self.label_column
        if not self.header and not all(column.isdecimal() and int(column) for column in columns):
            raise ValueError(
                "a file without a header needs column numbers (the first is 1): for example "
                + self.remedy(header=False, text_column="2", label_column="1")
            )
        return self

    @classmethod
    def remedy(cls, **values: str | bool) -> str:
        """How whoever gave these settings can give `values`; to be printed."""
        return remedy.given(cls.section, values)


_ESCAPES = {"idna", "punycode", "unicode-escape", "raw-unicode-escape"}  # not used for files


def _decodes_text(name: str) -> bool:
    try:
        return codecs.lookup(name).name not in _ESCAPES and "a,1".encode(name).decode(name) == "a,1"
    except (LookupError, ValueError):  # not known, or not a text encoding, such as base64
        return False


class WarmUpSettings(TextSource):
    """Ordinary training of the whole base on public labelled texts, before any PC is asked.

    Not private, and it need not be: no text of a PC is used. It gives a new base model.
    """

    section: ClassVar[str] = "warm_up"

    source: str | None = Field(
        None,
        min_length=1,
        description="public texts, given like data.source; without them no warm-up",
    )
    passes: int = Field(2, ge=1, le=1000, description="over the public texts")
    batch: int = Field(32, ge=1, le=65_536, description="texts of one step")
    learning_rate: Positive = Field(1e-4, description="of AdamW; falls to 0 in a straight line")
    head_learning_rate: Positive = Field(1e-2, description="of the classifier")
    seed: Seed = Field(0, description="public; the order of the texts")


class Partition(Choice):
    """How records are spread over simulated clients."""

    usual: ClassVar[str] = "iid"


@register
class Iid(Partition):
    """Each record goes to a client at random; all hold about as many."""

    kind: Literal["iid"] = "iid"


@register
class ByColumn(Partition):
    """Each value of `data.client_column` is a client."""

    kind: Literal["column"] = "column"


@register
class Dirichlet(Partition):
    """Labels are unevenly spread: each client draws its mixture of them."""

    kind: Literal["dirichlet"] = "dirichlet"
    alpha: Positive = Field(0.5, description="Dirichlet concentration: small is very uneven")


@register
class Skewed(Partition):
    """Clients hold unequally many records."""

    kind: Literal["skewed"] = "skewed"
    power: float = Field(1.0, ge=0, le=10, description="sizes fall as rank to this power")


class DataSettings(TextSource):
    """Where simulated data comes from and how it is spread over PCs. Simulation only.

    A relative path counts from the working directory, not from the config file.
    """

    section: ClassVar[str] = "data"

    source: str = Field(
        "sentiment-4",
        min_length=1,
        description="asset, hf:ID, or a file or folder, counted from the working directory",
    )
    skip_unusable: bool = Field(
        False, description="leave out records that cannot be used (also of warm_up), and count them"
    )
    labels: tuple[str, ...] | None = Field(
        None, description="public label list, in order; default: all that occur"
    )
    client_column: str | None = Field(
        None,
        min_length=1,
        description="column with a record's owner; with partition 'column' each value is a client, "
        "and of more than federation.clients several share one",
    )
    partition: SerializeAsAny[Partition] = Iid()
    validation: str | None = Field(
        None, min_length=1, description="public validation data, given like source"
    )
    test: str | None = Field(None, min_length=1, description="test data, given like source")
    validation_size: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="records that are split off; default: a tenth, at most 2000",
    )
    test_size: int | None = Field(
        None, ge=1, le=10_000_000, description="records that are split off, like validation_size"
    )
    limit: Count | None = Field(None, description="use only so many records (a public sample)")
    split_seed: Seed = Field(0, description="which texts are held back for validation and test")
    seed: Seed = Field(0, description="which PC holds which record")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.partition, ByColumn) and self.client_column is None:
            raise ValueError('data.partition = "column" needs data.client_column')
        if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError("data.labels must hold at least two different names, each once")
        return self
