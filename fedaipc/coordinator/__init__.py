"""The coordinator's side of a run.

server_app.py        Flower server app: open the run folder, run the coordinator
coordinator.py       a round, in numbered steps
membership.py        which PCs are there, with which keys
participation.py     who is asked, who is left out and why
readiness.py         the question who takes part; PCs give out shares with their yes
exchange.py          messages to PCs and back
aggregation.py       the sum of a round, masked or plain
unmasking.py         a group agrees on its sum and unmasks it
upload_store.py      uploads and shares on the disk
disputes.py          who is left out where two PCs contradict each other
checkpoint.py        one file per run, replaced in one step after each round
evaluation.py        the coordinator's own public validation and test sets
"""
