"""Text and labels: where they come from and how they are spread over simulated PCs.

records.py    texts with labels in memory and in our own files
assets.py     named weights and texts that install with the package manager
columns.py    which columns a file has
sources.py    CSV, JSONL, Parquet, folders of text, Hugging Face data sets, assets
prepare.py    de-duplication, label list, validation and test sets
partition.py  which simulated PC holds which record
"""
