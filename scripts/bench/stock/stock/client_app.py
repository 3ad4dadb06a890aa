"""Answers at once, after the imports that training needs."""

import opacus  # noqa: F401 - what a client that trains imports
import torch  # noqa: F401
import transformers  # noqa: F401
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message: Message, _: Context) -> Message:
    """As little as an answer can be."""
    return Message(RecordDict({"answer": ConfigRecord({"y": 1})}), reply_to=message)
